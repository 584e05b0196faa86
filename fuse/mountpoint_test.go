package fuse

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// runDaemon is a child that serves a mount until its input ends or it is killed.
func runDaemon() {
	s, err := Mount(context.Background(), Options{
		Dir: os.Getenv("DIR"), Root: os.Getenv("ROOT"), AllowOther: os.Geteuid() == 0,
		Backend: &recorder{mode: Passthrough}, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadByte()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	live, why := s.Passthrough()
	fmt.Println("end", s.Close(ctx), live, why)
}

// daemon is a child process that serves a mount of its own.
type daemon struct {
	*exec.Cmd
	dir, root string
	in        io.Closer
	out       *bufio.Reader
}

func startDaemon(t *testing.T, uid uint32) *daemon {
	t.Helper()
	base := t.TempDir()
	d := &daemon{Cmd: exec.Command("/proc/self/exe"), dir: filepath.Join(base, "mnt"), root: filepath.Join(base, "files")}
	for _, p := range []string{d.dir, d.root} {
		if err := errors.Join(os.Mkdir(p, 0o755), os.Chown(p, int(uid), int(uid))); err != nil {
			t.Fatal(err)
		}
	}
	reachable(t, base)
	t.Cleanup(func() { unix.Unmount(d.dir, unix.MNT_DETACH) })
	d.Env = append(os.Environ(), appEnv+"=daemon", "DIR="+d.dir, "ROOT="+d.root)
	d.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	in, err := d.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := d.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	d.in, d.out = in, bufio.NewReader(out)
	d.expect(t, "ready")
	return d
}

// expect reads the next line.
func (d *daemon) expect(t *testing.T, prefix string) string {
	t.Helper()
	line, err := d.out.ReadString('\n')
	if !strings.HasPrefix(line, prefix) {
		t.Fatalf("the daemon says %q, %v, want %q", line, err, prefix)
	}
	return strings.TrimSpace(line)
}

const insideEnv = "LITEFS_FUSE_TEST_INSIDE"

// withOpenDevice runs the test again in a mount namespace of its own, where every user may open /dev/fuse, as on most
// machines.
func withOpenDevice(t *testing.T) {
	node := filepath.Join(t.TempDir(), "fuse")
	if err := errors.Join(unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 229))), unix.Chmod(node, 0o666)); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const script = `mount --bind "$1" /dev/fuse && exec "$2" -test.run "^$3\$"`
	cmd := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh", node, exe, t.Name())
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestPlainUser: without privilege fusermount3 mounts, files are served cached, and only that user gets in.
func TestPlainUser(t *testing.T) {
	const uid = 65534 // nobody: fusermount3 asks for a user name
	if os.Getenv(insideEnv) == "" {
		withOpenDevice(t)
		return
	}
	d := startDaemon(t, uid)
	a := startApp(t, uid)
	a.do(appRequest{Op: "sqlite", Path: filepath.Join(d.dir, "app.db")})
	a.query("PRAGMA journal_mode=WAL")
	a.exec("CREATE TABLE t (x)")
	a.do(appRequest{Op: "execn", SQL: "INSERT INTO t VALUES (randomblob(2000))", Len: 20})
	if got := a.query("PRAGMA integrity_check"); got != "ok" {
		t.Errorf("integrity: %s", got)
	}
	a.stop()
	root := startApp(t, 0)
	root.fails(syscall.EACCES, appRequest{Op: "stat", Path: filepath.Join(d.dir, "app.db")})
	root.stop()
	d.in.Close()
	if got := d.expect(t, "end"); !strings.HasPrefix(got, "end <nil> false passthrough needs CAP_SYS_ADMIN") {
		t.Errorf("%s", got)
	}
	if err := d.Wait(); err != nil {
		t.Error(err)
	}
	if _, ok, err := mountAt(d.dir); ok || err != nil {
		t.Errorf("still mounted: %v, %v", ok, err)
	}
}

func TestStaleMount(t *testing.T) {
	if err := Unstale(t.TempDir()); err != nil {
		t.Errorf("no mount: %v", err)
	}
	d := startDaemon(t, 0)
	dir := d.dir
	// Alive: left alone, and not to be mounted on.
	if err := Unstale(dir); err != nil {
		t.Errorf("a live mount: %v", err)
	}
	if err := CheckMountPoint(dir); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a live mount: %v, want in use", err)
	}
	a := startApp(t, 0)
	fd := a.open(filepath.Join(dir, "f"), unix.O_CREAT|unix.O_RDWR)
	a.pwrite(fd, 0, "12345678")
	mapped := startApp(t, 0)
	mfd := mapped.open(filepath.Join(dir, "f"), unix.O_RDWR)
	mapped.do(appRequest{Op: "mmap", FD: mfd, Len: 8})
	mapped.close(mfd)

	if err := d.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	d.Wait()
	err := Unstale(dir)
	for _, pid := range []int{a.pid, mapped.pid} {
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("pid %d (", pid)) {
			t.Errorf("used by pid %d: %v", pid, err)
		}
	}
	a.stop()
	mapped.stop()
	if err := Unstale(dir); err != nil {
		t.Errorf("no longer used: %v", err)
	}
	if err := CheckMountPoint(dir); err != nil {
		t.Error(err)
	}
}

// TestHungMount: a daemon that does not answer does not hang the next one.
func TestHungMount(t *testing.T) {
	d := startDaemon(t, 0)
	if err := d.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(d.Process.Pid, &ws, unix.WUNTRACED, nil); err != nil || !ws.Stopped() {
		t.Fatalf("not stopped: %v, %v", ws, err)
	}
	if err := unstale(d.dir, time.Millisecond); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("%v, want does not answer", err)
	}
	if err := d.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := unstale(d.dir, patience); err != nil {
		t.Errorf("it answers again: %v", err)
	}
	d.in.Close()
	d.expect(t, "end <nil>")
	if err := d.Wait(); err != nil {
		t.Error(err)
	}
}

func TestMountInsideItself(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := Mount(context.Background(), Options{Dir: dir, Root: root, Backend: &recorder{}, Logger: slog.New(slog.DiscardHandler)})
	if err == nil {
		t.Error(s.Close(context.Background()), "mounted inside what is shown")
	}
}

func TestCheckMountPoint(t *testing.T) {
	base := t.TempDir()
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(base, "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(base, "link")
	if err := os.Symlink(empty, link); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{
		filepath.Join(base, "missing"): "does not exist",
		file:                           "not a directory",
		base:                           "not empty",
		"/proc":                        "in use",
		empty:                          "",
		link:                           "",
	} {
		err := CheckMountPoint(dir)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", dir, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("more than one line: %v", err)
		}
	}
}

func TestParseMounts(t *testing.T) {
	got, err := parseMounts("36 35 98:0 / /mnt/a\\040b rw,noatime shared:1 master:2 - ext4 /dev/sda rw\n37 35 0:57 / /m rw - fuse.litefs litefs rw\n")
	want := []mountEntry{{"36", "98:0", "/mnt/a b", "ext4"}, {"37", "0:57", "/m", "fuse.litefs"}}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"36 35 98:0 / /mnt rw\n", "x\n", "36 35 98:0 / /mnt rw -\n"} {
		if _, err := parseMounts(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
