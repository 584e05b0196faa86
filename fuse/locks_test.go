package fuse

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// passes is a Locker that takes every lock, and notes what was dropped.
type passes struct {
	mu      sync.Mutex
	dropped []string
	waiting chan struct{} // a request for the byte at 99 waits here
}

func (p *passes) Lock(l Lock, take func() error) error {
	if l.Start == 99 {
		p.waiting <- struct{}{}
		select {
		case <-l.Cancel:
		case <-l.Over:
		}
		return syscall.EINTR
	}
	return take()
}

func (p *passes) LockFile(path string) (string, bool) { return "f", path == "f-lock" }

func (p *passes) Dropped(path string, _ uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropped = append(p.dropped, path)
}

func lockMount(t *testing.T, mode Mode) (*mount, *passes) {
	p := &passes{waiting: make(chan struct{})}
	return newMount(t, mode, func(o *Options) { o.Locker = p }), p
}

const (
	posix     = unix.F_SETLK
	posixWait = unix.F_SETLKW
	ofd       = unix.F_OFD_SETLK
	ofdWait   = unix.F_OFD_SETLKW
	posixGet  = unix.F_GETLK
)

// record is a request for a lock of one byte.
func record(fd, command int, kind int16, at int64) appRequest {
	return appRequest{Op: "fcntl", FD: fd, Flags: command, Data: []byte{byte(kind)}, Off: at, Len: 1}
}

