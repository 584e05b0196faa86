// Package supervise runs one program and stands between it and the one who
// started us: standard streams passed through, signals handed on, the exit
// code handed back, and nothing of it left behind.
//
// The program runs in a process group of its own. Signals go to the group, and
// so does the end: first SIGTERM, then, when the grace period is over, SIGKILL.
// What the program started and left behind ends with it, for the file system
// below it is about to go away.
//
// It does not restart anything, and reaps no process but the one it started and
// what that left in its group; with Options.Init, every orphan.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultGrace is the time between the first word to end and SIGKILL. It is
// shorter than the 10 s that container runtimes wait by default, so that there
// is time left to unmount.
const DefaultGrace = 8 * time.Second

// Exit codes by the convention of shells, for a program that never ran.
const (
	ExitNotExecutable = 126
	ExitNotFound      = 127
)

// Options say what to run and how.
type Options struct {
	// Argv is the program and its arguments, as they are: never split again.
	Argv []string

	// Env is the environment; nil is that of this process.
	Env []string

	// Stdin, Stdout and Stderr are given to the program itself: no pipe stands
	// between. nil is /dev/null. When Stdin is the terminal that this process
	// controls, the program gets the terminal's foreground, so that Ctrl-C
	// goes to it.
	Stdin, Stdout, Stderr *os.File

	// Signals are handed on to the group. The first SIGINT or SIGTERM begins
	// the grace period; a second one is SIGKILL. nil: none come.
	Signals <-chan os.Signal

	// Grace is the time from the first word to end to SIGKILL; 0 is DefaultGrace.
	Grace time.Duration

	// Init makes this process what the first one of a container has to be, and
	// nothing more: signals go to the program alone, which knows by itself when to
	// end what, and orphans are reaped. This process must have no other child.
	Init bool

	Logger *slog.Logger // nil: silence
}

