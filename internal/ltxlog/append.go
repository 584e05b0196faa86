package ltxlog

import (
	"fmt"
)

// Append encodes one entry and adds it. It must follow the head (Min is Head.Max+1 and Pre is
// Head.Post), or be a snapshot (Min 1, Pre 0, every page), which replaces everything before it.
// post is the rolling checksum of the database after it. pages is called once.
//
// With sync the entry and all before it are durable on return. On any error nothing is added.
func (l *Log) Append(h Header, pages Pages, post uint64, sync bool) (Entry, error) {
	return l.append(h, pages, post, sync, unconditionally)
}

func unconditionally() error { return nil }

// AppendConfirmed is Append with sync that asks confirm once the entry is on disk and before it
// counts. An error of confirm adds nothing, as any other. confirm must not use the log.
//
// A crash meanwhile may find the entry in the log all the same: what confirm waits for must be
// something that the caller can find out about afterwards.
func (l *Log) AppendConfirmed(h Header, pages Pages, post uint64, confirm func() error) (Entry, error) {
	return l.append(h, pages, post, true, confirm)
}

// AppendAhead is Append with sync that lists the entry, and then calls listed, before the entry is durable: readers have
// it while the disk is at it. added says whether the entry is in the log, where it stays; with an error beside it, it is
// not known to be durable. A snapshot is not added this way. listed must not change the log.
func (l *Log) AppendAhead(h Header, pages Pages, post uint64, listed func()) (e Entry, added bool, err error) {
	if h.Min == 1 {
		return Entry{}, false, fmt.Errorf("append %s: a snapshot is durable before it counts", entryName(h.Min, h.Max))
	}
	e, err = l.appendWith(h, pages, post, func(e Entry, w *writer) (err error) {
		added, err = l.publishAhead(e, w, listed)
		return err
	})
	return e, added, err
}

func (l *Log) append(h Header, pages Pages, post uint64, sync bool, confirm func() error) (Entry, error) {
	return l.appendWith(h, pages, post, func(e Entry, w *writer) error { return l.publish(e, w, sync, confirm) })
}

// appendWith encodes an entry that joins and has publish make it part of the log.
func (l *Log) appendWith(h Header, pages Pages, post uint64, publish func(Entry, *writer) error) (Entry, error) {
	l.change.Lock()
	defer l.change.Unlock()
	if err := l.ready(); err != nil {
		return Entry{}, fmt.Errorf("append %s: %w", entryName(h.Min, h.Max), err)
	}
	if err := l.joins(h.Min, h.Pre); err != nil {
		return Entry{}, fmt.Errorf("append %s: %w", entryName(h.Min, h.Max), err)
	}

	w := l.newWriter(appendTemp)
	defer w.discard()
	if err := encode(w, h, pages, post); err != nil {
		return Entry{}, err
	}
	e := h.entry(post, w.enc.n)
	if err := publish(e, w); err != nil {
		return Entry{}, fmt.Errorf("append %s: %w", entryName(h.Min, h.Max), err)
	}
	return e, nil
}

// encode makes the bytes of one entry in w.
func encode(w *writer, h Header, pages Pages, post uint64) error {
	if err := w.enc.begin(h, w.log.spill, w.spill); err != nil {
		return err
	}
	if err := pages(w.enc.page); err != nil {
		return fmt.Errorf("pages of %s: %w", entryName(h.Min, h.Max), err)
	}
	return w.enc.end(post)
}

// ready says whether the list may be changed now.
func (l *Log) ready() error {
	if l.isClosed() {
		return ErrClosed
	}
	if l.readOnly {
		return ErrReadOnly
	}
	return l.clearDebris()
}

// joins says whether an entry that follows (minTXID-1, pre) may be added.
func (l *Log) joins(minTXID, pre uint64) error {
	if minTXID == 1 {
		return nil // a snapshot follows anything; its Pre is checked with its header
	}
	head, _ := l.Head()
	if head.Max+1 != minTXID || head.Post != pre {
		return &MismatchError{HaveTXID: head.Max, HavePost: head.Post, WantTXID: minTXID - 1, WantPost: pre}
	}
	return nil
}
