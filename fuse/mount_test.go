package fuse

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// recorder is a Backend that notes what it is asked and answers as a test wants.
type recorder struct {
	mu      sync.Mutex
	mode    Mode
	calls   []string
	refuse  map[string]error               // by method
	block   map[string]chan struct{}       // by method: waits until it is closed
	entered chan string                    // when not nil: each call that is about to wait
	virtual func(string) ([]byte, bool)    //
	modeOf  func(path string) (Mode, bool) // overrides mode
}

func (r *recorder) call(method, path string, args ...any) error {
	r.mu.Lock()
	call := method + " " + path
	for _, a := range args {
		call += fmt.Sprintf(" %v", a)
	}
	r.calls = append(r.calls, call)
	err, wait, entered := r.refuse[method], r.block[method], r.entered
	r.mu.Unlock()
	if wait != nil {
		if entered != nil {
			entered <- call
		}
		<-wait
	}
	return err
}

// take returns the calls since the last take.
func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	calls := r.calls
	r.calls = nil
	return calls
}

func (r *recorder) Opening(_ Caller, path string, flags uint32, first bool) (Mode, error) {
	err := r.call("Opening", path, first)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.modeOf != nil {
		if m, ok := r.modeOf(path); ok {
			return m, err
		}
	}
	return r.mode, err
}
func (r *recorder) Creating(_ Caller, path string) error { return r.call("Creating", path) }
func (r *recorder) Opened(path string, writable, created bool) {
	r.call("Opened", path, writable, created)
}
func (r *recorder) Released(path string, writable, last bool) {
	r.call("Released", path, writable, last)
}
func (r *recorder) Writing(_ Caller, path string, off int64, data []byte) error {
	return r.call("Writing", path, off, len(data))
}
func (r *recorder) Wrote(path string, off int64, n int) { r.call("Wrote", path, off, n) }
func (r *recorder) Truncating(_ Caller, path string, size int64) error {
	return r.call("Truncating", path, size)
}
func (r *recorder) Unlinking(_ Caller, path string) error { return r.call("Unlinking", path) }
func (r *recorder) Unlinked(path string, err error)       { r.call("Unlinked", path, err) }
func (r *recorder) Renaming(_ Caller, o, n string) error  { return r.call("Renaming", o, n) }
func (r *recorder) Renamed(o, n string, err error)        { r.call("Renamed", o, n, err) }
func (r *recorder) Virtual(path string) ([]byte, bool) {
	r.mu.Lock()
	v := r.virtual
	r.mu.Unlock()
	if v == nil {
		return nil, false
	}
	return v(path)
}

// mount is a live mount of a fresh directory.
type mount struct {
	*Session
	t    *testing.T
	root string // the directory shown
	back *recorder
	log  *syncBuffer
}

func newMount(t *testing.T, mode Mode, change ...func(*Options)) *mount {
	t.Helper()
	m := &mount{t: t, back: &recorder{mode: mode}, log: &syncBuffer{}}
	base := t.TempDir()
	m.root = filepath.Join(base, "files")
	dir := filepath.Join(base, "mnt")
	for _, d := range []string{m.root, dir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// Another user must be able to reach the mount; TempDir is for its owner only.
	for d := base; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	opt := Options{Dir: dir, Root: m.root, AllowOther: true, Backend: m.back, Logger: slog.New(slog.NewTextHandler(m.log, nil))}
	for _, c := range change {
		c(&opt)
	}
	s, err := Mount(context.Background(), opt)
	if err != nil {
		t.Fatal(err)
	}
	m.Session = s
	t.Cleanup(m.end)
	return m
}

// end unmounts, by force if a failed test left files open.
func (m *mount) end() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	select {
	case <-m.Done():
	default:
		if err := m.Close(ctx); err != nil {
			m.t.Errorf("close: %v", err)
		}
	}
	if _, ok, _ := mountAt(m.Dir()); ok {
		m.t.Errorf("%s is still mounted", m.Dir())
		unix.Unmount(m.Dir(), unix.MNT_DETACH)
	}
	if m.t.Failed() {
		m.t.Logf("log:\n%s", m.log.String())
	}
}

// syncBuffer is a log that can be read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func inModes(t *testing.T, f func(t *testing.T, mode Mode)) {
	for _, mode := range []Mode{Cached, Passthrough} {
		t.Run(mode.String(), func(t *testing.T) { f(t, mode) })
	}
}

func runDaemon() {}
