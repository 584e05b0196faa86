package ltxlog

import (
	"fmt"
	"os"
)

// Files of entries that go are not removed but kept under a temporary name for entries to come.
// ext4 refuses to reuse the inode of a file for a minute or more after its removal, and looks at
// every such inode of the group again at each creation: measured, a log that removes as many small
// files as it creates pays 0.7 ms for each instead of 0.03.
const (
	maxSpares    = 256      // per log
	maxSpareSize = 64 << 10 // bytes; larger files are removed
)

func spareName(n uint64) string { return fmt.Sprintf("spare-%d%s", n, tempSuffix) }

// retire removes the file of an entry that was taken from the list. A file that somebody reads is
// not reused, so that what they read does not change. Retired files may be reused only after
// releaseSpares.
func (l *Log) retire(e Entry) error {
	if p := l.placeOf(e).pack; p != nil {
		return l.retirePacked(e, p)
	}
	name := entryName(e.Min, e.Max)
	delete(l.sync.suspect, name)
	pool := &l.change.spares
	if e.Size > maxSpareSize || len(pool.ready)+len(pool.fresh) >= maxSpares || l.beingRead(name) {
		return l.remove(name)
	}
	pool.next++
	spare := spareName(pool.next)
	if err := l.fs.Rename(l.path(name), l.path(spare)); err != nil {
		return err
	}
	pool.fresh = append(pool.fresh, spare)
	return nil
}

// releaseSpares makes the removal of what was retired durable. Before that a file must not be
// written: after a power cut it could be found under its old name with its new content.
func (l *Log) releaseSpares() error {
	if err := l.fs.SyncDir(l.dir); err != nil {
		return err
	}
	pool := &l.change.spares
	pool.ready = append(pool.ready, pool.fresh...)
	pool.fresh = pool.fresh[:0]
	return nil
}

// createFile opens a file under the name of a new entry: a spare one, which has old content, or an
// empty one.
func (l *Log) createFile(name string) (f fileToFill, err error) {
	defer l.names.Store(true) // and not before the name is there: a Sync meanwhile would take the note away
	pool := &l.change.spares
	if len(pool.ready) == 0 {
		f.File, err = l.fs.OpenFile(l.path(name), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		return f, err
	}
	spare := pool.ready[len(pool.ready)-1]
	pool.ready = pool.ready[:len(pool.ready)-1]
	if err := l.fs.Rename(l.path(spare), l.path(name)); err != nil {
		l.removeOrRemember(spare)
		return f, err
	}
	f.used = true
	if f.File, err = l.fs.OpenFile(l.path(name), os.O_WRONLY, 0); err != nil {
		l.removeOrRemember(name)
	}
	return f, err
}
