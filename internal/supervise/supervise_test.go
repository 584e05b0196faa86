package supervise_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/internal/supervise"
)

// The programs that are run are this test binary itself, in one of these parts.
func TestMain(m *testing.M) {
	switch os.Getenv("SUPERVISE_TEST_PART") {
	case "":
		os.Exit(m.Run())
	case "exit":
		code, _ := strconv.Atoi(os.Args[1])
		os.Exit(code)
	case "argv":
		fmt.Printf("%q\n", os.Args[1:])
	case "die":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case "signals":
		ch := make(chan os.Signal, 8)
		signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
		fmt.Println("ready", unix.Getpgrp() == os.Getpid())
		for sig := range ch {
			fmt.Println(sig)
			if sig == syscall.SIGTERM {
				os.Exit(3)
			}
		}
	case "deaf":
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
		fmt.Println("ready")
		select {}
	case "leave":
		// Leaves a deaf process behind, which holds standard output open.
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "SUPERVISE_TEST_PART=deaf")
		cmd.Stdout = os.Stdout
		if err := cmd.Start(); err != nil {
			os.Exit(9)
		}
		os.Exit(4)
	case "flood":
		// Says more than any pipe holds, until it is told to end.
		ch := make(chan os.Signal, 1)
		signal.Notify(ch, syscall.SIGTERM)
		line := []byte(strings.Repeat("x", 1<<16) + "\n")
		for {
			select {
			case <-ch:
				os.Exit(6)
			default:
				os.Stdout.Write(line)
			}
		}
	case "forks":
		// A whole tree of processes, each of which starts the next one.
		n, _ := strconv.Atoi(os.Args[1])
		if n > 0 {
			cmd := exec.Command(os.Args[0], strconv.Itoa(n-1))
			cmd.Stdout = os.Stdout
			if err := cmd.Start(); err != nil {
				os.Exit(9)
			}
		} else {
			fmt.Println("ready")
		}
		select {}
	case "init":
		// The first process of a container, whose program leaves orphans behind.
		code, err := supervise.Run(context.Background(), supervise.Options{
			Argv:   []string{os.Args[0]},
			Env:    append(os.Environ(), "SUPERVISE_TEST_PART=orphans"),
			Stdout: os.Stdout, Stderr: os.Stderr, Init: true,
		})
		fmt.Println("ended", code, err, os.Getpid())
	case "orphans":
		for range 3 {
			// Starts one that starts another, in a session of its own, and ends.
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "SUPERVISE_TEST_PART=daemonise")
			if err := cmd.Run(); err != nil {
				fmt.Println(err)
			}
		}
		// They have all been reaped when nobody but this process and its parent is left.
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			procs, err := filepath.Glob("/proc/[0-9]*")
			if err == nil && len(procs) == 2 {
				os.Exit(7)
			}
			if time.Now().After(deadline) {
				fmt.Println("processes are left:", procs, err)
				os.Exit(8)
			}
		}
	case "daemonise":
		cmd := exec.Command("/bin/true")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			fmt.Println(err)
		}
	case "session":
		// Leads a session on a terminal, as a shell would, and runs "cat" there.
		code, err := supervise.Run(context.Background(), supervise.Options{
			Argv:  []string{os.Args[0]},
			Env:   append(os.Environ(), "SUPERVISE_TEST_PART=cat"),
			Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		})
		group, groupErr := unix.IoctlGetInt(0, unix.TIOCGPGRP)
		fmt.Println("ended", code, err, group == unix.Getpgrp(), groupErr)
	case "cat":
		line, _ := bufio.NewReader(os.Stdin).ReadString('\n')
		fmt.Print("got ", line)
	}
	os.Exit(0)
}

// program is one run of a part.
type program struct {
	t       *testing.T
	out     *bufio.Reader
	signals chan os.Signal
	cancel  context.CancelFunc
	result  chan result
}

type result struct {
	code int
	err  error
}

