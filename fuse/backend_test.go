package fuse

import (
	"errors"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRefusals: an error of the Backend reaches the application, and nothing has changed.
func TestRefusals(t *testing.T) {
	inModes(t, func(t *testing.T, mode Mode) {
		tests := []struct {
			method string
			modes  []Mode // in which it is called
			do     func(m *mount, a *app, fd int) appRequest
		}{
			{"Opening", nil, func(m *mount, a *app, fd int) appRequest { return appRequest{Op: "open", Path: m.Path("f")} }},
			{"Opening", nil, func(m *mount, a *app, fd int) appRequest {
				return appRequest{Op: "open", Path: m.Path("new"), Flags: unix.O_CREAT | unix.O_RDWR, Len: 0o644}
			}},
			{"Creating", nil, func(m *mount, a *app, fd int) appRequest {
				return appRequest{Op: "open", Path: m.Path("new"), Flags: unix.O_CREAT | unix.O_RDWR, Len: 0o644}
			}},
			{"Creating", nil, func(m *mount, a *app, fd int) appRequest {
				return appRequest{Op: "mknod", Path: m.Path("new"), Flags: unix.S_IFREG | 0o644}
			}},
			{"Writing", []Mode{Cached}, func(m *mount, a *app, fd int) appRequest {
				return appRequest{Op: "pwrite", FD: fd, Data: []byte("changed")}
			}},
			{"Truncating", nil, func(m *mount, a *app, fd int) appRequest {
				return appRequest{Op: "ftruncate", FD: fd, Len: 1}
			}},
			{"Truncating", nil, func(m *mount, a *app, fd int) appRequest {
				return appRequest{Op: "truncate", Path: m.Path("f"), Len: 1}
			}},
			{"Truncating", nil, func(m *mount, a *app, fd int) appRequest {
				return appRequest{Op: "open", Path: m.Path("f"), Flags: unix.O_TRUNC | unix.O_RDWR}
			}},
			{"Truncating", nil, func(m *mount, a *app, fd int) appRequest {
				return appRequest{Op: "fallocate", FD: fd, Off: 0, Len: 4, Flags: unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE}
			}},
			{"Unlinking", nil, func(m *mount, a *app, fd int) appRequest { return appRequest{Op: "unlink", Path: m.Path("f")} }},
			{"Renaming", nil, func(m *mount, a *app, fd int) appRequest {
				return appRequest{Op: "rename", Path: m.Path("f"), Path2: m.Path("g")}
			}},
		}
		m := newMount(t, mode)
		m.put("f", "content")
		a := startApp(t, 0)
		fd := a.open(m.Path("f"), unix.O_RDWR)
		for _, tt := range tests {
			if tt.modes != nil && tt.modes[0] != mode {
				continue
			}
			for _, refusal := range []struct {
				err  error
				want syscall.Errno
			}{
				{syscall.EROFS, syscall.EROFS},
				{errors.New("the log is full"), syscall.EIO},
				{syscall.ENOSYS, syscall.EIO}, // would switch the operation off for the whole mount
			} {
				m.back.set(func() { m.back.refuse = map[string]error{tt.method: refusal.err} })
				r := tt.do(m, a, fd)
				a.fails(refusal.want, r)
				m.back.set(func() { m.back.refuse = nil })
				if got := m.backing("f"); got != "content" {
					t.Fatalf("%s refused, but the file has changed: %q", r.Op, got)
				}
				for _, gone := range []string{"new", "g"} {
					if p := a.try(appRequest{Op: "stat", Path: m.Path(gone)}); p.Errno != syscall.ENOENT {
						t.Errorf("%s %s refused by %s, but %s is there: %v", r.Op, r.Path, tt.method, gone, p.Errno)
					}
					if _, err := filepath.Glob(filepath.Join(m.root, gone)); err != nil {
						t.Error(err)
					}
				}
			}
		}
		for _, path := range []string{"f", "new"} {
			if n := strings.Count(m.log.String(), "op=open path="+path+" "); n != 1 {
				t.Errorf("the refused open of %s was logged %d times, want once", path, n)
			}
		}
		a.stop()
	})
}

// TestBlockedBackend: requests that wait in the Backend, more of them than there are readers, hold up nobody else.
func TestBlockedBackend(t *testing.T) {
	m := newMount(t, Direct)
	m.put("other", "other")
	gate := make(chan struct{})
	m.back.set(func() {
		m.back.block = map[string]chan struct{}{"Truncating": gate}
		m.back.entered = make(chan string, 16)
	})
	var waiting []*app
	var fds []int
	for i := range 4 * maxReading {
		a := startApp(t, 0)
		name := "f" + string(rune('a'+i))
		m.put(name, "content")
		fds = append(fds, a.open(m.Path(name), unix.O_RDWR))
		waiting = append(waiting, a)
	}
	for i, a := range waiting {
		a.send(appRequest{Op: "ftruncate", FD: fds[i], Len: 1})
	}
	for range waiting {
		m.back.awaitEntered(t)
	}
	b := startApp(t, 0)
	fd := b.open(m.Path("other"), unix.O_RDWR)
	for range 100 {
		if got := string(b.pread(fd, 0, 100)); got != "other" {
			t.Fatalf("read %q", got)
		}
	}
	b.pwrite(fd, 0, "OTHER")
	b.do(appRequest{Op: "fsync", FD: fd})
	b.do(appRequest{Op: "mkdir", Path: m.Path("d"), Flags: 0o755})
	b.stop()
	if got := m.backing("fa"); got != "content" {
		t.Errorf("truncated while the Backend waits: %q", got)
	}
	close(gate)
	for i, a := range waiting {
		if p := a.receive(); p.Errno != 0 {
			t.Errorf("ftruncate %d: %v", i, p.Errno)
		}
		a.stop()
	}
	if got := m.backing("fa"); got != "c" {
		t.Errorf("after the wait: %q", got)
	}
}

// TestOrderOfReleased: the Backend hears of an open only after it has dealt with the last close before it.
func TestOrderOfReleased(t *testing.T) {
	m := newMount(t, Cached)
	m.put("f", "x")
	a, b := startApp(t, 0), startApp(t, 0)
	fd := a.open(m.Path("f"), unix.O_RDWR)
	gate := make(chan struct{})
	m.back.set(func() {
		m.back.block = map[string]chan struct{}{"Released": gate}
		m.back.entered = make(chan string, 16)
	})
	a.close(fd)
	m.back.awaitEntered(t)
	b.send(appRequest{Op: "open", Path: m.Path("f"), Flags: unix.O_RDWR})
	m.back.await(t, "Opening f true")
	close(gate)
	b.close(int(b.receive().N))
	a.stop()
	b.stop()
	var seen []string
	for _, c := range m.back.take() {
		if strings.HasPrefix(c, "Released") || strings.HasPrefix(c, "Opened") {
			seen = append(seen, strings.Fields(c)[0])
		}
	}
	if got := strings.Join(seen[:3], " "); got != "Opened Released Opened" {
		t.Errorf("order: %s", got)
	}
}

func TestPanicIsEIO(t *testing.T) {
	m := newMount(t, Cached)
	a := startApp(t, 0)
	m.back.set(func() { m.back.virtual = func(string) ([]byte, bool) { panic("broken backend") } })
	a.fails(syscall.EIO, appRequest{Op: "stat", Path: m.Path("missing")})
	m.back.set(func() { m.back.virtual = nil })
	a.fails(syscall.ENOENT, appRequest{Op: "stat", Path: m.Path("missing")})
	if !strings.Contains(m.log.String(), "broken backend") {
		t.Error("the panic is not in the log")
	}
	a.stop()
}

func TestVirtualFiles(t *testing.T) {
	m := newMount(t, Cached)
	a := startApp(t, 0)
	content := "first\n"
	m.put("app.db", "x")
	m.back.set(func() {
		m.back.virtual = func(path string) ([]byte, bool) {
			if path == "app.db-pos" || path == "sub/.primary" {
				return []byte(content), true
			}
			return nil, false
		}
	})
	pos := m.Path("app.db-pos")
	st := a.stat(pos)
	if st.Mode != unix.S_IFREG|0o444 || st.Size != 6 || st.Ino&virtualBit == 0 {
		t.Errorf("mode %o, size %d, ino %x", st.Mode, st.Size, st.Ino)
	}
	fd := a.open(pos, unix.O_RDONLY)
	m.back.set(func() { content = "the second is longer\n" })
	if got := string(a.pread(fd, 0, 100)); got != "first\n" {
		t.Errorf("an open handle shows %q", got)
	}
	later := a.open(pos, unix.O_RDONLY)
	if got := string(a.pread(later, 4, 100)); got != "second is longer\n" {
		t.Errorf("a later handle shows %q", got)
	}
	if got := a.stat(pos).Size; got != int64(len(content)) {
		t.Errorf("size %d", got)
	}
	a.fails(syscall.EACCES, appRequest{Op: "open", Path: pos, Flags: unix.O_RDWR})
	a.fails(syscall.EPERM, appRequest{Op: "unlink", Path: pos})
	a.fails(syscall.EPERM, appRequest{Op: "truncate", Path: pos, Len: 0})
	a.close(fd)
	a.close(later)
	a.do(appRequest{Op: "mkdir", Path: m.Path("sub"), Flags: 0o755})
	a.stat(m.Path("sub/.primary"))

	// One that appears later must be told, for the kernel remembers that it was missing.
	a.fails(syscall.ENOENT, appRequest{Op: "stat", Path: m.Path("b-pos")})
	m.back.set(func() { m.back.virtual = func(path string) ([]byte, bool) { return nil, path == "b-pos" } })
	if err := m.NotifyEntry("b-pos"); err != nil {
		t.Fatal(err)
	}
	a.stat(m.Path("b-pos"))
	a.fails(syscall.ENOENT, appRequest{Op: "stat", Path: pos})
	a.stop()
}
