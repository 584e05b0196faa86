package ltxlog

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/superfly/ltx"
)

// Import adds an entry whose size bytes come from a peer. The header is checked first, so an
// entry that does not fit costs 100 bytes (MismatchError); the rest is verified completely before
// the entry is listed (ErrCorrupt). r is read up to size bytes and no further.
//
// A snapshot (Min 1) replaces all entries. Entries that the log has beyond the snapshot, or that
// belong to another history, are dropped first; when the import fails after that, they stay dropped.
//
// With sync the entry and all before it are durable on return. On any error nothing is added.
func (l *Log) Import(r io.Reader, size int64, sync bool) (Entry, error) {
	l.change.Lock()
	defer l.change.Unlock()
	if err := l.ready(); err != nil {
		return Entry{}, fmt.Errorf("import entry: %w", err)
	}
	w := l.newWriter(appendTemp)
	defer w.discard()
	e, err := l.receive(w, r, size, func(h ltx.Header) error { return l.joins(uint64(h.MinTXID), uint64(h.PreApplyChecksum)) })
	if err != nil {
		return Entry{}, fmt.Errorf("import entry: %w", err)
	}
	if err := l.publish(e, w, sync, unconditionally); err != nil {
		return Entry{}, fmt.Errorf("import %s: %w", entryName(e.Min, e.Max), err)
	}
	return e, nil
}

// receive brings a verified entry into w, if joins lets its header pass.
func (l *Log) receive(w *writer, r io.Reader, size int64, joins func(ltx.Header) error) (Entry, error) {
	w.enc.buf = w.enc.buf[:0]
	if size < minEntrySize {
		return Entry{}, corrupt("entry has %d bytes, want at least %d", size, minEntrySize)
	}
	if size <= int64(l.spill) {
		w.enc.buf = grow(w.enc.buf, int(size))
		if _, err := io.ReadFull(r, w.enc.buf); err != nil {
			return Entry{}, announced(err, size)
		}
		return l.buffers.decode(bytes.NewReader(w.enc.buf), size, joins, nil)
	}

	out := bufio.NewWriterSize(spiller{w}, l.spill)
	e, err := l.buffers.decode(io.TeeReader(io.LimitReader(r, size), out), size, joins, nil)
	if err != nil {
		return Entry{}, err
	}
	return e, out.Flush()
}

// spiller writes to the temporary file of a writer.
type spiller struct{ w *writer }

func (s spiller) Write(b []byte) (int, error) {
	if err := s.w.spill(b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// announced tells a peer that sent less than it said from a failing connection.
func announced(err error, size int64) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return corrupt("entry ends before the %d bytes announced", size)
	}
	return err
}
