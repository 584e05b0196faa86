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
	if err := l.syncFiles(entries); err != nil {
		return fmt.Errorf("sync transaction log: %w", err)
	}
	if err := l.fs.SyncDir(l.dir); err != nil {
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
	for len(entries) > 0 {
		group := entries[:min(len(entries), maxOpenAtSync)]
		entries = entries[len(group):]
		for _, e := range group {
			f, err := l.openForSync(e)
			if err != nil {
				return err
			}
			files = append(files, f)
		}
		for i, f := range files {
			if err := f.Sync(); err != nil {
				l.suspect(group[i])
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

func (l *Log) openForSync(e Entry) (vfs.File, error) {
	if err := l.rewriteSuspect(e); err != nil {
		return nil, err
	}
	f, err := l.fs.OpenFile(l.entryPath(e), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := f.StartSync(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (l *Log) suspect(e Entry) {
	if l.sync.suspect == nil {
		l.sync.suspect = map[string]bool{}
	}
	l.sync.suspect[entryName(e.Min, e.Max)] = true
}

// rewriteSuspect writes an entry whose fsync failed again, from what the page cache still has.
func (l *Log) rewriteSuspect(e Entry) error {
	name := entryName(e.Min, e.Max)
	if !l.sync.suspect[name] {
		return nil
	}
	if err := l.verify(e); err != nil {
		return fmt.Errorf("write %s again: %w", name, err)
	}
	if err := l.copyFile(name, rewriteTemp); err != nil {
		return errors.Join(fmt.Errorf("write %s again: %w", name, err), l.remove(rewriteTemp))
	}
	if err := l.fs.Rename(l.path(rewriteTemp), l.path(name)); err != nil {
		return errors.Join(fmt.Errorf("write %s again: %w", name, err), l.remove(rewriteTemp))
	}
	delete(l.sync.suspect, name)
	return nil
}

func (l *Log) copyFile(from, to string) (err error) {
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
	_, err = io.Copy(struct{ io.Writer }{dst}, struct{ io.Reader }{src})
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
