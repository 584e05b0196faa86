package fuse

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// runDaemon is a child that serves a mount until it is killed.
func runDaemon() {
	_, err := Mount(context.Background(), Options{
		Dir: os.Getenv("DIR"), Root: os.Getenv("ROOT"), AllowOther: true,
		Backend: &recorder{mode: Passthrough}, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadByte()
}

func TestStaleMount(t *testing.T) {
	base := t.TempDir()
	dir, root := filepath.Join(base, "mnt"), filepath.Join(base, "files")
	for _, d := range []string{dir, root} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	if err := Unstale(dir); err != nil {
		t.Errorf("no mount: %v", err)
	}
	d := exec.Command("/proc/self/exe")
	d.Env = append(os.Environ(), appEnv+"=daemon", "DIR="+dir, "ROOT="+root)
	in, err := d.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := d.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
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
	err = Unstale(dir)
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