func start(t *testing.T, part string, change func(*supervise.Options), args ...string) *program {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &program{t: t, out: bufio.NewReader(r), signals: make(chan os.Signal, 8), cancel: cancel, result: make(chan result, 1)}
	o := supervise.Options{
		Argv:    append([]string{self(t)}, args...),
		Env:     append(os.Environ(), "SUPERVISE_TEST_PART="+part),
		Stdout:  w,
		Stderr:  os.Stderr,
		Signals: p.signals,
		Grace:   time.Minute,
	}
	if change != nil {
		change(&o)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		code, err := supervise.Run(ctx, o)
		w.Close()
		p.result <- result{code, err}
	}()
	t.Cleanup(func() {
		cancel()
		p.signals <- syscall.SIGTERM
		p.signals <- syscall.SIGTERM
		<-done
		r.Close()
	})
	return p
}

func self(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

func (p *program) wantLine(want string) {
	p.t.Helper()
	got, err := p.out.ReadString('\n')
	if strings.TrimSuffix(got, "\n") != want {
		p.t.Fatalf("the program said %q (%v), want %q", got, err, want)
	}
}

func (p *program) wantCode(want int) {
	p.t.Helper()
	select {
	case r := <-p.result:
		if r.err != nil || r.code != want {
			p.t.Fatalf("got code %d, %v, want %d", r.code, r.err, want)
		}
	case <-time.After(50 * time.Second):
		p.t.Fatal("the program did not end")
	}
}

func TestExitCode(t *testing.T) {
	for _, code := range []int{0, 1, 2, 99, 255} {
		start(t, "exit", nil, strconv.Itoa(code)).wantCode(code)
	}
}

func TestKilledBySignal(t *testing.T) {
	start(t, "die", nil).wantCode(128 + 9)
}

// What was quoted once is never split again.
func TestArgumentsAreNotSplit(t *testing.T) {
	p := start(t, "argv", nil, "a b", "", `c'"d`, "$HOME", "*")
	p.wantLine(`["a b" "" "c'\"d" "$HOME" "*"]`)
	p.wantCode(0)
}

func TestStdin(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := start(t, "cat", func(o *supervise.Options) { o.Stdin = r })
	if _, err := w.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	p.wantLine("got hello")
	p.wantCode(0)
}

func TestSignalsAreForwarded(t *testing.T) {
	p := start(t, "signals", nil)
	p.wantLine("ready true")
	for _, s := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGINT} {
		p.signals <- s
		p.wantLine(s.String())
	}
	p.cancel() // already told to end by SIGINT: no second word follows
	p.signals <- syscall.SIGTERM
	p.wantCode(128 + 9)
}

func TestSIGTERMEndsWithTheProgramsCode(t *testing.T) {
	p := start(t, "signals", nil)
	p.wantLine("ready true")
	p.signals <- syscall.SIGTERM
	p.wantLine("terminated")
	p.wantCode(3)
}

func TestContextEndsTheProgram(t *testing.T) {
	p := start(t, "signals", nil)
	p.wantLine("ready true")
	p.cancel()
	p.wantLine("terminated")
	p.wantCode(3)
}

func TestGraceThenKill(t *testing.T) {
	p := start(t, "deaf", func(o *supervise.Options) { o.Grace = time.Millisecond })
	p.wantLine("ready")
	p.cancel()
	p.wantCode(128 + 9)
}

func TestSecondSignalKills(t *testing.T) {
	p := start(t, "deaf", nil)
	p.wantLine("ready")
	p.signals <- syscall.SIGTERM
	p.signals <- syscall.SIGINT
	p.wantCode(128 + 9)
}

// A stopped program hears the word to end.
func TestStoppedProgramEnds(t *testing.T) {
	p := start(t, "signals", nil)
	p.wantLine("ready true")
	p.signals <- syscall.SIGSTOP
	p.cancel()
	p.wantLine("terminated")
	p.wantCode(3)
}

// Nothing of the group outlives Run: standard output reaches its end.
func TestNothingIsLeftBehind(t *testing.T) {
	p := start(t, "leave", func(o *supervise.Options) { o.Grace = 100 * time.Millisecond })
	p.wantCode(4)
	for {
		if _, err := p.out.ReadString('\n'); err != nil {
			return
		}
	}
}

// A program that says more than anybody reads ends like any other.
func TestFloodOfOutput(t *testing.T) {
	p := start(t, "flood", nil)
	if _, err := p.out.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	p.signals <- syscall.SIGTERM
	go func() {
		for {
			if _, err := p.out.ReadString('\n'); err != nil {
				return
			}
		}
	}()
	p.wantCode(6)
}

