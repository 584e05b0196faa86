// Package guardian runs a daemon as a child process, holds what must outlive it, and starts it again when it dies.
//
// The daemon gives descriptors to the guardian as it opens them (Client.Keep): the FUSE device, so that the mount stays
// and applications wait instead of failing; shared memory with the open files; the lock of the data directory; a
// replica's locks. The next daemon gets them (Client.Kept) and goes on. The guardian understands none of them.
//
// It must hold no file of the mount but what it keeps, never look at the mount, and have its working directory outside:
// whatever waits for the daemon must not be what starts it. docs/guardian.md has the picture.
package guardian

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options say which daemon to run and how.
type Options struct {
	Argv   []string // of the daemon; it runs this process's own binary
	Stdout *os.File
	Stderr *os.File
	Logger *slog.Logger

	// Ready is called once, when the daemon says so.
	Ready func()

	// Control is the directory in which the socket for Upgrade is made once a
	// daemon has served; "": none.
	Control string
}

// ExitError is the end of a daemon that meant to end, or never got as far as to be of use.
type ExitError struct {
	Code int // 128+n when signal n ended it
}

func (e *ExitError) Error() string { return fmt.Sprintf("the daemon has ended with code %d", e.Code) }

// Back-off between two starts. A daemon that has served is followed by another one at once, but for the pause that keeps
// one which dies of its first request from taking the whole machine; one that has not waits longer each time.
const (
	retryMin = 100 * time.Millisecond
	retryMax = 5 * time.Second
)

// stopTimeout is how long a daemon that was asked to end may take: longer than it gives itself.
const stopTimeout = 60 * time.Second

// guardian is one Run.
type guardian struct {
	opt     Options
	binary  string // that daemons run
	kept    map[string]int
	isReady bool
	served  bool           // a daemon has
	dying   []*daemon      // that were killed and wait for the one after them
	until   string         // the last deadline that a daemon has set, as it was sent
	ending  sync.WaitGroup // their ends

	upgrades chan *upgrade
	prepared chan standby
	// preparing is a goroutine that will send to prepared.
	preparing bool
	control   *control // nil until a daemon has served
}

