package ltxlog

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Copy writes entries, which must adjoin each other, into dir, which is made, as a log of its own, and
// makes it durable. Their bytes are taken as they lie on the disk: whoever opens the copy verifies them, with
// the key of this log when it is encrypted.
// ErrNotFound: an entry is not in the log any more.
//
// Links to the files would be cheaper and wrong: the file of a retired entry is used again.
func (l *Log) Copy(dir string, entries []Entry) error {
	for i := 1; i < len(entries); i++ {
		if a, b := entries[i-1], entries[i]; a.Max+1 != b.Min || a.Post != b.Pre {
			return fmt.Errorf("copy log: %w: %s after %s", ErrMismatch, entryName(b.Min, b.Max), entryName(a.Min, a.Max))
		}
	}
	if err := l.fs.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("copy log: %w", err)
	}
	for _, e := range entries {
		if err := l.copyEntry(e, filepath.Join(dir, entryName(e.Min, e.Max))); err != nil {
			return fmt.Errorf("copy %s: %w", entryName(e.Min, e.Max), err)
		}
	}
	if err := l.fs.SyncDir(dir); err != nil {
		return fmt.Errorf("copy log: %w", err)
	}
	return nil
}

func (l *Log) copyEntry(e Entry, path string) (err error) {
	in, err := l.openListed(e)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := l.fs.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(out, in.stored)
	if err == nil && n < e.Size {
		err = corrupt("file ends at byte %d of %d", n, e.Size)
	}
	if err == nil {
		err = out.Sync()
	}
	return errors.Join(err, out.Close())
}
