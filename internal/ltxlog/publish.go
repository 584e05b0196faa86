package ltxlog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/litefs/litefs/internal/vfs"
)

// writer collects the bytes of one new entry: in memory while they are few, else in a temporary
// file.
type writer struct {
	log      *Log
	enc      *encoder
	tempName string
	temp     vfs.File       // nil while everything is in enc.buf
	into     io.WriteCloser // what stores in temp
	complete bool           // everything is in temp
	bytes    []byte         // of stored
	place    place          // where put has put it
}

// Temporary names are constant: there is one append, one compaction and one sync at a time.
const (
	appendTemp  = "append" + tempSuffix
	compactTemp = "compact" + tempSuffix
	rewriteTemp = "rewrite" + tempSuffix
)

func (l *Log) newWriter(tempName string) *writer {
	return &writer{log: l, enc: l.buffers.encoder(), tempName: tempName}
}

// spill writes bytes to the temporary file, creating it first.
func (w *writer) spill(b []byte) error {
	if w.temp == nil {
		f, err := w.log.fs.OpenFile(w.log.path(w.tempName), os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		w.temp = f
		if w.into, err = w.log.form.writer(fullWriter{f}); err != nil {
			return err
		}
	}
	_, err := w.into.Write(b)
	return err
}

// stored returns an entry that is in memory as it is to lie on the disk: the same bytes each time.
func (w *writer) stored() (b []byte, err error) {
	if w.bytes == nil {
		w.bytes, err = w.log.form.store(w.enc)
	}
	return w.bytes, err
}

// finishTemp brings everything to the temporary file.
func (w *writer) finishTemp(sync bool) error {
	if err := w.spill(w.enc.buf); err != nil {
		return err
	}
	if err := w.into.Close(); err != nil {
		return err
	}
	if sync {
		if err := w.temp.Sync(); err != nil {
			return err
		}
	}
	w.complete = true
	return nil
}

// discard ends the use of w. A temporary file that was not renamed is removed. The caller holds
// change.
func (w *writer) discard() {
	if w.temp != nil {
		// Nothing of it was promised, so only the removal matters.
		if err := w.temp.Close(); err != nil {
			w.log.logger.Warn("close temporary log file", "dir", w.log.dir, "err", err)
		}
		w.temp = nil
		w.log.removeOrRemember(w.tempName)
	}
	w.log.buffers.putEncoder(w.enc)
	w.enc = nil
}

// put brings the bytes into a pack, or under the name of the entry. Small entries are written there directly:
// a rename would not make them safer, because the next Open verifies every entry that was not
// made durable, and removes a torn one; and it would cost a second commit of the file system's
// journal when the entry is synced. replace asks for the rename, for an entry that covers others:
// the next Open prefers it to them.
func (w *writer) put(e Entry, sync, replace bool) error {
	name := entryName(e.Min, e.Max)
	if w.temp == nil && !replace {
		b, err := w.stored()
		if err != nil {
			return err
		}
		if w.log.packs && len(b) <= maxPacked {
			w.place, err = w.log.putPacked(e, w.enc, b, sync)
			return err
		}
		return w.log.writeFile(name, b, sync)
	}
	if !w.complete {
		if err := w.finishTemp(sync); err != nil {
			return err
		}
	}
	f := w.temp
	w.temp = nil
	if err := f.Close(); err != nil {
		w.log.removeOrRemember(w.tempName)
		return err
	}
	if err := w.log.fs.Rename(w.log.path(w.tempName), w.log.path(name)); err != nil {
		w.log.removeOrRemember(w.tempName)
		return err
	}
	w.log.names.Store(true)
	return nil
}

// writeFile makes a file with content b, or none.
func (l *Log) writeFile(name string, b []byte, sync bool) error {
	f, err := l.createFile(name)
	if err != nil {
		return err
	}
	err = writeAll(f, b)
	if err == nil && f.used {
		err = f.Truncate(int64(len(b)))
	}
	if err == nil && sync {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err != nil {
		l.removeOrRemember(name)
		err = errors.Join(err, l.syncDropped())
	}
	return err
}

// fileToFill is the file of a new entry.
type fileToFill struct {
	vfs.File
	used bool // it may be longer than the entry
}

// fullWriter is a file that takes everything, or tells how much it took.
type fullWriter struct{ vfs.File }

func (f fullWriter) Write(b []byte) (int, error) {
	if err := writeAll(f.File, b); err != nil {
		return 0, err
	}
	return len(b), nil
}

func writeAll(f vfs.File, b []byte) error {
	n, err := f.Write(b)
	if err == nil && n < len(b) {
		err = fmt.Errorf("write %s: %d bytes of %d", f.Name(), n, len(b))
	}
	return err
}

// publish makes the entry in w part of the log, if confirm agrees. The caller holds change and has
// checked that the entry joins.
func (l *Log) publish(e Entry, w *writer, sync bool, confirm func() error) error {
	if head, ok := l.Head(); ok && e.Min <= head.Max {
		if err := confirm(); err != nil { // what it replaces cannot be brought back
			return err
		}
		return l.publishReplacing(e, w)
	}
	if !sync {
		if err := w.put(e, false, false); err != nil {
			return err
		}
		l.keepLive(e, w)
		l.list(e, w.place)
		return nil
	}

	if l.mayCopy(w) {
		return l.publishRecent(e, w, confirm)
	}
	l.sync.Lock()
	defer l.sync.Unlock()
	if err := l.syncFiles(l.unsynced()); err != nil {
		return err
	}
	if err := l.putDurable(e, w, false); err != nil {
		return err
	}
	if err := confirm(); err != nil {
		return errors.Join(err, l.takeBack(e, w))
	}
	l.keepLive(e, w)
	l.list(e, w.place)
	l.setDurable(e.Max)
	return nil
}

// publishAhead makes the entry in w part of the log, tells, and makes it durable then. The caller holds change and has
// checked that the entry joins.
func (l *Log) publishAhead(e Entry, w *writer, listed func()) (added bool, err error) {
	copied := l.mayCopy(w)
	if err := w.put(e, false, false); err != nil {
		return false, err
	}
	l.keepLive(e, w)
	l.list(e, w.place)
	if !copied {
		listed()
		l.sync.Lock()
		defer l.sync.Unlock()
		return true, l.syncLocked()
	}
	l.change.copies.made = true
	if err := l.copyToRecent(e, w, listed); err != nil {
		return true, err
	}
	l.mu.Lock()
	l.mu.durable = max(l.mu.durable, e.Max)
	l.mu.Unlock()
	return true, nil
}

// publishReplacing adds a snapshot to a log that is not empty. What goes beyond the snapshot, or
// ends where it ends with another checksum, belongs to another history and is dropped first:
// found beside the snapshot after a crash it would be a broken chain. So is an entry of the same
// name, whose file could not be brought back. Then the snapshot is made durable, and then what it
// covers is removed.
func (l *Log) publishReplacing(e Entry, w *writer) error {
	l.sync.Lock()
	defer l.sync.Unlock()
	foreign := func(old Entry) bool {
		return old.Max > e.Max || (old.Max == e.Max && (old.Post != e.Post || old.Min == e.Min))
	}
	if err := l.truncateLocked(foreign); err != nil {
		return err
	}
	if err := l.putDurable(e, w, true); err != nil {
		return err
	}
	l.mu.Lock()
	covered := l.mu.entries
	l.mu.entries = []Entry{e}
	l.mu.synced, l.mu.durable = e.Max, e.Max
	l.mu.Unlock()
	l.writeMark()
	l.retireCovered(covered)
	return nil
}

// retireCovered removes the files of entries that a new entry covers. A failure is not one of the
// operation, which is complete without it.
func (l *Log) retireCovered(entries []Entry) {
	for _, e := range entries {
		if err := l.retire(e); err != nil {
			name := l.fileOf(e)
			if p := l.placeOf(e).pack; p != nil {
				l.leavePack(e, p)
			}
			l.removeOrRemember(name)
		}
	}
	if err := l.releaseSpares(); err != nil {
		l.logger.Warn("sync directory of transaction log", "dir", l.dir, "err", err)
	}
}

// putDurable is put followed by the sync of the directory; on an error nothing is there. The caller holds change and sync.
func (l *Log) putDurable(e Entry, w *writer, replace bool) error {
	if err := w.put(e, true, replace); err != nil {
		return err
	}
	if err := l.syncNames(); err != nil {
		if w.place.pack != nil {
			return errors.Join(err, l.takeBackPacked(w.place))
		}
		l.removeOrRemember(entryName(e.Min, e.Max))
		return errors.Join(err, l.syncDropped())
	}
	return nil
}

// syncNames makes the names of files that were made durable. The caller holds sync.
func (l *Log) syncNames() error {
	if !l.names.Swap(false) {
		return nil
	}
	if err := l.fs.SyncDir(l.dir); err != nil {
		l.names.Store(true)
		return err
	}
	return nil
}

// keepLive keeps the bytes of an entry that is about to be listed, if they are in memory.
func (l *Log) keepLive(e Entry, w *writer) {
	if !w.complete {
		l.live.keep(e, w.enc.buf)
	}
}

func (l *Log) list(e Entry, where place) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.entries = append(l.mu.entries, e)
	l.listAt(e, where)
}

// removeOrRemember removes a file that is not in the list; when that fails, the next change of
// the log tries again before it does anything else.
func (l *Log) removeOrRemember(name string) {
	if err := l.remove(name); err != nil {
		l.logger.Warn("remove file from transaction log, will be tried again", "path", l.path(name), "err", err)
		l.change.debris = append(l.change.debris, name)
	}
}

// remove removes a file; one that does not exist is no error.
func (l *Log) remove(name string) error {
	err := l.fs.Remove(l.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// takeBack removes, durably, an entry that is not to be in the list, though a crash may find it on disk whole.
func (l *Log) takeBack(e Entry, w *writer) error {
	if w.place.pack != nil {
		return l.takeBackPacked(w.place)
	}
	l.removeOrRemember(entryName(e.Min, e.Max))
	return l.syncDropped()
}

// syncDropped makes the removal of files durable that must not be found again. When that fails, the next change of the log
// tries again before it does anything else.
func (l *Log) syncDropped() error {
	l.change.dropped = true
	if err := l.fs.SyncDir(l.dir); err != nil {
		return err
	}
	l.change.dropped = false
	return nil
}

// clearDebris is called without sync, which it may take.
func (l *Log) clearDebris() error {
	for len(l.change.debris) > 0 {
		last := len(l.change.debris) - 1
		if err := l.remove(l.change.debris[last]); err != nil {
			return fmt.Errorf("remove what an earlier failure left: %w", err)
		}
		l.change.debris = l.change.debris[:last]
		l.change.dropped = true
	}
	if err := l.clearCut(); err != nil {
		return fmt.Errorf("take back what an earlier failure left: %w", err)
	}
	if l.change.dropped {
		if err := l.syncDropped(); err != nil {
			return fmt.Errorf("make durable what an earlier failure left: %w", err)
		}
	}
	if err := l.clearTorn(); err != nil {
		return fmt.Errorf("take back what an earlier failure left: %w", err)
	}
	return nil
}
