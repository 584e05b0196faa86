package main_test

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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
	r := &mountRun{t: t, dir: filepath.Join(t.TempDir(), "mnt")}
	if err := os.Mkdir(r.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	args := []string{"mount", "-set", "http.addr=127.0.0.1:0", r.dir}
	if len(command) > 0 {
		args = append(append(args, "--"), command...)
	}
	r.cmd = exec.Command(binary, args...)
	r.cmd.Env = append(os.Environ(), "MNT="+r.dir)
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
	return r
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
