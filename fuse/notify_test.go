package fuse

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// heldReads makes every read(2) of one backing file wait, by a fanotify permission mark on it.
type heldReads struct {
	t  testing.TB
	fd int
}

func holdReads(t *testing.T, path string) *heldReads {
	t.Helper()
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_ACCESS_PERM, unix.AT_FDCWD, path); err != nil {
		t.Fatal(err)
	}
	h := &heldReads{t: t, fd: fd}
	t.Cleanup(h.end)
	return h
}

// end lets every read go on: closing the group allows what waits.
func (h *heldReads) end() {
	if h.fd >= 0 {
		unix.Close(h.fd)
		h.fd = -1
	}
}

// wait returns when a read waits.
func (h *heldReads) wait() {
	h.t.Helper()
	p := []unix.PollFd{{Fd: int32(h.fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(p, int(patience/time.Millisecond)); err != nil || n != 1 {
		h.t.Fatalf("no read has come: %v", err)
	}
}

func TestNotify(t *testing.T) {
	m := newMount(t, Cached)
	m.put("f", strings.Repeat("a", 8192))
	a := startApp(t, 0)
	fd := a.open(m.Path("f"), unix.O_RDONLY)
	a.pread(fd, 0, 8192)
	m.put("f", strings.Repeat("b", 12288))
	if got := a.pread(fd, 0, 1)[0]; got != 'a' {
		t.Fatalf("not cached: %c", got)
	}
	if err := m.NotifyRange("f", 4096, 4096); err != nil {
		t.Fatal(err)
	}
	if got := string(a.pread(fd, 4095, 2)); got != "ab" {
		t.Errorf("after a notification of the second page: %q", got)
	}
	if err := m.NotifyRange("f", 0, 0); err != nil {
		t.Fatal(err)
	}
	if got := a.pread(fd, 0, 20000); len(got) != 12288 || got[0] != 'b' {
		t.Errorf("after a notification of everything: %d bytes of %c", len(got), got[0])
	}
	if err := os.Truncate(filepath.Join(m.root, "f"), 100); err != nil {
		t.Fatal(err)
	}
	if err := m.NotifyAttr("f"); err != nil {
		t.Fatal(err)
	}
	if st := a.stat(m.Path("f")); st.Size != 100 {
		t.Errorf("size %d", st.Size)
	}

	a.fails(syscall.ENOENT, appRequest{Op: "stat", Path: m.Path("new")})
	m.put("new", "x")
	a.fails(syscall.ENOENT, appRequest{Op: "stat", Path: m.Path("new")})
	if err := m.NotifyEntry("new"); err != nil {
		t.Fatal(err)
	}
	a.stat(m.Path("new"))
	if err := os.Remove(filepath.Join(m.root, "new")); err != nil {
		t.Fatal(err)
	}
	if err := m.NotifyEntry("new"); err != nil {
		t.Fatal(err)
	}
	a.fails(syscall.ENOENT, appRequest{Op: "stat", Path: m.Path("new")})

	// What the kernel does not know is no error.
	m.put("unknown", "x")
	for _, path := range []string{"unknown", "nowhere", "no/where"} {
		if err := errors.Join(m.NotifyAttr(path), m.NotifyRange(path, 0, 10), m.NotifyEntry(path)); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	a.stop()
	m.end()
	if err := m.NotifyAttr("f"); !errors.Is(err, ErrEnded) {
		t.Errorf("after the end: %v", err)
	}
}

// TestNotifyBehindRead: a READ waits for the disk, an invalidation of its page waits for the READ, and meanwhile a first
// passthrough open of another file, and any other request, is served. (Each of them behind one lock is a deadlock that
// only an abort ends.)
func TestNotifyBehindRead(t *testing.T) {
	m := newMount(t, Passthrough)
	m.back.set(func() { m.back.modeOf = func(path string) (Mode, bool) { return Cached, path == "slow" } })
	m.put("slow", strings.Repeat("a", 4096))
	m.put("fast", "fast")
	a, b := startApp(t, 0), startApp(t, 0)
	hold := holdReads(t, filepath.Join(m.root, "slow")) // before the open: the kernel asks for no read of a file opened unmarked
	fd := a.open(m.Path("slow"), unix.O_RDONLY)
	a.send(appRequest{Op: "pread", FD: fd, Len: 4096})
	hold.wait()
	notified := make(chan error, 1)
	go func() { notified <- m.NotifyRange("slow", 0, 4096) }()

	first := b.open(m.Path("fast"), unix.O_RDWR)
	if n := m.requests(func() { b.pwrite(first, 0, "FAST") })["WRITE"]; n != 0 {
		t.Errorf("%d WRITE, want passthrough", n)
	}
	b.close(b.open(m.Path("slow"), unix.O_RDWR)) // the same inode
	b.do(appRequest{Op: "unlink", Path: m.Path("fast")})
	if err := m.NotifyAttr("slow"); err != nil {
		t.Error(err)
	}
	b.stop()

	hold.end()
	if got := a.receive().Data; len(got) != 4096 {
		t.Errorf("read %d bytes", len(got))
	}
	select {
	case err := <-notified:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("the notification is stuck")
	}
	a.stop()
}

// TestOwnOpens: the daemon opens files through its own mount, several at once, and takes OFD locks there that
// applications see.
func TestOwnOpens(t *testing.T) {
	inModes(t, func(t *testing.T, mode Mode) {
		m := newMount(t, mode)
		m.put("f", "content")
		a := startApp(t, 0)
		theirs := a.open(m.Path("f"), unix.O_RDWR)
		type result struct {
			fd  int
			err error
		}
		const n = 16
		results := make(chan result, n)
		for range n {
			go func() {
				fd, err := unix.Open(m.Path("f"), unix.O_RDWR|unix.O_CLOEXEC, 0)
				results <- result{fd, err}
			}()
		}
		var fds []int
		for range n {
			r := <-results
			if r.err != nil {
				t.Fatal(r.err)
			}
			fds = append(fds, r.fd)
		}
		lock := unix.Flock_t{Type: unix.F_WRLCK, Start: 120, Len: 1}
		served := m.requests(func() {
			if err := unix.FcntlFlock(uintptr(fds[0]), unix.F_OFD_SETLK, &lock); err != nil {
				t.Error(err)
			}
			a.fails(syscall.EAGAIN, appRequest{Op: "lock", FD: theirs, Off: 120})
			a.do(appRequest{Op: "lock", FD: theirs, Off: 121})
		})
		if len(served) != 0 {
			t.Errorf("locks cost requests: %v", served)
		}
		b := make([]byte, 100)
		if k, err := unix.Pread(fds[1], b, 0); err != nil || string(b[:k]) != "content" {
			t.Errorf("read %q, %v", b[:max(k, 0)], err)
		}
		for _, fd := range fds {
			unix.Close(fd)
		}
		a.do(appRequest{Op: "lock", FD: theirs, Off: 120})
		a.stop()
	})
}

// TestOwnOpenDuringReleased: a Released that waits for what the opening goroutine of this process holds is no deadlock.
func TestOwnOpenDuringReleased(t *testing.T) {
	m := newMount(t, Cached)
	m.put("f", "x")
	a := startApp(t, 0)
	fd := a.open(m.Path("f"), unix.O_RDWR)
	gate := make(chan struct{})
	m.back.set(func() {
		m.back.block = map[string]chan struct{}{"Released": gate}
		m.back.entered = make(chan string, 16)
	})
	a.close(fd)
	m.back.awaitEntered(t)
	opened := make(chan error, 1)
	go func() {
		fd, err := unix.Open(m.Path("f"), unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Close(fd)
		}
		opened <- err
	}()
	select {
	case err := <-opened:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("the open waits for Released")
	}
	close(gate) // also when the open hangs: a process that dies waiting for its own mount cannot die
	a.stop()
}

func TestOwnIsThisProcess(t *testing.T) {
	callers := make(chan bool, 10)
	m := newMount(t, Cached, func(o *Options) { o.Backend = &ownRecorder{recorder: o.Backend.(*recorder), own: callers} })
	m.put("f", "x")
	a := startApp(t, 0)
	a.close(a.open(m.Path("f"), unix.O_RDONLY))
	if <-callers {
		t.Error("an application counts as this process")
	}
	fd, err := unix.Open(m.Path("f"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if !<-callers {
		t.Error("this process does not count as itself")
	}
	unix.Close(fd)
	a.stop()
}

type ownRecorder struct {
	*recorder
	own chan bool
}

func (r *ownRecorder) Opening(c Caller, path string, flags uint32, first bool) (Mode, error) {
	r.own <- c.Own()
	return r.recorder.Opening(c, path, flags, first)
}

func closeWithin(t *testing.T, s *Session, d time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return s.Close(ctx)
}
