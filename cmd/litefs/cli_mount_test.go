package main_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/internal/config"
)

// mountRun is one run of "litefs mount" on the kernel's own FUSE.
type mountRun struct {
	t   *testing.T
	dir string // mount point
	cmd *exec.Cmd
	out *bufio.Reader // standard output, the command's too
	log *bufio.Reader // standard error
}

// startMount starts "litefs mount DIR" on a port of its own; command goes after --.
func startMount(t *testing.T, command ...string) *mountRun {
	t.Helper()
	return startMountWith(t, nil, command...)
}

func startMountWith(t *testing.T, flags []string, command ...string) *mountRun {
	t.Helper()
	r := newMount(t, flags, command...)
	r.start()
	return r
}

// newMount is startMount without the start.
func newMount(t *testing.T, flags []string, command ...string) *mountRun {
	t.Helper()
	r := &mountRun{t: t, dir: filepath.Join(t.TempDir(), "mnt")}
	if err := os.Mkdir(r.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	args := append(append([]string{"mount", "-set", "http.addr=127.0.0.1:0"}, flags...), r.dir)
	if len(command) > 0 {
		args = append(append(args, "--"), command...)
	}
	r.cmd = exec.Command(binary, args...)
	r.cmd.Env = append(os.Environ(), "MNT="+r.dir)
	return r
}

func (r *mountRun) start() {
	t := r.t
	t.Helper()
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	logR, logW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.cmd.Stdout, r.cmd.Stderr = outW, logW
	r.out, r.log = bufio.NewReader(outR), bufio.NewReader(logR)
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	outW.Close()
	logW.Close()
	watchdog := time.AfterFunc(time.Minute, func() { r.cmd.Process.Kill() })
	t.Cleanup(func() {
		watchdog.Stop()
		if r.cmd.ProcessState == nil {
			r.cmd.Process.Kill()
			r.cmd.Wait()
		}
		if err := unix.Unmount(r.dir, unix.MNT_DETACH); err == nil {
			t.Errorf("%s was left mounted", r.dir)
		}
		outR.Close()
		logR.Close()
	})
}

// read skips lines until one contains part.
func (r *mountRun) read(from *bufio.Reader, part string) {
	r.t.Helper()
	for {
		line, err := from.ReadString('\n')
		if strings.Contains(line, part) {
			return
		}
		if err != nil {
			r.t.Fatalf("no line with %q: %v", part, err)
		}
	}
}

func (r *mountRun) signal(sig syscall.Signal) {
	r.t.Helper()
	if err := r.cmd.Process.Signal(sig); err != nil {
		r.t.Fatal(err)
	}
}

// wantEnd waits for the end: the exit code is as wanted and nothing is mounted.
func (r *mountRun) wantEnd(code int) {
	r.t.Helper()
	err := r.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.t.Fatal(err)
	}
	if got := r.cmd.ProcessState.ExitCode(); got != code {
		r.t.Errorf("exit code %d (%s), want %d", got, r.cmd.ProcessState, code)
	}
}

func TestMountEndsCleanlyBySignal(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		r := startMount(t)
		r.read(r.log, "msg=ready")
		r.signal(sig)
		r.wantEnd(0)
	}
}

// The word to end is heard at every stage of the start: the end is clean and nothing stays mounted. (Before
// the first instruction of ours the kernel ends the process, as it does any, and before its trap the command,
// whose exit code is then ours.)
func TestMountEndsWhileItStarts(t *testing.T) {
	for delay := range 12 {
		r := startMount(t, "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.01; done")
		time.Sleep(time.Duration(delay*delay) * time.Millisecond)
		r.signal(syscall.SIGTERM)
		err := r.cmd.Wait()
		status := r.cmd.ProcessState.Sys().(syscall.WaitStatus)
		early := status.Signaled() && status.Signal() == syscall.SIGTERM || status.ExitStatus() == 128+int(syscall.SIGTERM)
		if err != nil && !early {
			t.Errorf("after %d ms: %v", delay*delay, err)
		}
		if config.IsMounted(r.dir) {
			t.Errorf("after %d ms: %s is still mounted", delay*delay, r.dir)
		}
	}
}

// A replica that waits for a primary which is not there ends like any other.
func TestMountEndsWhileItWaitsForThePrimary(t *testing.T) {
	r := startMountWith(t, []string{"-set", "lease.candidate=false", "-set", "lease.advertise-url=http://127.0.0.1:1"}, "echo", "started")
	r.read(r.log, "waiting for the first sync")
	r.signal(syscall.SIGTERM)
	r.wantEnd(0)
	if out, err := io.ReadAll(r.out); err != nil || len(out) > 0 {
		t.Errorf("the command said %q, %v", out, err)
	}
}

// With skip-sync the command does not wait for that primary.
func TestMountSkipsTheSync(t *testing.T) {
	r := startMountWith(t, []string{"-set", "lease.candidate=false", "-set", "lease.advertise-url=http://127.0.0.1:1", "-set", "skip-sync=true"},
		"sh", "-c", `echo started; exit 3`)
	r.read(r.out, "started")
	r.wantEnd(3)
}

