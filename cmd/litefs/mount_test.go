package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/supervise"
)

// mountRun is a mount whose node is a stand-in.
type mountRun struct {
	t       *testing.T
	mount   *mount
	signals *signals
	node    *fakeNode
	out     *bufio.Reader // what programs say
	log     logLines
	exits   chan int // codes with which the process would have ended at once
	result  chan error
}

// logLines receives what is logged.
type logLines chan string

func (l logLines) Write(p []byte) (int, error) {
	select {
	case l <- string(p):
	default: // a test that waits for a line reads them all
	}
	return len(p), nil
}

// fakeNode is ready when told, and ends when told or when its context ends.
type fakeNode struct {
	primary bool
	ready   chan struct{}
	fail    chan error
	ended   chan struct{} // closed when it has ended
}

func (n *fakeNode) run(ctx context.Context, o daemonOptions) error {
	defer close(n.ended)
	for ready := n.ready; ; {
		select {
		case <-ready:
			ready = nil
			o.Ready(func(context.Context) (bool, error) { return n.primary, nil })
		case err := <-n.fail:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func startRun(t *testing.T, change func(*config.Config), programs ...string) *mountRun {
	t.Helper()
	cfg, err := config.Default("/nowhere/mnt", config.Source{})
	if err != nil {
		t.Fatal(err)
	}
	for _, script := range programs {
		cfg.Exec = append(cfg.Exec, config.Command{Argv: []string{"sh", "-c", script}})
	}
	if change != nil {
		change(cfg)
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	// A shell tells there what its own programs died of.
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	r := &mountRun{
		t:      t,
		node:   &fakeNode{ready: make(chan struct{}), fail: make(chan error, 1), ended: make(chan struct{})},
		out:    bufio.NewReader(pr),
		log:    make(logLines, 64),
		exits:  make(chan int, 4),
		result: make(chan error, 1),
	}
	var ctx context.Context
	ctx, r.signals = watchSignals(context.Background(), func(code int) { r.exits <- code })
	r.mount = &mount{
		cfg:     cfg,
		logger:  slog.New(slog.NewTextHandler(r.log, nil)),
		daemon:  r.node.run,
		signals: r.signals,
		std:     stdio{out: pw, err: null},
		grace:   time.Minute,
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.result <- r.mount.run(ctx)
		pw.Close()
	}()
	t.Cleanup(func() {
		r.signals.cancel()
		r.signal(syscall.SIGTERM)
		r.signal(syscall.SIGTERM)
		<-done
		r.signals.stop()
		pr.Close()
		null.Close()
	})
	return r
}

func (r *mountRun) signal(sig syscall.Signal) { r.signals.in <- sig }

func (r *mountRun) wantLine(want string) {
	r.t.Helper()
	got, err := r.out.ReadString('\n')
	if got != want+"\n" {
		r.t.Fatalf("the program said %q (%v), want %q", got, err, want)
	}
}

func (r *mountRun) wantSilence() {
	r.t.Helper()
	if rest, err := io.ReadAll(r.out); err != nil || len(rest) > 0 {
		r.t.Fatalf("the programs said %q (%v), want nothing", rest, err)
	}
}

func (r *mountRun) wantLog(part string) {
	r.t.Helper()
	for !strings.Contains(receive(r.t, r.log), part) {
	}
}

// wantResult waits for the end and checks it; the node has ended before.
func (r *mountRun) wantResult(check func(error) bool) {
	r.t.Helper()
	err := receive(r.t, r.result)
	if !check(err) {
		r.t.Errorf("got %v", err)
	}
	select {
	case <-r.node.ended:
	default:
		r.t.Error("the node still runs")
	}
}

func receive[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(50 * time.Second):
		t.Fatal("nothing happened")
		panic("unreachable")
	}
}

func isNil(err error) bool { return err == nil }

func isCode(code int) func(error) bool {
	return func(err error) bool {
		var exit *exitError
		return errors.As(err, &exit) && exit.code == code
	}
}

func is(want error) func(error) bool {
	return func(err error) bool { return errors.Is(err, want) }
}

var errBroken = errors.New("broken")

func TestMountWithoutProgramEndsBySignal(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		r := startRun(t, nil)
		close(r.node.ready)
		r.signal(sig)
		r.wantResult(isNil)
	}
}

func TestSignalDuringStartUp(t *testing.T) {
	r := startRun(t, nil, "echo started")
	r.signal(syscall.SIGTERM)
	r.wantResult(isNil)
	r.wantSilence()
}

func TestNodeFailsAtStart(t *testing.T) {
	r := startRun(t, nil, "echo started")
	r.node.fail <- errBroken
	r.wantResult(is(errBroken))
	r.wantSilence()
}

func TestProgramsCodeIsOurs(t *testing.T) {
	r := startRun(t, nil, "echo one; exit 0", "echo two; exit 42")
	close(r.node.ready)
	r.wantLine("one")
	r.wantLine("two")
	r.wantResult(isCode(42))
}

func TestFirstFailureIsTheLastProgram(t *testing.T) {
	r := startRun(t, nil, "exit 7", "echo two")
	close(r.node.ready)
	r.wantResult(isCode(7))
	r.wantSilence()
}

func TestNoProgramStartsAfterTheSignal(t *testing.T) {
	r := startRun(t, nil, "trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done", "echo two")
	close(r.node.ready)
	r.wantLine("up")
	r.signal(syscall.SIGTERM)
	r.wantResult(isNil)
	r.wantSilence()
}

func TestProgramNotFound(t *testing.T) {
	r := startRun(t, func(c *config.Config) {
		c.Exec = []config.Command{{Argv: []string{"no-such-program-here"}}}
	})
	close(r.node.ready)
	r.wantResult(func(err error) bool {
		var start *supervise.StartError
		return errors.As(err, &start) && report(err, io.Discard) == 127
	})
}

func TestProgramEndsWithTheNode(t *testing.T) {
	r := startRun(t, nil, "trap 'echo told; exit 5' TERM; echo up; while :; do sleep 0.01; done")
	close(r.node.ready)
	r.wantLine("up")
	r.node.fail <- errBroken
	r.wantLine("told")
	r.wantResult(is(errBroken))
}

// The program gets the signal; the node stays until the program has ended.
func TestSignalGoesToTheProgram(t *testing.T) {
	r := startRun(t, nil, "trap 'read x < /dev/null; echo told; exit 5' INT; trap 'echo usr1' USR1; echo up; while :; do sleep 0.01; done")
	close(r.node.ready)
	r.wantLine("up")
	r.signal(syscall.SIGUSR1)
	r.wantLine("usr1")
	select {
	case <-r.node.ended:
		t.Fatal("the node ended with SIGUSR1")
	default:
	}
	r.signal(syscall.SIGINT)
	r.wantLine("told")
	r.wantResult(isCode(5))
	if len(r.exits) > 0 {
		t.Error("the process ended at once")
	}
}

func TestSecondSignalKillsProgramAndProcess(t *testing.T) {
	r := startRun(t, nil, "trap '' TERM INT; echo up; while :; do sleep 0.01; done")
	close(r.node.ready)
	r.wantLine("up")
	r.signal(syscall.SIGTERM)
	r.signal(syscall.SIGINT)
	if code := receive(t, r.exits); code != 128+2 {
		t.Errorf("exit code %d, want 130", code)
	}
	r.wantResult(isCode(128 + 9))
}

func TestSecondSignalDuringShutDown(t *testing.T) {
	_, s := watchSignals(context.Background(), nil)
	exits := make(chan int, 1)
	s.exit = func(code int) { exits <- code }
	defer s.stop()
	s.in <- syscall.SIGTERM
	s.in <- syscall.SIGTERM
	if code := receive(t, exits); code != 128+15 {
		t.Errorf("exit code %d, want 143", code)
	}
}

// With exit-on-error: false a fault leaves everything up until a signal comes.
func TestStaysAfterAFault(t *testing.T) {
	stay := func(c *config.Config) { c.ExitOnError = false }

	r := startRun(t, stay)
	r.node.fail <- errBroken
	r.wantLog("stays until a signal")
	r.signal(syscall.SIGTERM)
	r.wantResult(is(errBroken))

	r = startRun(t, stay, "echo up; exit 3")
	close(r.node.ready)
	r.wantLine("up")
	r.wantLog("stays until a signal")
	select {
	case <-r.node.ended:
		t.Fatal("the node ended with the program")
	default:
	}
	r.signal(syscall.SIGTERM)
	r.wantResult(isCode(3))
}

// Commands that are not for this node are left out; the mount stays without them.
func TestCommandsForOthersAreLeftOut(t *testing.T) {
	for _, tt := range []struct {
		candidate, primary bool
		want               []string
	}{{false, false, nil}, {true, false, []string{"candidate"}}, {true, true, []string{"candidate", "primary"}}} {
		r := startRun(t, func(c *config.Config) {
			c.Lease.Candidate = tt.candidate
			c.Exec = []config.Command{
				{Argv: []string{"echo", "candidate"}, IfCandidate: true},
				{Argv: []string{"echo", "primary"}, IfPrimary: true},
				{Argv: []string{"echo", "never"}, IfCandidate: true, IfPrimary: true},
			}
			if tt.primary {
				c.Exec = c.Exec[:2]
			}
		})
		r.node.primary = tt.primary
		close(r.node.ready)
		for _, line := range tt.want {
			r.wantLine(line)
		}
		if !tt.primary {
			r.wantLog("is left out")
			select {
			case <-r.node.ended:
				t.Error("the node ended though no signal came")
			default:
			}
			r.signal(syscall.SIGTERM)
		}
		r.wantResult(isNil)
		r.wantSilence()
	}
}

// A program is started again as often as it ends; a signal ends it for good, also between two starts.
func TestProgramIsStartedAgain(t *testing.T) {
	again := func(policy string) func(*config.Config) {
		return func(c *config.Config) { c.Exec[len(c.Exec)-1].Restart = policy }
	}
	r := startRun(t, again(config.RestartOnFailure), "echo up; exit 3")
	close(r.node.ready)
	r.wantLine("up")
	r.wantLog("is started again")
	r.wantLine("up")
	r.wantLog("is started again")
	r.signal(syscall.SIGTERM)
	r.wantResult(isCode(3))

	r = startRun(t, again(config.RestartOnFailure), "echo up; exit 0")
	close(r.node.ready)
	r.wantLine("up")
	r.wantResult(isNil)
	r.wantSilence()

	r = startRun(t, again(config.RestartAlways), "echo first", "trap 'exit 4' TERM; echo up; read x; while :; do sleep 0.01; done")
	close(r.node.ready)
	r.wantLine("first")
	r.wantLine("up")
	r.signal(syscall.SIGTERM)
	r.wantResult(isCode(4))
}

// systemd hears when applications may start and when the end has come; programs do not hear of systemd.
func TestSystemdIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv(supervise.NotifySocket, path)
	r := startRun(t, nil, "echo socket $NOTIFY_SOCKET; test -n \"$HOSTNAME\"")
	r.mount.notices = path
	close(r.node.ready)
	r.wantLine("socket")
	r.wantResult(isNil)
	b := make([]byte, 100)
	for _, want := range []string{supervise.NotifyReady, supervise.NotifyStopping} {
		if n, err := conn.Read(b); err != nil || string(b[:n]) != want {
			t.Errorf("told %q, %v, want %q", b[:n], err, want)
		}
	}
}

func TestReport(t *testing.T) {
	for _, tt := range []struct {
		err  error
		code int
	}{
		{nil, 0},
		{errBroken, 1},
		{usagef("x"), 2},
		{config.Invalid(errBroken), 2},
		{&exitError{42}, 42},
		{errHelp, 0},
		{&supervise.StartError{Code: 126, Err: errBroken}, 126},
	} {
		if got := report(tt.err, io.Discard); got != tt.code {
			t.Errorf("%v: exit code %d, want %d", tt.err, got, tt.code)
		}
	}
}
