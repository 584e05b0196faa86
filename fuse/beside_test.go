package fuse

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// twoMounts are a mount and one beside it.
func twoMounts(t *testing.T, mode Mode) (first *mount, second *mount, p *passes) {
	t.Helper()
	first = newMount(t, mode, func(o *Options) { o.Shared = true })
	p = &passes{}
	dir := t.TempDir()
	reachable(t, dir)
	s, err := Mount(t.Context(), Options{
		Dir: dir, Beside: first.Session, AllowOther: true, Backend: first.back, Locker: p,
		Logger: slog.New(slog.NewTextHandler(first.log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	second = &mount{Session: s, t: t, root: first.root, back: first.back, log: first.log}
	t.Cleanup(second.end)
	return first, second, p
}

// What one mount does to names, sizes, contents and locks the other sees at once, and the Backend is told of files and not
// of mounts.
func TestBeside(t *testing.T) {
	inModes(t, func(t *testing.T, mode Mode) {
		first, second, _ := twoMounts(t, mode)
		a, b := startApp(t, 0), startApp(t, 0)
		at := func(m *mount, name string) string { return filepath.Join(m.Dir(), name) }
		for _, two := range [][2]*mount{{first, second}, {second, first}} {
			x, y := two[0], two[1]
			b.fails(syscall.ENOENT, appRequest{Op: "stat", Path: at(y, "f")})
			fa := a.open(at(x, "f"), unix.O_CREAT|unix.O_RDWR)
			first.back.take()
			fb := b.open(at(y, "f"), unix.O_RDWR)
			if got := strings.Join(first.back.take(), ", "); got != "Opening f false, Opened f true false" {
				t.Errorf("the second open: %s", got)
			}
			for i, text := range []string{"one", "another", "a third one"} {
				fd, app, other, ofd := fa, a, b, fb
				if i%2 == 1 {
					fd, app, other, ofd = fb, b, a, fa
				}
				app.pwrite(fd, 0, text)
				if got := other.do(appRequest{Op: "fstat", FD: ofd}).Stat.Size; got < int64(len(text)) {
					t.Errorf("size %d after %q", got, text)
				}
				if got := string(other.pread(ofd, 0, int64(len(text)))); got != text {
					t.Errorf("%q, want %q", got, text)
				}
			}
			a.do(record(fa, posix, unix.F_WRLCK, 7))
			b.fails(syscall.EAGAIN, record(fb, posix, unix.F_RDLCK, 7))
			b.fails(syscall.EAGAIN, record(fb, ofd, unix.F_RDLCK, 7))
			if kind := b.do(record(fb, posixGet, unix.F_RDLCK, 7)).N; kind != unix.F_WRLCK {
				t.Errorf("the lock in the way is of kind %d, want %d", kind, unix.F_WRLCK)
			}
			a.do(record(fa, posix, unix.F_UNLCK, 7))
			b.do(record(fb, ofd, unix.F_WRLCK, 7))
			a.fails(syscall.EAGAIN, record(fa, posix, unix.F_RDLCK, 7))
			first.back.take()
			a.close(fa)
			b.close(fb)
			first.back.await(t, "Released f true true")
			a.do(appRequest{Op: "rename", Path: at(x, "f"), Path2: at(x, "g")})
			b.do(appRequest{Op: "stat", Path: at(y, "g")})
			b.do(appRequest{Op: "unlink", Path: at(y, "g")})
			a.fails(syscall.ENOENT, appRequest{Op: "stat", Path: at(x, "g")})
		}
		fa, fb := a.open(at(first, "h"), unix.O_CREAT|unix.O_RDWR), b.open(at(second, "h"), unix.O_RDWR)
		if mode == Passthrough {
			a.do(appRequest{Op: "ftruncate", FD: fa, Len: 4096})
			ma := int(a.do(appRequest{Op: "mmap", FD: fa, Len: 4096}).N)
			mb := int(b.do(appRequest{Op: "mmap", FD: fb, Len: 4096}).N)
			a.do(appRequest{Op: "mwrite", FD: ma, Data: []byte("a's")})
			b.do(appRequest{Op: "mwrite", FD: mb, Off: 3, Data: []byte(" and b's")})
			if got := string(a.do(appRequest{Op: "mread", FD: ma, Len: 11}).Data); got != "a's and b's" {
				t.Errorf("the shared memory has %q", got)
			}
		} else {
			a.fails(syscall.ENODEV, appRequest{Op: "mmap", FD: fa, Len: 4096}) // else each mount had pages of its own
		}
		a.stop()
		b.stop()
	})
}

// The first mount cannot be taken away while the second is there. The second can, whatever is open on it: its locks are
// free then, its files are closed, and none is kept.
func TestBesideEnds(t *testing.T) {
	first, second, p := twoMounts(t, Passthrough)
	a, b := startApp(t, 0), startApp(t, 0)
	if err := unix.Unmount(first.Dir(), 0); err != unix.EBUSY {
		t.Fatalf("unmount of the first: %v, want EBUSY", err)
	}
	fb := b.open(second.Path("f"), unix.O_CREAT|unix.O_RDWR)
	b.do(record(fb, ofd, unix.F_WRLCK, 7))
	fa := a.open(first.Path("f"), unix.O_RDWR)
	a.fails(syscall.EAGAIN, record(fa, posix, unix.F_WRLCK, 7))
	if err := unix.Unmount(second.Dir(), unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := second.Wait(timeoutOf(t)); err != nil {
		t.Fatal(err)
	}
	a.do(record(fa, posix, unix.F_WRLCK, 7))
	p.mu.Lock()
	if len(p.dropped) == 0 {
		t.Error("the Locker has not heard that locks were dropped")
	}
	p.mu.Unlock()
	first.back.take()
	a.close(fa)
	first.back.await(t, "Released f true true")
	a.do(appRequest{Op: "unlink", Path: first.Path("f")})
	a.do(appRequest{Op: "stat", Path: first.Path("")}) // FORGET has been sent
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		first.fs.nodes.mu.RLock()
		left := len(first.fs.nodes.nodes)
		first.fs.nodes.mu.RUnlock()
		if left == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d nodes are left, want the root alone", left)
		}
	}
	a.stop()
	b.stop()
}

func timeoutOf(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// Without passthrough there is no second mount.
func TestSharedNeedsPassthrough(t *testing.T) {
	opt := Options{Dir: t.TempDir(), Root: t.TempDir(), Shared: true, NoPassthrough: true, Backend: &recorder{}, Logger: slog.New(slog.DiscardHandler)}
	if _, err := Mount(t.Context(), opt); err == nil || !strings.Contains(err.Error(), "need passthrough") {
		t.Errorf("%v", err)
	}
}
