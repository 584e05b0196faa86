// Package watch calls a function when a file is written: one inotify
// descriptor and one goroutine for all the files of a node.
//
// A call says "look", not "something is there": inotify reports a write(2) as it
// happens, before whatever the writer does next, reports nothing for stores to
// a mapping, and several writes may become one call. A queue that overflowed
// calls every function.
//
// A watch is bound to the inode that the path named when it was added. When the
// file is removed for good the function is called a last time; whoever makes a
// new file under the path adds a new watch.
package watch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrClosed is returned by Add on a closed Watcher.
var ErrClosed = errors.New("watcher is closed")

// Watcher owns the inotify descriptor and the goroutine that reads it.
type Watcher struct {
	logger *slog.Logger
	f      *os.File // pollable, so that Close wakes the reader
	done   chan struct{}

	closing chan struct{} // closed by Close

	mu      sync.Mutex
	closed  bool
	watches map[int32][]*Watch // by watch descriptor: inotify gives one per inode, however often it is added
}

// Watch is one function waiting for writes to one file.
type Watch struct {
	w  *Watcher
	wd int32
	fn func()

	calling sync.Mutex // held while fn runs, so that Close can wait for it
	closed  bool       // guarded by calling
}

// New starts a Watcher.
func New(logger *slog.Logger) (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch files: inotify: %w", err)
	}
	w := &Watcher{
		logger:  logger,
		f:       os.NewFile(uintptr(fd), "inotify"),
		done:    make(chan struct{}),
		watches: map[int32][]*Watch{},
		closing: make(chan struct{}),
	}
	go w.run()
	return w, nil
}

// Add calls fn after each write to the file at path, from the Watcher's
// goroutine: fn must be quick and must not close a Watch or the Watcher.
// Several watches of one file are called in the order of their Adds. The error
// wraps unix.ENOENT when there is no such file, unix.ENOSPC when the user has
// no inotify watch left (fs.inotify.max_user_watches).
func (w *Watcher) Add(path string, fn func()) (*Watch, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil, fmt.Errorf("watch %s: %w", path, ErrClosed)
	}
	// w.mu is held over the call: an event of the new descriptor must find it
	// in the table.
	var wd int
	err := w.control(func(fd int) (err error) {
		wd, err = unix.InotifyAddWatch(fd, path, unix.IN_MODIFY|unix.IN_DELETE_SELF)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", path, err)
	}
	watch := &Watch{w: w, wd: int32(wd), fn: fn}
	w.watches[watch.wd] = append(w.watches[watch.wd], watch)
	return watch, nil
}

// Close ends the watch. When it returns the function is not running and will
// not be called again.
func (h *Watch) Close() error {
	h.calling.Lock()
	h.closed = true
	h.calling.Unlock()
	return h.w.remove(h)
}

func (w *Watcher) remove(h *Watch) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := w.watches[h.wd]
	i := slices.Index(list, h)
	if i < 0 || w.closed {
		return nil // closed twice, or the file went first
	}
	// A new slice: the reader may be walking the old one.
	list = slices.Delete(slices.Clone(list), i, i+1)
	if len(list) > 0 {
		w.watches[h.wd] = list
		return nil
	}
	delete(w.watches, h.wd)
	err := w.control(func(fd int) error {
		_, err := unix.InotifyRmWatch(fd, uint32(h.wd))
		return err
	})
	// EINVAL: the kernel dropped the watch with its file and the reader has not
	// come to the message yet.
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("end watch: %w", err)
	}
	return nil
}

// Close stops the Watcher and waits for its goroutine.
func (w *Watcher) Close() error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		<-w.done
		return nil
	}
	w.closed = true
	close(w.closing)
	w.mu.Unlock()
	err := w.f.Close()
	<-w.done
	return err
}

func (w *Watcher) control(fn func(fd int) error) error {
	conn, err := w.f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := conn.Control(func(fd uintptr) { inner = fn(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// rest is the least time between two reads of the descriptor while writes keep
// coming. Waking up for each of them would cost the writer's machine more than
// the writes; meanwhile they gather, and equal ones become one. The first write
// after a quiet time is told at once.
const rest = 300 * time.Microsecond

func (w *Watcher) run() {
	defer close(w.done)
	buf := make([]byte, 64<<10)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var last time.Time
	for {
		if time.Since(last) < 2*rest {
			timer.Reset(rest)
			select {
			case <-timer.C:
			case <-w.closing:
			}
		}
		n, err := w.f.Read(buf)
		last = time.Now()
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				w.logger.Error("watching files ended: writes will go unnoticed until restart", "error", err)
			}
			return
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			wd := int32(binary.NativeEndian.Uint32(b[0:]))
			mask := binary.NativeEndian.Uint32(b[4:])
			nameLen := binary.NativeEndian.Uint32(b[12:])
			b = b[min(len(b), unix.SizeofInotifyEvent+int(nameLen)):]
			w.event(wd, mask)
		}
	}
}

func (w *Watcher) event(wd int32, mask uint32) {
	var called []*Watch
	w.mu.Lock()
	switch {
	case mask&unix.IN_Q_OVERFLOW != 0:
		for _, list := range w.watches {
			called = append(called, list...)
		}
	case mask&unix.IN_IGNORED != 0:
		// The kernel's last word on this descriptor. Numbers are not reused
		// before 2^31 of them were given, so nothing newer hides behind it.
		delete(w.watches, wd)
	default:
		called = w.watches[wd]
	}
	w.mu.Unlock()
	for _, h := range called {
		h.call()
	}
}

func (h *Watch) call() {
	h.calling.Lock()
	defer h.calling.Unlock()
	if !h.closed {
		h.fn()
	}
}
