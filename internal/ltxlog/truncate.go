package ltxlog

import (
	"errors"
	"fmt"
)

// TruncateAfter drops the entries with Min > txid: the newest first, so that a crash or an error
// between two leaves a whole chain. The dropping is durable on return.
func (l *Log) TruncateAfter(txid uint64) error {
	l.change.Lock()
	defer l.change.Unlock()
	if err := l.ready(); err != nil {
		return fmt.Errorf("truncate transaction log after %016x: %w", txid, err)
	}
	l.sync.Lock()
	defer l.sync.Unlock()
	if err := l.truncateLocked(func(e Entry) bool { return e.Min > txid }); err != nil {
		return fmt.Errorf("truncate transaction log after %016x: %w", txid, err)
	}
	return nil
}

// truncateLocked drops entries from the newest back while drop says so. The caller holds change
// and sync.
func (l *Log) truncateLocked(drop func(Entry) bool) error {
	entries := l.Entries()
	keep := len(entries)
	for keep > 0 && drop(entries[keep-1]) {
		keep--
	}
	if keep == len(entries) {
		return nil
	}
	var head uint64
	if keep > 0 {
		head = entries[keep-1].Max
	}
	if err := l.forgetRecent(); err != nil {
		return err
	}
	if err := l.lowerMark(head); err != nil {
		return err
	}
	l.change.dropped = true
	for end := len(entries); end > keep; {
		begin := end - 1
		doAway := l.discard
		if p := l.placeOf(entries[begin]).pack; p != nil {
			for begin > keep && l.placeOf(entries[begin-1]).pack == p {
				begin--
			}
			doAway = func(gone []Entry) error { return l.discardPacked(entries[:begin], gone, p) }
		}
		if err := l.unlist(entries[:begin], entries[begin:end], doAway); err != nil {
			return errors.Join(err, l.cutBehind(entries[:end]))
		}
		end = begin
	}
	if err := l.cutBehind(entries[:keep]); err != nil {
		return err
	}
	return l.syncDropped()
}

// discard removes the file of an entry that was taken from the list. The caller holds sync.
//
// The file is not kept as a spare: an entry of the same name may come next, and a power
// cut could leave it with what is in the file now, which fits there.
func (l *Log) discard(gone []Entry) error {
	name := entryName(gone[0].Min, gone[0].Max)
	if err := l.remove(name); err != nil {
		return err // it stays listed, and suspect
	}
	delete(l.sync.suspect, name)
	return nil
}

// discardPacked removes the newest entries of a pack, which were taken from the list, from it, or all of it. The caller
// holds change and sync.
func (l *Log) discardPacked(rest, gone []Entry, p *pack) error {
	var err error
	if l.liveIn(p) == len(gone) {
		err = l.removePack(p)
	} else {
		last := rest[len(rest)-1]
		for i := len(rest) - 1; l.placeOf(last).pack != p; i-- {
			last = rest[i]
		}
		err = l.cutPack(last, l.placeOf(last))
	}
	if err != nil {
		return err
	}
	for _, e := range gone {
		l.leavePack(e, p)
	}
	return nil
}

// unlist makes rest the list and does away with the entries gone, which are at one end of the list
// now. When that fails the list is as before. The caller holds change and sync.
func (l *Log) unlist(rest, gone []Entry, doAway func([]Entry) error) error {
	l.mu.Lock()
	old := l.mu.entries
	l.mu.entries = rest
	l.mu.Unlock()
	if err := doAway(gone); err != nil {
		l.mu.Lock()
		l.mu.entries = old
		l.mu.Unlock()
		return err
	}
	return nil
}

// Begin drops all entries and begins the log at a position, with an entry that changes nothing: Min and
// Max are the position's, Pre is also its Post. It is for a database whose pages came another way. The
// log is durable on return.
func (l *Log) Begin(h Header) (Entry, error) {
	l.change.Lock()
	defer l.change.Unlock()
	if err := l.ready(); err != nil {
		return Entry{}, fmt.Errorf("begin transaction log at %016x: %w", h.Max, err)
	}
	if h.Min != h.Max || h.Min < 2 {
		return Entry{}, fmt.Errorf("begin transaction log at %016x to %016x, want one position after the first", h.Min, h.Max)
	}
	w := l.newWriter(appendTemp)
	defer w.discard()
	if err := encode(w, h, NoPages, h.Pre); err != nil {
		return Entry{}, err
	}
	e := h.entry(h.Pre, w.enc.n)
	if err := l.dropAll(); err != nil {
		return Entry{}, fmt.Errorf("begin transaction log at %016x: %w", h.Max, err)
	}
	if err := l.putFirst(e, w); err != nil {
		return Entry{}, fmt.Errorf("begin transaction log at %016x: %w", h.Max, err)
	}
	return e, nil
}

// putFirst makes an entry, durably, the first one of a log that has none. A copy of it would not make it durable: it comes
// back behind the entry that it follows alone. The caller holds change.
func (l *Log) putFirst(e Entry, w *writer) error {
	l.sync.Lock()
	defer l.sync.Unlock()
	if err := l.putDurable(e, w, false); err != nil {
		return err
	}
	l.keepLive(e, w)
	l.list(e, w.place)
	l.setDurable(e.Max)
	return nil
}