// Run runs the daemon until it ends by its own decision, or until ctx ends and it was asked to. A daemon that dies
// (killed, or without a word) once one has served is started again; so is one that cannot go on where the one before it
// was. The error is an *ExitError for a daemon that failed.
func Run(ctx context.Context, opt Options) error {
	g := &guardian{
		opt:      opt,
		binary:   "/proc/self/exe", // the file that was executed, whatever has become of its name
		kept:     make(map[string]int),
		upgrades: make(chan *upgrade), prepared: make(chan standby, 1),
	}
	defer g.ending.Wait() // after the mount has gone
	defer g.letGo()
	defer g.endUpgrades()
	d, err := g.start(g.binary)
	if err != nil {
		return err
	}
	for retry := retryMin; ; {
		started := time.Now()
		d.give()
		end := d.run(ctx)
		switch next := end.next; {
		case next.daemon != nil && ctx.Err() == nil:
			d, retry = next.daemon, retryMin
			opt.Logger.Info("the daemon is replaced by another binary; its mount waits", "binary", next.upgrade.binary)
			continue
		case next.daemon != nil:
			next.giveUp(ctx.Err())
		}
		// One that could not go on where the one before was is no end: the mount waits until the cause is mended.
		if end.meant && end.served || !g.served || ctx.Err() != nil {
			return end.error()
		}
		ran := time.Since(started)
		if end.served {
			retry = retryMin
		}
		wait := max(0, retry-ran)
		opt.Logger.Error("the daemon has died and is started again; its mount waits", "cause", end.cause, "after", ran.Round(time.Millisecond), "in", wait.Round(time.Millisecond))
		if !pause(ctx, wait) {
			return nil
		}
		retry = min(2*retry, retryMax)
		if d, err = g.start(g.binary); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	if d == 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// letGo closes what is kept.
func (g *guardian) letGo() {
	for name := range g.kept {
		g.drop(name)
	}
}

func (g *guardian) keep(name string, fd int) {
	g.drop(name)
	g.kept[name] = fd
}

func (g *guardian) drop(name string) {
	fd, ok := g.kept[name]
	if !ok {
		return
	}
	delete(g.kept, name)
	if err := unix.Close(fd); err != nil {
		g.opt.Logger.Warn("close of a kept descriptor", "name", name, "error", err)
	}
}

// daemon is one child process.
type daemon struct {
	g    *guardian
	cmd  *exec.Cmd
	conn *net.UnixConn

	messages chan message // closed when the daemon's end of the socket is
	exited   chan struct{}
	upgrade  *upgrade // that it is the outcome of; nil once answered

	deadline time.Duration // by clock; 0: none
	overdue  bool          // it was killed for that
}

// end is how a daemon ended.
type end struct {
	meant  bool    // it said so, or was asked to
	served bool    // its mount answered
	next   standby // that was started to take its place
	cause  string
	state  *os.ProcessState // nil: it is still there
}

func (e end) error() error {
	if e.state == nil {
		return &ExitError{128 + int(unix.SIGKILL)}
	}
	ws, ok := e.state.Sys().(syscall.WaitStatus)
	switch {
	case ok && ws.Signaled():
		return &ExitError{128 + int(ws.Signal())}
	case e.state.ExitCode() != 0:
		return &ExitError{e.state.ExitCode()}
	}
	return nil
}

// start starts a daemon, which waits for what is kept.
func (g *guardian) start(binary string) (*daemon, error) {
	conn, theirs, err := pair()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(binary)
	cmd.Args = g.opt.Argv
	cmd.Env = append(os.Environ(), variable+"="+strconv.Itoa(3))
	cmd.Stdout, cmd.Stderr = g.opt.Stdout, g.opt.Stderr
	cmd.ExtraFiles = []*os.File{theirs} // descriptor 3
	// The terminal's Ctrl-C is the guardian's to hand on.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	if err = errors.Join(err, theirs.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("start the daemon: %w", err), conn.Close())
	}
	d := &daemon{g: g, cmd: cmd, conn: conn, messages: make(chan message), exited: make(chan struct{})}
	go d.receive()
	go func() {
		defer close(d.exited)
		_ = cmd.Wait() // its state says what there is to say
	}()
	return d, nil
}

// give gives a daemon what is kept, and has it start. One that has died does not take it: run finds out.
func (d *daemon) give() {
	for name, fd := range d.g.kept {
		if err := send(d.conn, message{kindHave, name, fd}); err != nil {
			return
		}
	}
	for _, old := range d.g.dying {
		select {
		case <-old.exited:
		default:
			_ = send(d.conn, message{kindDying, strconv.Itoa(old.cmd.Process.Pid), -1})
		}
	}
	if d.g.until != "" {
		_ = send(d.conn, message{kindUntil, d.g.until, -1})
	}
	_ = send(d.conn, message{kindStart, "", -1})
}

func (d *daemon) receive() {
	defer close(d.messages)
	for {
		m, err := receive(d.conn)
		if errors.Is(err, errMessage) {
			d.g.opt.Logger.Error("from the daemon", "error", err)
			continue
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, net.ErrClosed) {
				d.g.opt.Logger.Error("from the daemon", "error", err)
			}
			return
		}
		d.messages <- m
	}
}

// run serves the daemon until it is gone and all that it sent is taken.
//
// A daemon that is killed while one of its threads waits for its own mount cannot die before the next one answers that
// wait. It does nothing more, so it counts as gone; ending waits for it.
func (d *daemon) run(ctx context.Context) end {
	var e end
	kill := time.NewTimer(time.Hour)
	kill.Stop()
	defer kill.Stop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	asked, exited, messages := ctx.Done(), d.exited, d.messages
	defer func() {
		d.answer(fmt.Errorf("the new daemon has ended (%s) before it served: the old binary goes on", e.cause))
	}()
	wasDying := false
	for exited != nil || messages != nil {
		select {
		case m, ok := <-messages:
			if !ok {
				messages = nil
				continue
			}
			d.take(m)
			e.meant = e.meant || m.kind == kindBye
			e.served = e.served || m.kind == kindServe
		case <-asked:
			asked = nil
			e.meant = true
			d.signal(unix.SIGTERM)
			d.signal(unix.SIGCONT) // a stopped one would not hear
			kill.Reset(stopTimeout)
		case u := <-d.g.upgrades:
			d.g.prepare(u)
		case next := <-d.g.prepared:
			d.g.preparing = false
			if next.err == nil && (asked == nil || !e.served || e.next.daemon != nil) {
				next.err = errors.New("the daemon is not one that can be replaced now: it starts, or it ends")
			}
			if next.err != nil {
				next.giveUp(next.err)
				continue
			}
			// The one way that is proven: what a kill leaves is what the next one goes on with.
			e.next = next
			d.signal(unix.SIGKILL)
		case <-kill.C:
			d.g.opt.Logger.Error("the daemon does not end and is killed", "after", stopTimeout)
			d.signal(unix.SIGKILL)
		case <-exited:
			exited = nil
		case <-look.C:
			d.keepDeadline()
			isDying := exited != nil && d.isDying()
			if isDying && wasDying && asked != nil { // and has had the time to be gone
				d.abandon()
				e.cause = "killed, and waiting for its own mount"
				return e
			}
			wasDying = isDying
		}
	}
	if err := d.conn.Close(); err != nil {
		d.g.opt.Logger.Warn("close of the daemon's socket", "error", err)
	}
	e.state = d.cmd.ProcessState
	e.cause = e.state.String()
	return e
}