// As the first process of a container, it leaves no zombies and ends as it does elsewhere.
func TestMountAsFirstProcess(t *testing.T) {
	const script = `
		for i in 1 2 3; do (setsid true &); done
		n=0; while [ $n -lt 2000 ] && grep -qs '^State:.Z' /proc/[0-9]*/status; do n=$((n+1)); sleep 0.01; done
		[ $n -lt 2000 ] || { echo zombies; exit 8; }
		trap 'echo told; exit 5' TERM; echo up; while :; do sleep 0.05; done`
	r := newMount(t, nil, "sh", "-c", script)
	r.cmd.Args = append([]string{"sh", "-c", `mount -t proc proc /proc && exec "$0" "$@"`}, r.cmd.Args...)
	r.cmd.Path = "/bin/sh"
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Unshareflags: syscall.CLONE_NEWNS}
	r.start()
	r.read(r.out, "up")
	r.signal(syscall.SIGTERM)
	r.read(r.out, "told")
	r.wantEnd(5)
}

func TestMountRunsACommand(t *testing.T) {
	r := startMount(t, "sh", "-c", `echo hello > "$MNT/file" && cat "$MNT/file" && exit 42`)
	r.read(r.out, "hello")
	r.wantEnd(42)
	stored, err := os.ReadFile(filepath.Join(filepath.Dir(r.dir), ".mnt.litefs/files/file"))
	if err != nil || string(stored) != "hello\n" {
		t.Errorf("the file is stored as %q, %v", stored, err)
	}
}

func TestMountHandsSignalsOn(t *testing.T) {
	r := startMount(t, "sh", "-c", `trap 'echo told; exit 5' TERM; echo up; while :; do sleep 0.05; done`)
	r.read(r.out, "up")
	r.signal(syscall.SIGTERM)
	r.read(r.out, "told")
	r.wantEnd(5)
}

// What the command says when it is killed is its code, too.
func TestMountOfAKilledCommand(t *testing.T) {
	r := startMount(t, "sh", "-c", `kill -9 $$`)
	r.wantEnd(128 + 9)
}

// A fault that only the node finds: one line, exit code 2, nothing touched.
func TestMountRefuses(t *testing.T) {
	busy := startMount(t)
	busy.read(busy.log, "msg=ready")
	for _, tt := range []struct {
		name  string
		setUp func(t *testing.T, dir string)
		args  []string
		want  string
	}{
		{"a mount point in use", func(*testing.T, string) {},
			[]string{busy.dir, "-set", "data.dir=DIR/data"}, "litefs: mount point " + busy.dir + " is in use: "},
		{"a directory with files", func(t *testing.T, dir string) { write(t, dir+"/mnt/app.db") },
			[]string{"DIR/mnt"}, "litefs: mount point DIR/mnt is not empty "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Mkdir(dir+"/mnt", 0o755); err != nil {
				t.Fatal(err)
			}
			tt.setUp(t, dir)
			before := tree(t, dir)
			args := []string{"mount", "-set", "http.addr=127.0.0.1:0"}
			for _, a := range tt.args {
				args = append(args, strings.ReplaceAll(a, "DIR", dir))
			}
			code, _, stderr := litefs{dir: dir}.run(t, args...)
			if code != 2 || !strings.HasPrefix(stderr, strings.ReplaceAll(tt.want, "DIR", dir)) || strings.Count(stderr, "\n") != 1 {
				t.Errorf("exit code %d, %s\nwant 2, %s", code, stderr, tt.want)
			}
			if after := tree(t, dir); after != before {
				t.Errorf("something was touched:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
	busy.signal(syscall.SIGTERM)
	busy.wantEnd(0)
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// A command on a running node: with its code, its words as they are, and only where it is to run.
func TestRun(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	r := newMount(t, nil)
	r.cmd.Args[3] = "http.addr=" + strings.TrimPrefix(url, "http://")
	r.start()
	r.read(r.log, "msg=ready")
	here := litefs{dir: t.TempDir()}
	for _, tt := range []struct {
		args         []string
		code         int
		stdout, says string
	}{
		{[]string{"run", "--", "sh", "-c", "exit 7"}, 7, "", ""},
		{[]string{"run", "--", "sh", "-c", "kill -9 $$"}, 128 + 9, "", ""},
		{[]string{"run", "--", "printf", "%s|", "a b", "", "$HOME"}, 0, "a b||$HOME|", ""},
		{[]string{"run", "--", "no-such-program-here"}, 127, "", "litefs: start no-such-program-here"},
		{[]string{"run", "-promote", "-if-candidate", "-url", url, "--", "echo", "primary"}, 0, "primary\n", ""},
		{[]string{"run", "-promote", "-url", "http://127.0.0.1:1", "--", "echo", "primary"}, 1, "", "litefs: info of http://127.0.0.1:1"},
	} {
		code, stdout, stderr := here.run(t, tt.args...)
		if code != tt.code || stdout != tt.stdout || !strings.HasPrefix(stderr, tt.says) || strings.Count(stderr, "\n") > 1 {
			t.Errorf("%q: exit code %d, %q, %q", tt.args, code, stdout, stderr)
		}
	}
	r.signal(syscall.SIGTERM)
	r.wantEnd(0)

	// A follower is no candidate.
	f := newMount(t, []string{"-set", "lease.candidate=false", "-set", "lease.advertise-url=http://127.0.0.1:1"})
	f.cmd.Args[3] = r.cmd.Args[3]
	f.start()
	f.read(f.log, "msg=ready")
	if code, stdout, stderr := here.run(t, "run", "-if-candidate", "-url", url, "--", "echo", "x"); code != 0 || stdout != "" || !strings.Contains(stderr, "may not become the primary") {
		t.Errorf("on a follower: exit code %d, %q, %q", code, stdout, stderr)
	}
	f.signal(syscall.SIGTERM)
	f.wantEnd(0)
}
