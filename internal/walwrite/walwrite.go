// Package walwrite reads the writes that SQLite makes to a write-ahead log, in their order, and says which of them would
// commit a transaction. It is pure: bytes in, a verdict out.
//
// SQLite writes a frame as its header, then its page (wal.c: walWriteOneFrame); either may come in two pieces, where a
// sync lies between (walWriteToLog). The frame that commits has the size of the database in its header. That frame is
// kept from the file until it is whole, and then handed out. Three other writes happen inside a transaction:
//
//   - a page alone, over that of a frame which is not committed yet (sqlite3WalFrames, after a spill of the cache);
//   - headers one after the other, with no page between them: checksums that are written again behind the commit frame
//     (walRewriteChecksums);
//   - copies of the commit frame behind it, up to the end of a sector (padding).
package walwrite

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/litefs/litefs/sqlitefile"
)

// Action is what is to be done with a write.
type Action int

const (
	// Pass lets the write into the file.
	Pass Action = iota
	// Keep keeps the write from the file; the writer is told that it was done.
	Keep
	// Flush keeps the write, and has Bytes written at Offset instead: a header that came in pieces and commits nothing.
	Flush
	// Commit keeps the write, which completes the commit frame: Bytes is all of it, for Offset.
	Commit
	// Restart is the header of a new life of the log; it passes.
	Restart
)

// Verdict is what a write is. Bytes is valid until the next Write.
type Verdict struct {
	Action Action
	Frame  uint32 // number of the frame, from 1; 0 for the header of the log
	Offset int64  // of the frame, in bytes
	Bytes  []byte // of the frame, for Flush and Commit
	// Lowest, of a Commit, is the lowest frame whose page was written since Mark, this one included.
	Lowest uint32
	// Again, of a Pass, says that the header of a commit frame that had passed was written anew: Bytes is it.
	Again bool
}

var (
	// ErrUnknown is a write in the middle of a transaction whose beginning was not seen.
	ErrUnknown = errors.New("a transaction whose beginning was not seen")
	// ErrForeign is a write that SQLite does not make.
	ErrForeign = errors.New("not a write of SQLite's")
)

// Log is what was seen of one log. The zero value knows nothing, not even the size of a page.
type Log struct {
	pageSize uint32

	// The frame that is being written: n bytes from its beginning have come. frame 0: none.
	frame uint32
	n     int
	buf   []byte

	last   uint32 // the last commit frame that was whole
	seen   bool   // a header of a frame was seen: the transaction under way began after that
	lowest uint32 // see Verdict.Lowest
}

// New returns a Log with pages of so many bytes; 0 for one that has no header yet.
func New(pageSize uint32) *Log { return &Log{pageSize: pageSize, lowest: math.MaxUint32} }

// Mark begins the count of Verdict.Lowest anew, after a commit frame was let into the file.
func (l *Log) Mark() { l.lowest = math.MaxUint32 }

// Write takes a write of data at off. An error refuses it.
func (l *Log) Write(off int64, data []byte) (Verdict, error) {
	if off == 0 {
		return l.restart(data)
	}
	if l.pageSize == 0 {
		return Verdict{}, fmt.Errorf("%d bytes at %d before any header: %w", len(data), off, ErrUnknown)
	}
	size := int64(sqlitefile.FrameHeaderSize) + int64(l.pageSize)
	rel := (off - sqlitefile.WALHeaderSize) % size
	if off < sqlitefile.WALHeaderSize || len(data) == 0 || rel+int64(len(data)) > size || rel < sqlitefile.FrameHeaderSize && rel+int64(len(data)) > sqlitefile.FrameHeaderSize {
		return Verdict{}, fmt.Errorf("%d bytes at %d, with frames of %d: %w", len(data), off, size, ErrForeign)
	}
	v := Verdict{Frame: uint32((off-sqlitefile.WALHeaderSize)/size) + 1, Offset: off - rel}
	switch {
	case rel == 0:
		return l.begin(v, data), nil
	case v.Frame == l.frame && int(rel) == l.n:
		return l.goOn(v, data, false), nil
	case rel >= sqlitefile.FrameHeaderSize && l.seen:
		l.frame = 0
		l.lowest = min(l.lowest, v.Frame)
		return v, nil // over a page of a frame that commits nothing: those that do are appended
	}
	return Verdict{}, fmt.Errorf("%d bytes at %d of frame %d: %w", len(data), rel, v.Frame, ErrUnknown)
}

func (l *Log) restart(data []byte) (Verdict, error) {
	h, err := sqlitefile.ParseWALHeader(data)
	if err != nil {
		return Verdict{}, fmt.Errorf("%d bytes at the beginning: %w: %w", len(data), ErrForeign, err)
	}
	if len(data) != sqlitefile.WALHeaderSize {
		return Verdict{}, fmt.Errorf("%d bytes at the beginning: %w", len(data), ErrForeign)
	}
	*l = Log{pageSize: h.PageSize, buf: l.buf, lowest: math.MaxUint32}
	return Verdict{Action: Restart}, nil
}

// begin takes the first bytes of a frame's header.
func (l *Log) begin(v Verdict, data []byte) Verdict {
	// A header right after one, and not behind the last commit: no page was written between them.
	rewrite := l.frame > 0 && v.Frame <= l.last && l.n == sqlitefile.FrameHeaderSize && v.Frame == l.frame+1
	l.frame, l.n, l.seen = v.Frame, 0, true
	if size := sqlitefile.FrameHeaderSize + int(l.pageSize); len(l.buf) != size {
		l.buf = make([]byte, size)
	}
	return l.goOn(v, data, rewrite)
}

// goOn takes the bytes of the frame at hand that follow those that are there.
func (l *Log) goOn(v Verdict, data []byte, rewrite bool) Verdict {
	before := l.n
	l.n += copy(l.buf[l.n:], data)
	if before < sqlitefile.FrameHeaderSize {
		switch {
		case l.n < sqlitefile.FrameHeaderSize:
			v.Action = Keep
		case l.commits() && rewrite:
			v.Again, v.Bytes = true, l.buf[:l.n]
		case l.commits():
			v.Action = Keep
		case before > 0:
			v.Action, v.Bytes = Flush, l.buf[:l.n]
		}
		return v
	}
	l.lowest = min(l.lowest, v.Frame)
	switch {
	case !l.commits():
	case l.n < len(l.buf):
		v.Action = Keep
	default:
		v.Action, v.Bytes, v.Lowest = Commit, l.buf, l.lowest
		l.frame, l.last = 0, v.Frame
	}
	return v
}

// commits reports whether the header at hand ends a transaction.
func (l *Log) commits() bool { return binary.BigEndian.Uint32(l.buf[4:]) != 0 }
