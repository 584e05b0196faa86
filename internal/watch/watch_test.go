package watch_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/watch"
	"golang.org/x/sys/unix"
)

func start(t *testing.T) *watch.Watcher {
	t.Helper()
	w, err := watch.New(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func file(t *testing.T) (string, *os.File) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "app.db-wal"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f.Name(), f
}

// bell is a function to watch with and a way to wait for its calls.
func bell() (ring func(), wait func(t *testing.T)) {
	c := make(chan struct{}, 1)
	ring = func() {
		select {
		case c <- struct{}{}:
		default:
		}
	}
	wait = func(t *testing.T) {
		t.Helper()
		select {
		case <-c:
		case <-time.After(30 * time.Second):
			t.Fatal("not called")
		}
	}
	return ring, wait
}

func write(t *testing.T, f *os.File) {
	t.Helper()
	if _, err := f.Write([]byte("frame")); err != nil {
		t.Fatal(err)
	}
}

func TestWriteCallsEveryWatchOfTheFile(t *testing.T) {
	w := start(t)
	path, f := file(t)
	ring1, wait1 := bell()
	ring2, wait2 := bell()
	h1, err := w.Add(path, ring1)
	if err != nil {
		t.Fatal(err)
	}
	h2, err := w.Add(path, ring2)
	if err != nil {
		t.Fatal(err)
	}
	write(t, f)
	wait1(t)
	wait2(t)

	// One ends, the other goes on.
	if err := h1.Close(); err != nil {
		t.Fatal(err)
	}
	if err := h1.Close(); err != nil {
		t.Fatalf("second close: %v", err)
	}
	arm(t, h2)
	write(t, f)
	wait2(t)
	arm(t, h2)
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	wait2(t)
}

func arm(t *testing.T, h *watch.Watch) {
	t.Helper()
	if err := h.Arm(); err != nil {
		t.Fatal(err)
	}
}

func TestOneCallUntilArmed(t *testing.T) {
	w := start(t)
	path, f := file(t)
	other, g := file(t)
	calls := 0 // of the Watcher's goroutine, which rings the other bell afterwards
	h, err := w.Add(path, func() { calls++ })
	if err != nil {
		t.Fatal(err)
	}
	ring, wait := bell()
	o, err := w.Add(other, ring)
	if err != nil {
		t.Fatal(err)
	}
	for want := 1; want < 5; want++ {
		write(t, f)
		write(t, f)
		write(t, f)
		write(t, g)
		wait(t)
		if calls != want {
			t.Fatalf("%d calls, want %d", calls, want)
		}
		arm(t, h)
		arm(t, h) // as good as once
		arm(t, o)
	}
}

// A watch that is armed at the moment in which the kernel ends it is called all the same: whoever writes
// once and waits for the call gets it.
func TestArmedWhileItEnds(t *testing.T) {
	w := start(t)
	path, f := file(t)
	ring, wait := bell()
	h, err := w.Add(path, ring)
	if err != nil {
		t.Fatal(err)
	}
	for range 2000 {
		write(t, f)
		wait(t)
		arm(t, h)
	}
}

func TestClosedWatchIsSilent(t *testing.T) {
	w := start(t)
	path, f := file(t)
	other, g := file(t)
	h, err := w.Add(path, func() { t.Error("called after close") })
	if err != nil {
		t.Fatal(err)
	}
	ring, wait := bell()
	if _, err := w.Add(other, ring); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, f)
	write(t, g) // its event comes after the one that must not come
	wait(t)
}

func TestRemovedFileCallsALastTime(t *testing.T) {
	w := start(t)
	path, f := file(t)
	ring, wait := bell()
	h, err := w.Add(path, ring)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	wait(t)
	// A new file under the name is a new watch, and the old one ends quietly.
	if f, err = os.Create(path); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ring2, wait2 := bell()
	if _, err := w.Add(path, ring2); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, f)
	wait2(t)
}

func TestOverflowCallsEveryWatch(t *testing.T) {
	w := start(t)
	path, f := file(t)
	other, g := file(t)
	quiet, _ := file(t)

	// Hold the reader in a call while more events than the queue takes come in.
	held, release := make(chan struct{}), make(chan struct{})
	if _, err := w.Add(path, func() {
		close(held)
		<-release
	}); err != nil {
		t.Fatal(err)
	}
	h, err := w.Add(other, func() {})
	if err != nil {
		t.Fatal(err)
	}
	ring, wait := bell()
	if _, err := w.Add(quiet, ring); err != nil {
		t.Fatal(err)
	}
	write(t, f)
	<-held
	for range 20000 {
		write(t, g)
		arm(t, h)
	}
	close(release)
	wait(t)
}

func TestErrors(t *testing.T) {
	w := start(t)
	if _, err := w.Add(filepath.Join(t.TempDir(), "none"), func() {}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("no such file: %v", err)
	}
	path, _ := file(t)
	h, err := w.Add(path, func() {})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Add(path, func() {}); !errors.Is(err, watch.ErrClosed) {
		t.Errorf("add after close: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Errorf("end a watch after the watcher: %v", err)
	}
}
