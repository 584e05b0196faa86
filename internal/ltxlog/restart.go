package ltxlog

import (
	"fmt"
	"io"

	"github.com/superfly/ltx"
)

// Restart replaces the whole log by one entry that comes from a peer, as Import reads it, and that need
// not join what was there: its Pre is the checksum of files that the log did not describe. It is durable
// on return.
//
// The entry is verified completely before anything is dropped. When the dropping or the writing fails
// after that, what was dropped stays dropped, and a crash in between leaves a shorter log, or none. So
// this is for a node that can get its transactions from another one.
func (l *Log) Restart(r io.Reader, size int64) (Entry, error) {
	l.change.Lock()
	defer l.change.Unlock()
	if err := l.ready(); err != nil {
		return Entry{}, fmt.Errorf("restart transaction log: %w", err)
	}
	w := l.newWriter(appendTemp)
	defer w.discard()
	e, err := l.receive(w, r, size, func(ltx.Header) error { return nil })
	if err != nil {
		return Entry{}, fmt.Errorf("restart transaction log: %w", err)
	}
	if err := l.dropAll(); err != nil {
		return Entry{}, fmt.Errorf("restart transaction log: %w", err)
	}
	if err := l.putFirst(e, w); err != nil {
		return Entry{}, fmt.Errorf("restart transaction log with %s: %w", entryName(e.Min, e.Max), err)
	}
	return e, nil
}

// dropAll drops every entry, durably. The caller holds change.
func (l *Log) dropAll() error {
	l.sync.Lock()
	defer l.sync.Unlock()
	return l.truncateLocked(func(Entry) bool { return true })
}
