package fuse

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// recorder is a Backend that notes what it is asked and answers as a test wants.
type recorder struct {
	listed []string // virtual files of the root directory

	mu      sync.Mutex
	mode    Mode
	sync    Sync
	silent  bool // notes and refuses nothing
	calls   []string
	changed chan struct{}                  // closed at the next call
	refuse  map[string]error               // by method
	block   map[string]chan struct{}       // by method: waits until it is closed
	entered chan string                    // when not nil: each call that is about to wait
	virtual func(string) ([]byte, bool)    //
	modeOf  func(path string) (Mode, bool) // overrides mode
	written func(path string)              // see onWrite
}

func (r *recorder) call(method, path string, args ...any) error {
	r.mu.Lock()
	if r.silent {
		r.mu.Unlock()
		return nil
	}
	call := method + " " + path
	for _, a := range args {
		call += fmt.Sprintf(" %v", a)
	}
	r.calls = append(r.calls, call)
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
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

// await waits until a call was made (close(2) does not wait for Released).
func (r *recorder) await(t *testing.T, want string) {
	t.Helper()
	deadline := time.After(patience)
	for {
		r.mu.Lock()
		if slices.Contains(r.calls, want) {
			r.mu.Unlock()
			return
		}
		if r.changed == nil {
			r.changed = make(chan struct{})
		}
		changed, calls := r.changed, slices.Clone(r.calls)
		r.mu.Unlock()
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("no call %q; the last calls: %q", want, calls[max(0, len(calls)-20):])
		}
	}
}

// awaitEntered waits until a call waits at its gate.
func (r *recorder) awaitEntered(t *testing.T) {
	t.Helper()
	select {
	case <-r.entered:
	case <-time.After(patience):
		t.Fatal("the call did not come")
	}
}

// set changes the answers.
func (r *recorder) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

// onWrite has fn called in each write; nil: nothing.
func (r *recorder) onWrite(fn func(path string)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.written = fn
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
func (r *recorder) Virtuals(dir string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if dir != "" {
		return nil
	}
	return r.listed
}

func (r *recorder) Volatile(path string) bool { return strings.HasSuffix(path, "-pos") }

func (r *recorder) Opened(path string, _ Mode, writable, created bool) {
	r.call("Opened", path, writable, created)
}
func (r *recorder) Released(path string, writable, last bool) {
	r.call("Released", path, writable, last)
}
func (r *recorder) Writing(_ Caller, path string, off int64, data []byte) error {
	r.mu.Lock()
	written := r.written
	r.mu.Unlock()
	if written != nil {
		written(path)
	}
	return r.call("Writing", path, off, len(data))
}
func (r *recorder) Wrote(path string, off int64, n int) { r.call("Wrote", path, off, n) }
func (r *recorder) Syncing(_ Caller, path string) Sync {
	r.call("Syncing", path)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sync
}
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
	t    testing.TB
	root string // the directory shown
	back *recorder
	log  *syncBuffer
}

func newMount(t testing.TB, mode Mode, change ...func(*Options)) *mount {
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
	reachable(t, base)
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

// reachable lets other users in; TempDir is for its owner only.
func reachable(t testing.TB, dir string) {
	t.Helper()
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
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

// patience bounds waits that should be quick.
const patience = 30 * time.Second

// backing reads the file itself.
func (m *mount) backing(path string) string {
	m.t.Helper()
	b, err := os.ReadFile(filepath.Join(m.root, path))
	if err != nil {
		m.t.Fatal(err)
	}
	return string(b)
}

// put writes the file itself, behind the mount.
func (m *mount) put(path, content string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.root, path), []byte(content), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// requests returns how many requests f has caused, by kind. FORGET comes when the kernel likes.
func (m *mount) requests(f func()) map[string]uint64 {
	// The kernel sends RELEASEDIR after the close(2) that causes it has returned.
	before := m.Counts()
	for deadline := time.Now().Add(patience); before["OPENDIR"] != before["RELEASEDIR"] && time.Now().Before(deadline); before = m.Counts() {
		time.Sleep(time.Millisecond)
	}
	f()
	var diff map[string]uint64
	for op, n := range m.Counts() {
		if n -= before[op]; n > 0 && op != "FORGET" && op != "BATCH_FORGET" {
			if diff == nil {
				diff = make(map[string]uint64)
			}
			diff[op] = n
		}
	}
	return diff
}
