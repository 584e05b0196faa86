package fuse

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCostOfOpen: closing costs no more than the RELEASE that nobody waits for, what is cached stays cached from one open
// to the next, and names, missing names and attributes are asked for once.
func TestCostOfOpen(t *testing.T) {
	inModes(t, func(t *testing.T, mode Mode) {
		m := newMount(t, mode)
		m.put("f", "content")
		a := startApp(t, 0)
		cycle := func() {
			fd := a.open(m.Path("f"), unix.O_RDWR)
			a.pread(fd, 0, 100)
			a.close(fd)
			m.back.await(t, "Released f true true")
			m.back.take()
			a.fails(syscall.ENOENT, appRequest{Op: "access", Path: m.Path("f-journal")})
			a.do(appRequest{Op: "access", Path: m.Path("f")})
		}
		cycle()
		got := m.requests(func() {
			for range 10 {
				cycle()
			}
		})
		if want := map[string]uint64{"OPEN": 10, "RELEASE": 10}; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("requests: %v, want %v", got, want)
		}
		fd := a.open(m.Path("f"), unix.O_RDWR)
		for range 10 {
			a.pwrite(fd, 0, "x")
		}
		if n := m.Counts()["FLUSH"]; n > 1 {
			t.Errorf("%d FLUSH, want none but settlePoll's", n)
		}
		if n := m.Counts()["GETXATTR"]; n > 1 {
			t.Errorf("%d GETXATTR, want one for the whole mount at most", n)
		}
		a.stop()
	})
}

// TestModeOfInode: the mode of the first open holds until the last close, whatever the Backend answers meanwhile, and
// no cached page survives a time of passthrough.
func TestModeOfInode(t *testing.T) {
	m := newMount(t, Cached)
	a := startApp(t, 0)
	m.put("f", "old")
	read := func(fd int) string { return string(a.pread(fd, 0, 100)) }

	fd := a.open(m.Path("f"), unix.O_RDWR)
	if got := read(fd); got != "old" {
		t.Errorf("cached: %q", got)
	}
	m.back.set(func() { m.back.mode = Passthrough })
	second := a.open(m.Path("f"), unix.O_RDWR)
	if n := m.requests(func() { a.pwrite(second, 0, "OLD") })["WRITE"]; n != 1 {
		t.Errorf("%d WRITE through a second open of a cached inode, want 1", n)
	}
	a.close(fd)
	a.close(second)
	m.back.await(t, "Released f true true")

	fd = a.open(m.Path("f"), unix.O_RDWR)
	if n := m.requests(func() { a.pwrite(fd, 0, "new!") })["WRITE"]; n != 0 {
		t.Errorf("%d WRITE in passthrough, want 0", n)
	}
	m.back.set(func() { m.back.mode = Direct })
	second = a.open(m.Path("f"), unix.O_RDONLY)
	if got := read(second); got != "new!" {
		t.Errorf("passthrough: %q", got)
	}
	m.back.take()
	a.close(fd)
	a.close(second)
	m.back.await(t, "Released f false true")

	m.back.set(func() { m.back.mode = Cached })
	fd = a.open(m.Path("f"), unix.O_RDWR)
	if got := read(fd); got != "new!" {
		t.Errorf("cached again: %q", got)
	}
	a.close(fd)
	a.stop()
}

// TestModeIsAskedAgain: a Backend that was told of an open handle, and so of a mode in force, is asked once more when
// that handle has been closed meanwhile.
func TestModeIsAskedAgain(t *testing.T) {
	m := newMount(t, Cached)
	m.put("f", "x")
	a, b := startApp(t, 0), startApp(t, 0)
	fd := a.open(m.Path("f"), unix.O_RDWR)
	gate := make(chan struct{})
	m.back.set(func() {
		m.back.block = map[string]chan struct{}{"Opening": gate}
		m.back.entered = make(chan string, 16)
	})
	b.send(appRequest{Op: "open", Path: m.Path("f"), Flags: unix.O_RDWR})
	m.back.awaitEntered(t)
	a.close(fd)
	m.back.await(t, "Released f true true")
	m.back.set(func() { m.back.block = nil })
	m.back.take()
	m.back.set(func() { m.back.mode = Passthrough })
	close(gate)
	fd = int(b.receive().N)
	m.back.await(t, "Opening f true")
	if n := m.requests(func() { b.pwrite(fd, 0, "y") })["WRITE"]; n != 0 {
		t.Errorf("%d WRITE, want passthrough", n)
	}
	a.stop()
	b.stop()
}

func TestDirect(t *testing.T) {
	m := newMount(t, Direct)
	a := startApp(t, 0)
	m.put("f", strings.Repeat("a", 5000))
	fd := a.open(m.Path("f"), unix.O_RDWR)
	a.pwrite(fd, 4998, "zz!")
	if got := string(a.pread(fd, 4990, 100)); got != "aaaaaaaazz!" {
		t.Errorf("read %q", got)
	}
	mp := int(a.do(appRequest{Op: "mmap", FD: fd, Len: 4096}).N)
	a.do(appRequest{Op: "munmap", FD: mp})
	a.stop()
}
