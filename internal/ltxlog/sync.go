package ltxlog

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/litefs/litefs/internal/vfs"
)

// Sync makes everything that was in the log when it was called durable.
func (l *Log) Sync() error {
	l.live.age()
	l.sync.Lock()
	defer l.sync.Unlock()
	if l.isClosed() {
		return fmt.Errorf("sync transaction log: %w", ErrClosed)
	}
	if l.readOnly {
		return fmt.Errorf("sync transaction log: %w", ErrReadOnly)
	}
	return l.syncLocked()
}

// MakeDurable is Sync, but what copies make durable is left to when their place is needed.
func (l *Log) MakeDurable() error {
	if head, ok := l.Head(); ok && l.Durable() >= head.Max {
		l.live.age()
		return nil
	}
	return l.Sync()
}

// syncLocked: the caller holds sync.
func (l *Log) syncLocked() error {
	entries := l.unsynced()
	if len(entries) == 0 {
		return nil
	}
	err := l.syncFiles(entries)
	if err == nil {
		err = l.syncNames()
	}
	if err != nil {
		return fmt.Errorf("sync transaction log: %w", err)
	}
	l.setDurable(entries[len(entries)-1].Max)
	return nil
}

func (l *Log) unsynced() []Entry {
	l.mu.RLock()
	defer l.mu.RUnlock()
	i := len(l.mu.entries)
	for i > 0 && l.mu.entries[i-1].Max > l.mu.synced {
		i--
	}
	return append([]Entry(nil), l.mu.entries[i:]...)
}

// syncFiles makes the content of entries durable, not their names. Writing starts in all files
// before the first is waited for, so that many small files share a few journal commits.
// The caller holds sync.
func (l *Log) syncFiles(entries []Entry) (err error) {
	files := make([]vfs.File, 0, min(len(entries), maxOpenAtSync))
	defer func() {
		for _, f := range files {
			err = errors.Join(err, f.Close())
		}
	}()
	for rest := l.filesOf(entries); len(rest) > 0; {
		group := rest[:min(len(rest), maxOpenAtSync)]
		rest = rest[len(group):]
		for _, u := range group {
			f, err := l.openForSync(u)
			if err != nil {
				return err
			}
			files = append(files, f)
		}
		for i, f := range files {
			if err := f.Sync(); err != nil {
				l.suspect(group[i].name)
				return err
			}
		}
		for len(files) > 0 {
			f := files[len(files)-1]
			files = files[:len(files)-1]
			if err := f.Close(); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxOpenAtSync bounds the descriptors of one sync.
const maxOpenAtSync = 64

// unsyncedFile is a file with entries that are to be synced.
type unsyncedFile struct {
	name    string
	entries []Entry
	pack    *pack // nil: the file of one entry
}

// filesOf returns the files in which entries lie. A pack that comes again comes twice.
func (l *Log) filesOf(entries []Entry) (files []unsyncedFile) {
	for i, e := range entries {
		p := l.placeOf(e).pack
		if n := len(files); p != nil && n > 0 && files[n-1].pack == p {
			files[n-1].entries = entries[i-len(files[n-1].entries) : i+1]
			continue
		}
		name := entryName(e.Min, e.Max)
		if p != nil {
			name = p.name
		}
		files = append(files, unsyncedFile{name: name, entries: entries[i : i+1], pack: p})
	}
	return files
}

func (l *Log) openForSync(u unsyncedFile) (vfs.File, error) {
	if err := l.rewriteSuspect(u); err != nil {
		return nil, err
	}
	f, err := l.fs.OpenFile(l.path(u.name), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := f.StartSync(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (l *Log) suspect(name string) {
	if l.sync.suspect == nil {
		l.sync.suspect = map[string]bool{}
	}
	l.sync.suspect[name] = true
}

// rewriteSuspect writes a file whose fsync failed again, from what the page cache still has.
func (l *Log) rewriteSuspect(u unsyncedFile) error {
	if u.pack != nil && u.pack.takeFailed() {
		l.suspect(u.name)
	}
	if !l.sync.suspect[u.name] {
		return nil
	}
	for _, e := range u.entries {
		if err := l.verify(e, l.placeOf(e)); err != nil {
			return fmt.Errorf("write %s again: %w", u.name, err)
		}
	}
	// The copy is on disk before it is in place: what it is a copy of may be durable, in a pack, or since the last run.
	var err error
	if u.pack != nil {
		err = l.replacePack(u.pack, wholeFile, true)
	} else if err = l.copyFile(u.name, rewriteTemp, wholeFile, true); err == nil {
		err = l.fs.Rename(l.path(rewriteTemp), l.path(u.name))
		l.names.Store(true)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s again: %w", u.name, err), l.remove(rewriteTemp))
	}
	if u.pack != nil {
		info, err := l.fs.Stat(l.path(u.name))
		if err != nil {
			return fmt.Errorf("write %s again: %w", u.name, err)
		}
		if info.Size() > l.placeOf(u.entries[len(u.entries)-1]).end() {
			return nil // an entry that was being added is in the copy, and was not verified: the next time
		}
	}
	delete(l.sync.suspect, u.name)
	return nil
}

const wholeFile = 1 << 62 // bytes, and more than any has

// copyFile copies the first n bytes of a file, or all that it has.
func (l *Log) copyFile(from, to string, n int64, sync bool) (err error) {
	src, err := l.fs.OpenFile(l.path(from), os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	dst, err := l.fs.OpenFile(l.path(to), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	_, err = io.Copy(struct{ io.Writer }{dst}, io.LimitReader(src, n))
	if err == nil && sync {
		err = dst.Sync()
	}
	return err
}

// synced returns the TXID up to which every entry is on disk under its name.
func (l *Log) synced() uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.mu.synced
}

func (l *Log) setDurable(txid uint64) {
	l.mu.Lock()
	l.mu.synced = max(l.mu.synced, txid)
	l.mu.durable = max(l.mu.durable, txid)
	l.mu.Unlock()
	l.writeMark()
}