func (o Options) ensureDefaults() Options {
	if o.Grace == 0 {
		o.Grace = DefaultGrace
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// StartError is returned for a program that could not be started. Code is what
// a shell would answer: 127 when it was not found, else 126.
type StartError struct {
	Program string
	Code    int
	Err     error
}

func (e *StartError) Error() string { return fmt.Sprintf("start %s: %v", e.Program, e.Err) }
func (e *StartError) Unwrap() error { return e.Err }

// Run starts the program, waits for its end and returns its exit code: its
// own, or 128+n when signal n ended it. When ctx ends, the program is told to
// end, and Run still waits for it. The error is a *StartError, or one of the
// waiting itself; a program that ran and ended, however, is no error.
func Run(ctx context.Context, o Options) (code int, err error) {
	o = o.ensureDefaults()
	if len(o.Argv) == 0 || o.Argv[0] == "" {
		return ExitNotFound, &StartError{Code: ExitNotFound, Err: errors.New("no program is named")}
	}
	cmd := exec.Command(o.Argv[0], o.Argv[1:]...)
	cmd.Env = o.Env
	// A nil *os.File in an interface would not be nil.
	if o.Stdin != nil {
		cmd.Stdin = o.Stdin
	}
	if o.Stdout != nil {
		cmd.Stdout = o.Stdout
	}
	if o.Stderr != nil {
		cmd.Stderr = o.Stderr
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	terminal := foregroundOf(o.Stdin)
	if terminal != nil {
		cmd.SysProcAttr.Foreground = true
		cmd.SysProcAttr.Ctty = int(terminal.Fd())
	}

	if err := cmd.Start(); err != nil {
		code := ExitNotExecutable
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
			code = ExitNotFound
		}
		return code, &StartError{Program: o.Argv[0], Code: code, Err: err}
	}
	c := &child{group: cmd.Process.Pid, program: o.Argv[0], init: o.Init, logger: o.Logger}
	c.waitForExit(ctx, o)
	waitErr := cmd.Wait()
	c.endRest(o.Grace)
	if terminal != nil {
		if err := takeForeground(terminal); err != nil {
			o.Logger.Warn("the terminal could not be taken back", "error", err)
		}
	}

	var exit *exec.ExitError
	if waitErr != nil && !errors.As(waitErr, &exit) {
		return 1, fmt.Errorf("wait for %s: %w", o.Argv[0], waitErr)
	}
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return cmd.ProcessState.ExitCode(), nil
}

// child is the program while it runs. group is its process id and that of its
// group. Until the program has been waited for, the number cannot be another's.
type child struct {
	group   int
	program string
	init    bool // see Options.Init
	logger  *slog.Logger
}

// waitForExit returns when the program has ended, but is not yet waited for.
// Meanwhile it hands signals on and sees to the end that ctx or a signal asks.
func (c *child) waitForExit(ctx context.Context, o Options) {
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		if c.init {
			reapOrphans(c.group)
		}
		awaitZombie(c.group)
	}()

	// The word to end is followed by SIGCONT: a stopped program would sleep
	// through the grace period.
	ending := false
	done := ctx.Done()
	grace := time.NewTimer(o.Grace)
	grace.Stop()
	for {
		select {
		case <-exited:
			grace.Stop()
			// What it left behind hears of the end while the number of the
			// group is still surely ours.
			c.signal(syscall.SIGTERM)
			return

		case s := <-o.Signals:
			sig, ok := s.(syscall.Signal)
			if !ok {
				continue
			}
			if c.init {
				c.deliver(c.group, sig)
				continue
			}
			isEnd := sig == syscall.SIGINT || sig == syscall.SIGTERM
			if isEnd && ending {
				c.signal(syscall.SIGKILL)
				continue
			}
			c.signal(sig)
			if isEnd {
				ending = true
				c.signal(syscall.SIGCONT)
				grace.Reset(o.Grace)
			}

		case <-done:
			done = nil
			if !ending {
				ending = true
				c.signal(syscall.SIGTERM)
				c.signal(syscall.SIGCONT)
				grace.Reset(o.Grace)
			}

		case <-grace.C:
			c.logger.Warn("the program did not end in time and is killed", "program", c.program, "grace", o.Grace)
			c.signal(syscall.SIGKILL)
		}
	}
}

// signal tells the whole group.
func (c *child) signal(sig syscall.Signal) { c.deliver(-c.group, sig) }

// deliver is kill(2). That nobody is left to hear it is no fault.
func (c *child) deliver(pid int, sig syscall.Signal) {
	if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		c.logger.Warn("signal not delivered", "program", c.program, "signal", sig, "error", err)
	}
}

// endRest waits until the group is empty, and kills what is left of it after
// the grace period. They are not our children, so there is no wake-up for their
// end: it is looked for with growing pauses. A group that has a member keeps
// its number from being used anew.
func (c *child) endRest(grace time.Duration) {
	deadline := time.NewTimer(grace)
	defer deadline.Stop()
	pause := time.Millisecond
	for c.reapAdopted(); syscall.Kill(-c.group, 0) == nil; c.reapAdopted() {
		again := time.NewTimer(pause)
		select {
		case <-again.C:
			pause = min(2*pause, 50*time.Millisecond)
		case <-deadline.C:
			again.Stop()
			c.logger.Warn("processes that the program left behind are killed", "program", c.program)
			c.signal(syscall.SIGKILL)
			return
		}
	}
}

// reapAdopted waits for members of the group that were handed to this process
// when their parent ended, as process 1 of a container gets them. Without it
// they would stay in the group as zombies.
func (c *child) reapAdopted() {
	for {
		pid, err := syscall.Wait4(-c.group, nil, syscall.WNOHANG, nil)
		if pid <= 0 && !errors.Is(err, syscall.EINTR) {
			return
		}
	}
}

// awaitZombie returns when pid has ended, and leaves it to be waited for.
func awaitZombie(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, syscall.EINTR) {
			return
		}
	}
}
