// Package childnode runs a node of litefs as a child process: writes its configuration, starts the
// command, waits until its mount serves, asks it for its state, and ends it, gently or as a crash does.
//
// The demonstration, the benchmark and the end-to-end tests are built on it. They run nodes exactly as
// an operator does, by the command line and the configuration file, and see of a node what an operator
// sees: its log, its HTTP answers and its mount.
package childnode

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// ErrEnded is returned when the node ended before it was ready.
var ErrEnded = errors.New("the node has ended")

// Options of a node process.
type Options struct {
	Binary string    // the litefs command; empty: the running binary
	Args   []string  // after the binary; empty: mount -config Config
	Config string    // path of the configuration file
	Env    []string  // added to this process's environment, as "NAME=value"
	Log    io.Writer // gets every line the node prints; may be nil
}

// Node is a running node process.
type Node struct {
	cmd    *exec.Cmd
	out    *os.File
	exited chan struct{} // closed when the process has been waited for
	err    error         // what Wait returned; read it after exited
	ready  chan struct{} // closed at the line that says the mount serves
	copied chan struct{} // closed when every line has been read

	mu   sync.Mutex
	tail []string // the last lines, for messages
}

// tailLines is how many lines of the log a Node remembers.
const tailLines = 40

// Start starts a node without waiting for it to be ready. The caller ends it with Stop or Kill.
func Start(o Options) (*Node, error) {
	binary := o.Binary
	if binary == "" {
		exe, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find this binary: %w", err)
		}
		binary = exe
	}
	args := o.Args
	if len(args) == 0 {
		args = []string{"mount", "-config", o.Config}
	}
	out, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start node: %w", err)
	}
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), o.Env...)
	cmd.Stdout, cmd.Stderr = w, w
	// A terminal's Ctrl-C reaches a whole process group: it is the parent who ends its nodes, in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("start node %s: %w", binary, err), out.Close())
	}
	n := &Node{
		cmd: cmd, out: out,
		exited: make(chan struct{}), ready: make(chan struct{}), copied: make(chan struct{}),
	}
	go func() {
		defer close(n.exited)
		n.err = cmd.Wait()
	}()
	go func() {
		defer close(n.copied)
		n.copyLog(o.Log)
	}()
	return n, nil
}

// copyLog reads what the node prints until its last writer is gone.
func (n *Node) copyLog(to io.Writer) {
	isReady := false
	lines := bufio.NewReader(n.out)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			if to != nil {
				// The reader of the log may be gone; the node must not stop for that.
				_, _ = to.Write(line)
			}
			n.remember(strings.TrimRight(string(line), "\n"))
			if !isReady && saysReady(line) {
				isReady = true
				close(n.ready)
			}
		}
		if err != nil {
			return
		}
	}
}

// saysReady recognises the line that a node logs when its mount serves, in either log format.
func saysReady(line []byte) bool {
	return bytes.Contains(line, []byte(`msg=ready`)) || bytes.Contains(line, []byte(`"msg":"ready"`))
}

func (n *Node) remember(line string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.tail) == tailLines {
		n.tail = n.tail[1:]
	}
	n.tail = append(n.tail, line)
}

// Tail returns the last lines that the node printed.
func (n *Node) Tail() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Join(n.tail, "\n")
}

// Ready waits until the mount serves, the node has ended, or ctx ends.
func (n *Node) Ready(ctx context.Context) error {
	select {
	case <-n.ready:
		return nil
	case <-n.exited:
		<-n.copied
		return fmt.Errorf("%w before it was ready (%s):\n%s", ErrEnded, n.state(), n.Tail())
	case <-ctx.Done():
		return fmt.Errorf("node %d is not ready: %w:\n%s", n.PID(), context.Cause(ctx), n.Tail())
	}
}

// PID is the process id of the node.
func (n *Node) PID() int { return n.cmd.Process.Pid }

// Exited is closed when the node has ended.
func (n *Node) Exited() <-chan struct{} { return n.exited }

// Signal sends sig to the node.
func (n *Node) Signal(sig os.Signal) error {
	if err := n.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("signal %v to node %d: %w", sig, n.PID(), err)
	}
	return nil
}

// Wait waits for the end of the node and returns its exit code, -1 when a signal ended it.
func (n *Node) Wait(ctx context.Context) (int, error) {
	select {
	case <-n.exited:
		<-n.copied
		return n.cmd.ProcessState.ExitCode(), errors.Join(n.release())
	case <-ctx.Done():
		return -1, fmt.Errorf("node %d did not end: %w", n.PID(), context.Cause(ctx))
	}
}

// Stop asks the node to end (SIGTERM) and waits for it. An end other than exit code 0 is an error; at
// the end of ctx the node is killed.
func (n *Node) Stop(ctx context.Context) error {
	if err := n.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	code, err := n.Wait(ctx)
	if err != nil {
		return errors.Join(fmt.Errorf("stop: %w:\n%s", err, n.Tail()), n.Kill())
	}
	if code != 0 {
		return fmt.Errorf("node %d stopped with %s, want exit code 0:\n%s", n.PID(), n.state(), n.Tail())
	}
	return nil
}

// Kill ends the node as a crash does (SIGKILL) and waits for it. Its mount stays behind, dead: the
// next start at that place cleans it, or Detach.
func (n *Node) Kill() error {
	if err := n.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-n.exited:
		return n.release()
	case <-time.After(killPatience):
		return fmt.Errorf("node %d does not die: is it waiting for its own mount?", n.PID())
	}
}

// killPatience is how long a killed process may take to be gone. The kernel lets a process that waits
// for a file system finish that wait first, so a killed one can stay for ever.
const killPatience = 30 * time.Second

// release closes the read end of the log. It is safe to call twice.
func (n *Node) release() error {
	// What is left in the pipe is read first, unless a descendant keeps the write end open.
	select {
	case <-n.copied:
	case <-time.After(time.Second):
	}
	if err := n.out.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close the log of node %d: %w", n.PID(), err)
	}
	<-n.copied
	return nil
}

// state describes how the process ended.
func (n *Node) state() string { return n.cmd.ProcessState.String() }

// Detach removes a mount that its daemon left behind, from the name space at once and from the kernel
// when its last file is closed. A directory where nothing is mounted is left as it is.
func Detach(dir string) error {
	err := syscall.Unmount(dir, syscall.MNT_FORCE|syscall.MNT_DETACH)
	if err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}