// keepDeadline kills a daemon whose deadline has passed: it is stopped, or hangs.
func (d *daemon) keepDeadline() {
	if d.deadline == 0 || d.overdue {
		return
	}
	now, err := clock()
	if err != nil {
		d.g.opt.Logger.Error("the daemon's deadline cannot be kept", "error", err)
		return
	}
	if now < d.deadline {
		return
	}
	d.overdue = true
	d.g.opt.Logger.Error("the daemon has let its deadline pass and is killed", "by", (now - d.deadline).Round(time.Millisecond))
	d.signal(unix.SIGKILL)
}

// setDeadline takes a deadline as the daemon has sent it.
func (d *daemon) setDeadline(name string) {
	d.g.until = name
	if name == "" {
		d.deadline = 0
		return
	}
	ns, err := strconv.ParseInt(name, 10, 64)
	if err != nil || ns <= 0 {
		d.g.opt.Logger.Error("from the daemon", "deadline", name)
		return
	}
	d.deadline = time.Duration(ns)
}

// lookEvery is how often it is looked whether the daemon is one that cannot die, or has let its deadline pass.
const lookEvery = 250 * time.Millisecond

// isDying reports whether the daemon has been killed and is still there (proc_pid_status(5)).
func (d *daemon) isDying() bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		return false
	}
	const sigkill = 1 << (unix.SIGKILL - 1)
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch key {
		case "State":
			if strings.HasPrefix(value, "Z") { // its first thread has ended, others have not
				return true
			}
		case "SigPnd", "ShdPnd":
			if mask, err := strconv.ParseUint(value, 16, 64); err == nil && mask&sigkill != 0 {
				return true
			}
		}
	}
	return false
}

// abandon leaves a dying daemon to itself: nothing more comes from it.
func (d *daemon) abandon() {
	d.g.dying = append(d.g.dying, d)
	d.g.ending.Add(1)
	go func() {
		defer d.g.ending.Done()
		for m := range d.messages {
			if m.fd >= 0 {
				_ = unix.Close(m.fd)
			}
		}
		<-d.exited
		_ = d.conn.Close()
	}()
}

// take does what a message says.
func (d *daemon) take(m message) {
	switch m.kind {
	case kindKeep:
		d.g.keep(m.name, m.fd)
	case kindDrop:
		d.g.drop(m.name)
	case kindHello:
		if m.name != wireVersion {
			d.g.opt.Logger.Error("the daemon is of another version than its guardian", "got", m.name, "want", wireVersion)
		}
	case kindServe:
		d.g.served = true
		if d.upgrade != nil {
			d.g.binary = d.upgrade.binary
			d.answer(nil)
		}
		d.g.openControl()
	case kindReady:
		if !d.g.isReady {
			d.g.isReady = true
			d.g.opt.Ready()
		}
	case kindUntil:
		d.setDeadline(m.name)
	case kindBye:
	default:
		d.g.opt.Logger.Error("from the daemon", "message", string(m.kind))
	}
}

func (d *daemon) signal(sig syscall.Signal) {
	if err := d.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		d.g.opt.Logger.Warn("signal to the daemon", "signal", sig, "error", err)
	}
}
