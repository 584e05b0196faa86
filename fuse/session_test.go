package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func openFiles(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// TestNothingLeaks: a session leaves no goroutine, descriptor or mount.
func TestNothingLeaks(t *testing.T) {
	use := func(i int) {
		m := newMount(t, []Mode{Cached, Passthrough, Direct}[i%3])
		a := startApp(t, 0)
		for j := range 20 {
			f := m.Path(fmt.Sprint("f", j))
			fd := a.open(f, unix.O_CREAT|unix.O_RDWR)
			a.pwrite(fd, 0, "x")
			if j%2 == 0 {
				a.do(appRequest{Op: "unlink", Path: f})
			}
			a.close(fd)
		}
		a.do(appRequest{Op: "readdir", Path: m.Dir()})
		a.stop()
		m.end()
	}
	use(0) // what the runtime opens once
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	for i := range 6 {
		use(i)
	}
	if n := openFiles(t); n > files {
		t.Errorf("%d files are open, %d before", n, files)
	}
	if n := runtime.NumGoroutine(); n > goroutines {
		t.Errorf("%d goroutines, %d before:\n%s", n, goroutines, allStacks())
	}
}

func allStacks() []byte {
	b := make([]byte, 1<<20)
	return b[:runtime.Stack(b, true)]
}

// TestForgottenNodesAreFreed: what the kernel forgets costs no descriptor.
func TestForgottenNodesAreFreed(t *testing.T) {
	m := newMount(t, Cached)
	a := startApp(t, 0)
	files := openFiles(t)
	for i := range 100 {
		f := m.Path(fmt.Sprint("f", i))
		a.close(a.open(f, unix.O_CREAT|unix.O_RDWR))
		a.do(appRequest{Op: "unlink", Path: f})
	}
	// FORGET and RELEASE come when the kernel likes; other requests let them in.
	deadline := time.Now().Add(patience)
	for openFiles(t) > files && time.Now().Before(deadline) {
		a.do(appRequest{Op: "statfs", Path: m.Dir()})
	}
	if n := openFiles(t); n > files {
		t.Errorf("%d files are open, %d before", n, files)
	}
	a.stop()
}

// TestCloseWhileInUse: the mount is taken away and the error says who used it. A passthrough descriptor goes on.
func TestCloseWhileInUse(t *testing.T) {
	inModes(t, func(t *testing.T, mode Mode) {
		m := newMount(t, mode)
		m.put("f", "content")
		a := startApp(t, 0)
		fd := a.open(m.Path("f"), unix.O_RDWR)
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // no patience
		err := m.Close(ctx)
		if !errors.Is(err, syscall.EBUSY) || !strings.Contains(err.Error(), fmt.Sprint("pid ", a.pid)) {
			t.Errorf("close: %v, want EBUSY and pid %d", err, a.pid)
		}
		if mode == Passthrough {
			a.pwrite(fd, 0, "CONTENT")
			if got := m.backing("f"); got != "CONTENT" {
				t.Errorf("the file has %q", got)
			}
		} else {
			p := a.try(appRequest{Op: "pwrite", FD: fd, Data: []byte("x")})
			if p.Errno != syscall.ENOTCONN && p.Errno != syscall.ECONNABORTED {
				t.Errorf("write after the end: %v", p.Errno)
			}
		}
		a.stop()
	})
}

// TestCloseWaitsForApplications: an application that goes in time is not disturbed.
func TestCloseWaitsForApplications(t *testing.T) {
	m := newMount(t, Cached)
	m.put("f", "content")
	a := startApp(t, 0)
	fd := a.open(m.Path("f"), unix.O_RDWR)
	closed := make(chan error, 1)
	go func() { closed <- closeWithin(t, m.Session, patience) }()
	a.pwrite(fd, 0, "CONTENT")
	a.close(fd)
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if got := m.backing("f"); got != "CONTENT" {
		t.Errorf("the file has %q", got)
	}
	a.stop()
}

// TestCloseIsTold: an unmount does not drop what the kernel has not told yet of files that were closed before it.
func TestCloseIsTold(t *testing.T) {
	m := newMount(t, Cached)
	m.put("a", "content")
	m.put("b", "content")
	a := startApp(t, 0)
	one, two := a.open(m.Path("a"), unix.O_RDWR), a.open(m.Path("b"), unix.O_RDWR)
	gate := make(chan struct{})
	m.back.set(func() {
		m.back.block = map[string]chan struct{}{"Released": gate}
		m.back.entered = make(chan string, 2)
	})
	a.close(one)
	m.back.awaitEntered(t) // and nobody reads requests, until it takes too long
	a.close(two)
	closed := make(chan error, 1)
	go func() { closed <- closeWithin(t, m.Session, patience) }()
	m.back.awaitEntered(t)
	close(gate)
	if err := <-closed; err != nil {
		t.Error(err)
	}
	a.stop()
}

func TestUnmountFromOutside(t *testing.T) {
	for _, flags := range []int{0, unix.MNT_DETACH} {
		m := newMount(t, Cached)
		if err := unix.Unmount(m.Dir(), flags); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := m.Wait(ctx); err != nil {
			t.Error(err)
		}
		if err := m.Close(ctx); err != nil {
			t.Errorf("close after the end: %v", err)
		}
	}
}

// TestDetachedFromOutsideInUse: there is no mount any more that a forced unmount could name.
func TestDetachedFromOutsideInUse(t *testing.T) {
	m := newMount(t, Cached)
	m.put("f", "content")
	a := startApp(t, 0)
	a.open(m.Path("f"), unix.O_RDWR)
	if err := unix.Unmount(m.Dir(), unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := m.Close(ctx); err == nil {
		t.Error("close: no error, want one that says the mount was in use")
	}
	select {
	case <-m.Done():
	default:
		t.Error("the session goes on")
	}
	a.stop()
}

// TestCloseLeavesOthersAlone: a mount that is gone while a call of its Backend goes on has given its number back, and
// another mount may have it by then.
func TestCloseLeavesOthersAlone(t *testing.T) {
	m := newMount(t, Cached)
	m.put("f", "content")
	a := startApp(t, 0)
	fd := a.open(m.Path("f"), unix.O_RDWR)
	gate := make(chan struct{})
	m.back.set(func() {
		m.back.block = map[string]chan struct{}{"Released": gate}
		m.back.entered = make(chan string, 1)
	})
	a.close(fd)
	m.back.awaitEntered(t)
	if err := unix.Unmount(m.Dir(), 0); err != nil {
		t.Fatal(err)
	}
	var others []*mount
	for len(others) < 10 && (len(others) == 0 || others[len(others)-1].dev.mount.dev != m.dev.mount.dev) {
		others = append(others, newMount(t, Cached))
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	closed := make(chan error, 1)
	go func() { closed <- m.Close(ctx) }()
	// Close waits for the Backend now, which it does after it has aborted what it aborts.
	for _, o := range others {
		o.put("g", "content")
		a.stat(o.Path("g"))
	}
	close(gate)
	<-closed
	for _, o := range others {
		a.close(a.open(o.Path("g"), unix.O_RDWR))
	}
	a.stop()
}

func TestNoPassthrough(t *testing.T) {
	m := newMount(t, Passthrough, func(o *Options) { o.NoPassthrough = true })
	if live, why := m.Passthrough(); live || why == "" {
		t.Errorf("passthrough: %v, %q", live, why)
	}
	a := startApp(t, 0)
	fd := a.open(m.Path("f"), unix.O_CREAT|unix.O_RDWR)
	if n := m.requests(func() { a.pwrite(fd, 0, "x") })["WRITE"]; n != 1 {
		t.Errorf("%d WRITE, want 1", n)
	}
	if n := strings.Count(m.log.String(), "\n"); n != 1 || !strings.Contains(m.log.String(), "io=cached") {
		t.Errorf("log:\n%s", m.log.String())
	}
	a.stop()
}

// TestRefusedBacking: a file that cannot be passed through is served cached, with a warning; the others are not.
func TestRefusedBacking(t *testing.T) {
	m := newMount(t, Passthrough)
	a := startApp(t, 0)
	fd := a.open(m.Path("good"), unix.O_CREAT|unix.O_RDWR)
	n := m.fs.nodes.known(a.stat(m.Path("good")).Ino)
	a.close(fd)
	m.back.await(t, "Released good true true")
	n.mu.Lock()
	n.refused = true // as after an error of the kernel
	n.mu.Unlock()
	fd = a.open(m.Path("good"), unix.O_RDWR)
	if k := m.requests(func() { a.pwrite(fd, 0, "x") })["WRITE"]; k != 1 {
		t.Errorf("%d WRITE, want 1", k)
	}
	other := a.open(m.Path("other"), unix.O_CREAT|unix.O_RDWR)
	if k := m.requests(func() { a.pwrite(other, 0, "x") })["WRITE"]; k != 0 {
		t.Errorf("%d WRITE to another file, want 0", k)
	}
	a.stop()
}

// TestPollSettled: no open of this process's own asks for a poll, for it could not be answered during a garbage collection.
func TestPollSettled(t *testing.T) {
	m := newMount(t, Cached)
	before := m.Counts()["POLL"]
	if before != 1 {
		t.Fatalf("%d POLL requests at the start, want 1", before)
	}
	for range 3 {
		f, err := os.Create(m.Path("f"))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if after := m.Counts()["POLL"]; after != before {
		t.Fatalf("%d POLL requests, want %d", after, before)
	}
}

// TestRelieve: a request that says that it will wait holds nobody up, without anybody noticing that it does.
func TestRelieve(t *testing.T) {
	m := newMount(t, Direct)
	m.relief.stop() // who would notice
	a, b := startApp(t, 0), startApp(t, 0)
	fa := a.open(m.Path("a"), unix.O_CREAT|unix.O_RDWR)
	fb := b.open(m.Path("b"), unix.O_CREAT|unix.O_RDWR)
	waiting, other := make(chan struct{}), make(chan struct{})
	m.back.onWrite(func(path string) {
		if path != "a" {
			close(other)
			return
		}
		close(waiting)
		m.Relieve()
		m.Relieve() // once is enough
		select {
		case <-other:
		case <-time.After(time.Minute):
			t.Error("nobody answers the other request")
		}
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.pwrite(fa, 0, "x")
	}()
	<-waiting
	b.pwrite(fb, 0, "y")
	<-done
	m.back.onWrite(nil)
}

// TestReadersRest: who is not needed as a reader any more is the next one, and ends with the session.
func TestReadersRest(t *testing.T) {
	m := newMount(t, Direct)
	a := startApp(t, 0)
	f := a.open(m.Path("a"), unix.O_CREAT|unix.O_RDWR)
	m.back.onWrite(func(string) {
		m.Relieve()
		for m.reading.Load() == 0 { // until the other one reads
			runtime.Gosched()
		}
	})
	for range 100 {
		a.pwrite(f, 0, "x")
	}
	m.back.onWrite(nil)
	for end := time.Now().Add(patience); m.relief.resting.Load() == 0; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("nobody rests:\n%s", allStacks())
		}
	}
	if n := bytes.Count(allStacks(), []byte("(*Session).serve(")); n > 3 {
		t.Errorf("%d goroutines serve, want 3 at most:\n%s", n, allStacks())
	}
	a.close(f)
	a.stop()
	m.end() // waits for all of them
}
