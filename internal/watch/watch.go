// Package watch calls a function at the next write to a file: one inotify
// descriptor and one goroutine for all the files of a node.
//
// A call says "look", not "something is there": inotify reports a write(2) as it
// happens, before whatever the writer does next, and reports nothing for stores
// to a mapping. A queue that overflowed calls every function.
//
// After a call the watch is silent until it is armed again: a transaction is
// several writes, and being told of each would cost the writer's machine more
// than the writes. Who arms it looks once more afterwards, for what was written
// in between told nobody.
//
// An armed watch is bound to the inode that the path named then. When the file
// is removed for good the function is called; whoever makes a new file under
// the path adds a new watch.
package watch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrClosed is returned by Add on a closed Watcher.
var ErrClosed = errors.New("watcher is closed")

// Watcher owns the inotify descriptor and the goroutine that reads it.
type Watcher struct {
	logger *slog.Logger
	f      *os.File // pollable, so that Close wakes the reader
	done   chan struct{}

	mu      sync.Mutex
	closed  bool
	watches map[int32][]*Watch // armed, by watch descriptor: inotify gives one per inode, however often it is added
}

// Watch is one function waiting for the next write to one file.
type Watch struct {
	w    *Watcher
	path string
	fn   func()
	wd   int32 // silent while it is not armed; guarded by w.mu

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
	}
	go w.run()
	return w, nil
}

// silent is the descriptor of a watch that is not armed.
const silent = -1

// Add calls fn at the next write to the file at path, from the Watcher's
// goroutine: fn must be quick and must not close a Watch or the Watcher.
// Several watches of one file are called in the order in which they were armed.
// The error wraps unix.ENOENT when there is no such file, unix.ENOSPC when the
// user has no inotify watch left (fs.inotify.max_user_watches).
func (w *Watcher) Add(path string, fn func()) (*Watch, error) {
	h := &Watch{w: w, path: path, fn: fn, wd: silent}
	if err := h.Arm(); err != nil {
		return nil, err
	}
	return h, nil
}

// Arm calls the function at the next write from now on. It does nothing to a
// watch that is armed. The errors are those of Add; the watch is silent then.
func (h *Watch) Arm() error {
	w := h.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return fmt.Errorf("watch %s: %w", h.path, ErrClosed)
	}
	w.silence(h) // the path may name another file than last time
	// w.mu is held over the call: an event of the new descriptor must find it
	// in the table.
	var wd int
	err := w.control(func(fd int) (err error) {
		wd, err = unix.InotifyAddWatch(fd, h.path, unix.IN_MODIFY|unix.IN_DELETE_SELF|unix.IN_ONESHOT)
		return err
	})
	if err != nil {
		return fmt.Errorf("watch %s: %w", h.path, err)
	}
	h.wd = int32(wd)
	w.watches[h.wd] = append(w.watches[h.wd], h)
	return nil
}

// silence takes h out of the table and reports whether it was the last one of
// its descriptor. w.mu is held.
func (w *Watcher) silence(h *Watch) (last bool) {
	list := w.watches[h.wd]
	wd := h.wd
	h.wd = silent
	i := slices.Index(list, h)
	if i < 0 {
		return false
	}
	if list = slices.Delete(list, i, i+1); len(list) > 0 {
		w.watches[wd] = list
		return false
	}
	delete(w.watches, wd)
	return true
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
	wd := h.wd
	if !w.silence(h) || w.closed {
		return nil // not armed, or others wait for the same file
	}
	err := w.control(func(fd int) error {
		_, err := unix.InotifyRmWatch(fd, uint32(wd))
		return err
	})
	// EINVAL: it was the kernel's last word, and the reader has not come to it yet.
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

func (w *Watcher) run() {
	defer close(w.done)
	buf := make([]byte, 64<<10)
	for {
		n, err := w.f.Read(buf)
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
	if mask&unix.IN_Q_OVERFLOW != 0 {
		for _, list := range w.watches {
			called = append(called, list...)
		}
	} else {
		// IN_IGNORED is the kernel's last word on a descriptor, after what it had
		// to tell. Who is still armed then was so in the moment between the two,
		// when arming changes a watch that is about to end: it is called as well.
		called = w.watches[wd]
		delete(w.watches, wd)
	}
	for _, h := range called {
		h.wd = silent
	}
	if mask&unix.IN_Q_OVERFLOW != 0 {
		clear(w.watches)
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