// A flood that nobody reads any more does not hold up the end.
func TestFloodThatNobodyReads(t *testing.T) {
	p := start(t, "flood", func(o *supervise.Options) { o.Grace = 100 * time.Millisecond })
	if _, err := p.out.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	p.signals <- syscall.SIGTERM
	r := <-p.result
	// 6: the word to end came between two writes.
	if r.err != nil || r.code != 128+9 && r.code != 6 {
		t.Fatalf("got code %d, %v", r.code, r.err)
	}
}

// Signals reach the whole tree of a program that forks.
func TestTreeOfProcesses(t *testing.T) {
	p := start(t, "forks", nil, "5")
	p.wantLine("ready")
	p.signals <- syscall.SIGTERM
	p.wantCode(128 + 15)
	if line, err := p.out.ReadString('\n'); err == nil {
		t.Errorf("somebody still says %q", line)
	}
}

// As the first process of a container it reaps what others leave behind.
func TestInitReapsOrphans(t *testing.T) {
	// The shell sees the processes of its own namespace alone.
	cmd := exec.Command("sh", "-c", `mount -t proc proc /proc && exec "$0"`, self(t))
	cmd.Env = append(os.Environ(), "SUPERVISE_TEST_PART=init")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.Output()
	if got := strings.TrimSpace(string(out)); err != nil || got != "ended 7 <nil> 1" {
		t.Fatalf("got %q, %v", got, err)
	}
}

func TestInitHandsSignalsOn(t *testing.T) {
	p := start(t, "signals", func(o *supervise.Options) { o.Init, o.Grace = true, time.Millisecond })
	p.wantLine("ready true")
	// What is a second word to end elsewhere, and a kill, is the program's matter here.
	for range 3 {
		p.signals <- syscall.SIGINT
		p.wantLine("interrupt")
	}
	p.signals <- syscall.SIGTERM
	p.wantLine("terminated")
	p.wantCode(3)
}

func TestNotify(t *testing.T) {
	for _, path := range []string{filepath.Join(t.TempDir(), "notify"), "@litefs-test-" + strconv.Itoa(os.Getpid())} {
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		if err := supervise.Notify(path, supervise.NotifyReady); err != nil {
			t.Error(err)
		}
		b := make([]byte, 100)
		n, err := conn.Read(b)
		if err != nil || string(b[:n]) != "READY=1" {
			t.Errorf("%s: got %q, %v", path, b[:n], err)
		}
		conn.Close()
		if err := supervise.Notify(path, supervise.NotifyStopping); err == nil {
			t.Errorf("%s: nobody listens, and there is no error", path)
		}
	}
	if err := supervise.Notify("", supervise.NotifyReady); err != nil {
		t.Error(err)
	}
}

func TestStartErrors(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		argv []string
		code int
	}{
		{nil, 127},
		{[]string{""}, 127},
		{[]string{"no-such-program-here"}, 127},
		{[]string{filepath.Join(dir, "none")}, 127},
		{[]string{plain}, 126},
		{[]string{dir}, 126},
	} {
		code, err := supervise.Run(context.Background(), supervise.Options{Argv: tt.argv})
		var start *supervise.StartError
		if !errors.As(err, &start) || code != tt.code || start.Code != tt.code {
			t.Errorf("%q: got %d, %v, want a StartError with code %d", tt.argv, code, err, tt.code)
		}
	}
}

// On a terminal the program may read, for it has the foreground; afterwards the
// foreground is ours again.
func TestTerminal(t *testing.T) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}

	cmd := exec.Command(self(t))
	cmd.Env = append(os.Environ(), "SUPERVISE_TEST_PART=session")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tty.Close()
	deadline := time.AfterFunc(50*time.Second, func() { cmd.Process.Kill() })
	defer deadline.Stop()

	if _, err := master.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	var said []string
	for lines := bufio.NewScanner(master); lines.Scan(); {
		said = append(said, strings.TrimSpace(lines.Text()))
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the session: %v", err)
	}
	// The first line is the terminal's echo of what was typed.
	want := []string{"hello", "got hello", "ended 0 <nil> true <nil>"}
	if strings.Join(said, "|") != strings.Join(want, "|") {
		t.Errorf("the terminal shows %q, want %q", said, want)
	}
}