// Locks are what they are in the kernel: of a process or of an open file, shared or not, upgraded and split, and gone when
// their owner closes the file, ends or is killed.
func TestForwardedLocks(t *testing.T) {
	inModes(t, func(t *testing.T, mode Mode) {
		m, p := lockMount(t, mode)
		a, b := startApp(t, 0), startApp(t, 0)
		path := m.Path("f")
		fa, fb := a.open(path, unix.O_CREAT|unix.O_RDWR), b.open(path, unix.O_RDWR)

		a.do(record(fa, posix, unix.F_RDLCK, 5))
		b.do(record(fb, posix, unix.F_RDLCK, 5))
		b.fails(syscall.EAGAIN, record(fb, posix, unix.F_WRLCK, 5))
		if kind := b.do(record(fb, posixGet, unix.F_WRLCK, 5)).N; kind != unix.F_RDLCK {
			t.Errorf("the lock in the way is of kind %d, want %d", kind, unix.F_RDLCK)
		}
		a.do(record(fa, posix, unix.F_UNLCK, 5))
		b.do(record(fb, posix, unix.F_WRLCK, 5))
		if kind := b.do(record(fb, posixGet, unix.F_WRLCK, 5)).N; kind != unix.F_UNLCK {
			t.Errorf("its own lock is in the way: kind %d", kind)
		}
		a.fails(syscall.EAGAIN, record(fa, posix, unix.F_RDLCK, 5))

		// A range is split by what is let go in its middle.
		a.do(appRequest{Op: "fcntl", FD: fa, Flags: posix, Data: []byte{unix.F_WRLCK}, Off: 10, Len: 0})
		a.do(record(fa, posix, unix.F_UNLCK, 20))
		b.do(record(fb, posix, unix.F_WRLCK, 20))
		b.fails(syscall.EAGAIN, record(fb, posix, unix.F_WRLCK, 19))
		b.fails(syscall.EAGAIN, record(fb, posix, unix.F_WRLCK, 1<<40))

		// A lock of an open file is another owner's than its process's, and other descriptors of the process may be closed.
		second := a.open(path, unix.O_RDWR)
		a.fails(syscall.EAGAIN, record(second, ofd, unix.F_WRLCK, 10))
		a.do(record(second, ofd, unix.F_WRLCK, 7))
		a.fails(syscall.EAGAIN, record(fa, posix, unix.F_WRLCK, 7))
		third := a.open(path, unix.O_RDWR)
		a.close(third) // drops all POSIX locks of the process, and no others
		b.do(record(fb, posix, unix.F_WRLCK, 19))
		b.fails(syscall.EAGAIN, record(fb, posix, unix.F_WRLCK, 7))
		a.close(second)
		b.do(record(fb, posixWait, unix.F_WRLCK, 7)) // RELEASE comes behind close(2)

		// Who takes part behind the mount is seen, and sees.
		behind, err := os.OpenFile(filepath.Join(m.root, "f"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer behind.Close()
		if err := unix.FcntlFlock(behind.Fd(), ofd, &unix.Flock_t{Type: unix.F_WRLCK, Start: 7, Len: 1}); err != syscall.EAGAIN {
			t.Errorf("a lock is not seen behind the mount: %v", err)
		}
		if err := unix.FcntlFlock(behind.Fd(), ofd, &unix.Flock_t{Type: unix.F_WRLCK, Start: 30, Len: 1}); err != nil {
			t.Fatal(err)
		}
		a.fails(syscall.EAGAIN, record(fa, posix, unix.F_RDLCK, 30))

		// Who is killed has no locks.
		a.do(record(fa, posix, unix.F_WRLCK, 40))
		if err := a.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = a.cmd.Wait() // it was killed
		a.cmd = nil
		b.do(record(fb, posix, unix.F_WRLCK, 40))
		b.close(fb)
		p.mu.Lock()
		if !slices.Contains(p.dropped, "f") {
			t.Error("the Locker has not heard that locks were dropped")
		}
		p.mu.Unlock()
		m.fs.locks.mu.Lock()
		left := len(m.fs.locks.owners)
		m.fs.locks.mu.Unlock()
		if left != 0 {
			t.Errorf("%d owners are left when nothing is open", left)
		}
	})
}

// Who waits for a lock gets it when it is let go, and can be killed while it waits, at the kernel's table or in the Locker.
func TestForwardedLocksWait(t *testing.T) {
	for name, command := range map[string]int{"posix": posixWait, "ofd": ofdWait} {
		t.Run(name, func(t *testing.T) {
			m, p := lockMount(t, Cached)
			a, b, c := startApp(t, 0), startApp(t, 0), startApp(t, 0)
			path := m.Path("f")
			fa, fb, fc := a.open(path, unix.O_CREAT|unix.O_RDWR), b.open(path, unix.O_RDWR), c.open(path, unix.O_RDWR)
			a.do(record(fa, posix, unix.F_WRLCK, 1))
			b.send(record(fb, command, unix.F_WRLCK, 1))
			c.send(record(fc, command, unix.F_WRLCK, 99))
			<-p.waiting
			for m.Counts()["SETLKW"] < 2 {
				time.Sleep(time.Millisecond)
			}
			a.do(record(fa, posix, unix.F_RDLCK, 2)) // the mount goes on meanwhile
			a.do(record(fa, posix, unix.F_UNLCK, 1))
			if r := b.receive(); r.Errno != 0 {
				t.Fatalf("%v", r.Errno)
			}
			a.send(record(fa, command, unix.F_WRLCK, 1))
			for m.Counts()["SETLKW"] < 3 {
				time.Sleep(time.Millisecond)
			}
			for _, x := range []*app{a, c} {
				if err := x.cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				ended := make(chan error, 1)
				go func() { ended <- x.cmd.Wait() }()
				select {
				case <-ended: // it was killed
				case <-time.After(patience):
					t.Fatal("who waits for a lock cannot be killed")
				}
				x.cmd = nil
			}
			b.do(record(fb, posix, unix.F_WRLCK, 2))
		})
	}
}

// The end of the mount ends the wait, too.
func TestForwardedLocksAtTheEnd(t *testing.T) {
	m, _ := lockMount(t, Cached)
	a, b := startApp(t, 0), startApp(t, 0)
	fa, fb := a.open(m.Path("f"), unix.O_CREAT|unix.O_RDWR), b.open(m.Path("f"), unix.O_RDWR)
	a.do(record(fa, posix, unix.F_WRLCK, 1))
	b.send(record(fb, posixWait, unix.F_WRLCK, 1))
	for m.Counts()["SETLKW"] < 1 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := m.Close(ctx); !errors.Is(err, syscall.EBUSY) {
		t.Fatal(err)
	}
	if r := b.receive(); r.Errno == 0 {
		t.Fatal("a lock was taken on a mount that has ended")
	}
	select {
	case <-m.Done():
	case <-time.After(patience):
		t.Fatal("the session does not end")
	}
	a.stop()
	b.stop()
}

// A mount whose locks the kernel keeps is not asked for them, and one that forwards them is asked for nothing else.
func TestForwardedLocksRequests(t *testing.T) {
	for name, want := range map[string]map[string]uint64{
		"kernel":    {"OPEN": 1, "GETATTR": 1},
		"forwarded": {"OPEN": 1, "GETATTR": 1, "SETLK": 2, "GETLK": 1, "FLUSH": 1},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMount(t, Cached, func(o *Options) {
				if name == "forwarded" {
					o.Locker = &passes{}
				}
			})
			a := startApp(t, 0)
			a.close(a.open(m.Path("f"), unix.O_CREAT|unix.O_RDWR))
			got := m.requests(func() {
				fd := a.open(m.Path("f"), unix.O_RDWR)
				a.do(record(fd, posix, unix.F_WRLCK, 1))
				a.do(record(fd, posixGet, unix.F_WRLCK, 1))
				a.do(record(fd, posix, unix.F_UNLCK, 1))
				a.close(fd)
			})
			delete(got, "RELEASE")
			if !maps.Equal(got, want) {
				t.Errorf("requests %v, want %v", got, want)
			}
		})
	}
}

// A session that took the mount over would not know who has which lock.
func TestForwardedLocksCannotBeTakenOver(t *testing.T) {
	_, err := Mount(t.Context(), Options{Dir: t.TempDir(), Root: t.TempDir(), Backend: &recorder{}, Logger: slog.New(slog.DiscardHandler), Locker: &passes{}, Keeper: struct{ Keeper }{}})
	if err == nil || !strings.Contains(err.Error(), "Locker and Keeper exclude each other") {
		t.Errorf("%v", err)
	}
}
