package ltxlog

import (
	"errors"
	"fmt"
)

// copies is what a log knows of its copies in the file of recent entries. It is guarded by change.
type copies struct {
	// made: there may be copies of this log in the file.
	made bool
	// torn: the write of the next one failed, and it may be there all the same.
	torn bool
	// unpacked: the log has a file of its own with copies, which its last run left.
	unpacked bool
}

// mayCopy reports whether a copy would make the entry in w durable: it is not large, and everything before it
// is durable already.
func (l *Log) mayCopy(w *writer) bool {
	head, _ := l.Head()
	return w.temp == nil && l.Durable() >= head.Max && l.recent.ready(int(l.form.storedSize(int64(len(w.enc.buf)))))
}

// publishRecent adds an entry that its copy makes durable. The caller holds change and has checked that it joins
// and that mayCopy.
func (l *Log) publishRecent(e Entry, w *writer, confirm func() error) error {
	if err := w.put(e, false, false); err != nil {
		return err
	}
	l.change.copies.made, l.change.copies.torn = true, true
	err := l.copyToRecent(e, w, nil)
	if err == nil {
		err = confirm()
	}
	if err != nil {
		// At once, and not before the next append: a crash would find it.
		return errors.Join(err, l.clearTorn(), l.takeBack(e, w))
	}
	l.change.copies.torn = false
	l.keepLive(e, w)
	l.mu.Lock()
	l.mu.entries = append(l.mu.entries, e)
	l.listAt(e, w.place)
	l.mu.durable = e.Max
	l.mu.Unlock()
	return nil
}

// copyToRecent writes the copy of an entry that is in memory. ahead is called before it is durable, and if it
// will not be.
func (l *Log) copyToRecent(e Entry, w *writer, ahead func()) error {
	b, err := w.stored()
	if err != nil {
		if ahead != nil {
			ahead()
		}
		return err
	}
	return l.recent.add(l, e, b, ahead)
}

// clearTorn takes back the copy of an append that failed. The caller holds change, and not sync.
func (l *Log) clearTorn() error {
	if !l.change.copies.torn {
		return nil
	}
	l.sync.Lock()
	defer l.sync.Unlock()
	return l.forgetRecent()
}

// forgetRecent has no copy of this log count any more, durably, before entries at the newer end of the log are
// dropped: the next start would bring them back. What stays is made durable without it first. The caller holds
// change and sync.
func (l *Log) forgetRecent() error {
	c := &l.change.copies
	if !c.made && !c.unpacked {
		return nil
	}
	if err := l.syncLocked(); err != nil {
		return err
	}
	if c.made {
		if err := l.putForget(l.recent.newest() + 1); err != nil {
			return fmt.Errorf("forget copies of recent entries: %w", err)
		}
		l.recent.leave(l, true)
		c.made, c.torn = false, false
	}
	if c.unpacked {
		if err := l.remove(recentName); err != nil {
			return err
		}
		if err := l.fs.SyncDir(l.dir); err != nil {
			return err
		}
		c.unpacked = false
	}
	return nil
}
