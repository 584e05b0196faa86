// Package capture answers one question about a WAL: which pages did the
// transactions that ended since the last look change, and in which frames do
// they lie?
//
// It is pure: it reads a WAL through an io.ReaderAt and decides. It takes no
// lock, and writes nothing. That the frames it names stay in place until their
// pages were read is the caller's to see to: it answers the truncation of the
// database, without which no WAL restarts.
package capture

import (
	"errors"
	"fmt"
	"io"

	"github.com/litefs/litefs/sqlitefile"
)

var (
	// ErrRestarted says that the WAL's header is not the one that the position
	// or the limit was taken from, or that the WAL shrank meanwhile. Everything of the WAL's earlier life must
	// have been captured before; the next scan starts from the zero WALPos,
	// with a wal-index header that was read anew.
	ErrRestarted = errors.New("WAL was restarted")

	// ErrBroken says that frames which were captured, or which the wal-index
	// publishes, are not in the WAL as they must be. Something other than SQLite
	// changed the WAL: only a comparison of all pages tells what the database
	// holds.
	ErrBroken = errors.New("WAL does not hold what was committed")
)

// WALPos is a place in one life of a WAL, after a commit frame. The zero value
// is the place before the first frame of any WAL.
type WALPos struct {
	Salt1, Salt2 uint32           // of the WAL header: they name the WAL's life
	Frame        uint32           // last frame captured, from 1; 0: none
	Cksum        sqlitefile.Cksum // of that frame; without one, of the header
}

// ofHeader reports whether the position lies in the life of the WAL that h
// starts. The zero position lies in every one.
func (p WALPos) ofHeader(h sqlitefile.WALHeader) bool {
	return p == WALPos{} || p.Salt1 == h.Salt1 && p.Salt2 == h.Salt2
}

// Limit says which frames of a WAL are committed. The zero value says that
// nobody knows: then the checksum chain is followed as in a recovery.
type Limit struct {
	trusted      bool
	maxFrame     uint32
	salt1, salt2 uint32
	cksum        sqlitefile.Cksum
	pageSize     uint32
}

// Published is the limit that a wal-index header sets: all frames up to its
// MaxFrame belong to committed transactions, none after it counts. The header
// must be that of a wal-index which connections use now. One that a crash of the
// machine left behind says nothing about the WAL.
func Published(h sqlitefile.IndexHeader) Limit {
	return Limit{
		trusted: true, maxFrame: h.MaxFrame, salt1: h.Salt1, salt2: h.Salt2,
		cksum: h.FrameCksum, pageSize: h.PageSize,
	}
}

// Known reports whether the limit is one that a wal-index sets.
func (l Limit) Known() bool { return l.trusted }

// Covers reports whether a known limit publishes the frame at pos.
func (l Limit) Covers(pos WALPos) bool {
	return l.trusted && l.maxFrame >= pos.Frame && l.salt1 == pos.Salt1 && l.salt2 == pos.Salt2
}

// EndsAt reports whether a known limit publishes the frame at pos, and none behind it: a scan from there finds nothing.
func (l Limit) EndsAt(pos WALPos) bool {
	return l.Covers(pos) && pos.Frame > 0 && l.maxFrame == pos.Frame && l.cksum == pos.Cksum
}

// PageFrame names the frame that holds the content of a page.
type PageFrame struct {
	Pgno, Frame uint32
}

// Batch is what a run of committed transactions changed. It never holds part of
// a transaction, nor anything of one that was rolled back.
type Batch struct {
	From, To  WALPos      // To is where the next scan starts; equal to From without a commit
	Commits   uint64      // commit frames; see Scan on padding
	PageSize  uint32      // bytes; 0 without a commit
	PageCount uint32      // size of the database in pages after the last commit
	Pages     []PageFrame // ascending by page, one entry a page, Pgno <= PageCount, no lock page
}

// WALRange returns the bytes of the WAL that the batch covers, as the offset of
// its first frame and the size of all of them.
func (b Batch) WALRange() (offset, size int64) {
	if b.Commits == 0 {
		return 0, 0
	}
	offset = sqlitefile.FrameOffset(b.From.Frame+1, b.PageSize)
	return offset, sqlitefile.FrameOffset(b.To.Frame+1, b.PageSize) - offset
}

// Scan returns what the transactions changed that were committed after from.
//
// With a published limit it reads frame headers alone, checks that all are of
// the WAL's present life, and that the last one is the commit frame which the
// wal-index names; walSize is not used, so it may be out of date. Without a
// limit it reads whole frames of the first walSize bytes and follows the
// checksum chain; the last valid commit ends the batch. That costs the length
// of an unfinished transaction each time: its frames may be rewritten in place
// until the commit, so nothing of them can be remembered.
//
// A WAL with no valid header and a WAL with no new commit give a batch without
// commits. ErrRestarted and ErrBroken are described at their definitions; a
// failed read is returned as it is.
//
// Commits counts commit frames. Where a connection gave up powersafe overwrite,
// SQLite pads a commit to a sector with copies of its commit frame. These count
// too: their headers do not tell them from commits, and repeating a page does
// no harm.
func Scan(wal io.ReaderAt, walSize int64, from WALPos, limit Limit) (Batch, error) {
	if limit.trusted && limit.maxFrame == 0 {
		// The wal-index is restarted before the header of the file is written,
		// and a truncated WAL has none.
		return empty(from), nil
	}
	h, err := sqlitefile.ReadWALHeader(wal)
	switch {
	case errors.Is(err, sqlitefile.ErrNoWAL) && limit.trusted:
		return Batch{}, fmt.Errorf("%w: %d frames are published: %w", ErrBroken, limit.maxFrame, err)
	case errors.Is(err, sqlitefile.ErrNoWAL):
		return empty(from), nil
	case err != nil:
		return Batch{}, err
	case !from.ofHeader(h):
		return Batch{}, fmt.Errorf("%w: header has salts %08x-%08x, position %08x-%08x", ErrRestarted, h.Salt1, h.Salt2, from.Salt1, from.Salt2)
	}
	if err := checkFrom(wal, h, from); err != nil {
		return Batch{}, err
	}
	if limit.trusted {
		return scanPublished(wal, h, from, limit)
	}
	return scanChain(wal, walSize, h, from)
}

// ScanUnpublished returns what the transaction changes whose commit frame is upto and which nobody has published: all
// frames after from are its own. SQLite writes frames behind one that it has overwritten with zeros for salts and
// checksum, and the real ones last of all (walEncodeFrame, walRewriteChecksums): so neither is looked at, and the
// checksum in To may be zero.
func ScanUnpublished(wal io.ReaderAt, from WALPos, upto uint32) (Batch, error) {
	h, err := sqlitefile.ReadWALHeader(wal)
	if err != nil {
		return Batch{}, err
	}
	if !from.ofHeader(h) {
		from = WALPos{} // the log began anew: what it held before is captured
	}
	if upto <= from.Frame {
		return Batch{}, fmt.Errorf("%w: frame %d commits, frame %d was captured", ErrBroken, upto, from.Frame)
	}
	var c collector
	var last sqlitefile.Frame
	err = eachHeader(wal, h.PageSize, from.Frame+1, upto, func(frame uint32, b []byte) error {
		last = sqlitefile.ParseFrame(b)
		fresh := last.Salt1 == h.Salt1 && last.Salt2 == h.Salt2
		later := last.Salt1 == 0 && last.Salt2 == 0 && last.Cksum == sqlitefile.Cksum{}
		if !fresh && !later || last.Pgno == 0 {
			return fmt.Errorf("%w: frame %d of %d: page %d, salts %08x-%08x, want %08x-%08x", ErrBroken, frame, upto, last.Pgno, last.Salt1, last.Salt2, h.Salt1, h.Salt2)
		}
		c.add(frame, last)
		return nil
	})
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: it ends before frame %d: %w", ErrBroken, upto, err)
	}
	if err == nil && last.Commit == 0 {
		err = fmt.Errorf("%w: frame %d is no commit", ErrBroken, upto)
	}
	if err != nil {
		return Batch{}, err
	}
	return c.batch(h, from), nil
}

// At returns the position after a frame that is known to end a transaction, and
// whose life of the WAL is the present one. Frame 0 is the start of that life.
func At(wal io.ReaderAt, frame uint32) (WALPos, error) {
	h, err := sqlitefile.ReadWALHeader(wal)
	if err != nil {
		return WALPos{}, err
	}
	pos := WALPos{Salt1: h.Salt1, Salt2: h.Salt2, Frame: frame, Cksum: h.Cksum}
	if frame == 0 {
		return pos, nil
	}
	f, err := readFrame(wal, frame, h.PageSize)
	if err != nil {
		return WALPos{}, err
	}
	if f.Salt1 != h.Salt1 || f.Salt2 != h.Salt2 || f.Commit == 0 {
		return WALPos{}, fmt.Errorf("%w: frame %d is no commit of this life of the WAL", ErrBroken, frame)
	}
	pos.Cksum = f.Cksum
	return pos, nil
}

// ReadPage reads the page that a frame holds into buf, which has the size of a
// page. ErrBroken means that the WAL ends before: Scan looks at no page of
// published frames.
func ReadPage(wal io.ReaderAt, frame, pageSize uint32, buf []byte) error {
	if uint32(len(buf)) != pageSize {
		return fmt.Errorf("read page of frame %d: buffer of %d bytes, want %d", frame, len(buf), pageSize)
	}
	off := sqlitefile.FrameOffset(frame, pageSize) + sqlitefile.FrameHeaderSize
	n, err := wal.ReadAt(buf, off)
	switch {
	case n == len(buf):
		return nil
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%w: it ends in the page of frame %d", ErrBroken, frame)
	default:
		return fmt.Errorf("read page of frame %d: %w", frame, err)
	}
}

func empty(from WALPos) Batch { return Batch{From: from, To: from} }

// checkFrom verifies that the last captured frame is still the one it was. SQLite
// never rewrites a committed frame before a restart.
func checkFrom(wal io.ReaderAt, h sqlitefile.WALHeader, from WALPos) error {
	if from.Frame == 0 {
		return nil
	}
	f, err := readFrame(wal, from.Frame, h.PageSize)
	if err != nil {
		return err
	}
	if f.Salt1 != h.Salt1 || f.Salt2 != h.Salt2 || f.Cksum != from.Cksum {
		return fmt.Errorf("%w: captured frame %d has checksum %08x, had %08x", ErrBroken, from.Frame, f.Cksum, from.Cksum)
	}
	return nil
}

// readFrame reads the header of a frame that must be there.
func readFrame(wal io.ReaderAt, frame, pageSize uint32) (sqlitefile.Frame, error) {
	var b [sqlitefile.FrameHeaderSize]byte
	n, err := wal.ReadAt(b[:], sqlitefile.FrameOffset(frame, pageSize))
	if n == len(b) {
		return sqlitefile.ParseFrame(b[:]), nil
	}
	if errors.Is(err, io.EOF) {
		return sqlitefile.Frame{}, fmt.Errorf("%w: it ends before frame %d", ErrBroken, frame)
	}
	return sqlitefile.Frame{}, fmt.Errorf("read header of frame %d: %w", frame, err)
}

// scanPublished collects the frames up to the limit, all of them committed.
func scanPublished(wal io.ReaderAt, h sqlitefile.WALHeader, from WALPos, limit Limit) (Batch, error) {
	switch {
	case limit.salt1 != h.Salt1 || limit.salt2 != h.Salt2:
		return Batch{}, fmt.Errorf("%w: header has salts %08x-%08x, wal-index %08x-%08x", ErrRestarted, h.Salt1, h.Salt2, limit.salt1, limit.salt2)
	case limit.pageSize != h.PageSize:
		return Batch{}, fmt.Errorf("%w: page size %d, wal-index says %d", ErrBroken, h.PageSize, limit.pageSize)
	case limit.maxFrame < from.Frame:
		return Batch{}, fmt.Errorf("%w: frame %d was captured, wal-index ends at %d", ErrBroken, from.Frame, limit.maxFrame)
	case limit.maxFrame == from.Frame && limit.cksum != from.Cksum:
		return Batch{}, fmt.Errorf("%w: captured frame %d had checksum %08x, wal-index says %08x", ErrBroken, from.Frame, from.Cksum, limit.cksum)
	case limit.maxFrame == from.Frame:
		return empty(from), nil
	}
	var c collector
	var last sqlitefile.Frame
	err := eachHeader(wal, h.PageSize, from.Frame+1, limit.maxFrame, func(frame uint32, b []byte) error {
		last = sqlitefile.ParseFrame(b)
		if last.Salt1 != h.Salt1 || last.Salt2 != h.Salt2 || last.Pgno == 0 {
			return fmt.Errorf("%w: published frame %d of %d: page %d, salts %08x-%08x, want %08x-%08x",
				ErrBroken, frame, limit.maxFrame, last.Pgno, last.Salt1, last.Salt2, h.Salt1, h.Salt2)
		}
		c.add(frame, last)
		return nil
	})
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return Batch{}, fmt.Errorf("%w: wal-index ends at frame %d: %w", ErrBroken, limit.maxFrame, err)
	}
	if err != nil {
		return Batch{}, err
	}
	if last.Commit == 0 || last.Cksum != limit.cksum {
		return Batch{}, fmt.Errorf("%w: last published frame %d: commit size %d, checksum %08x, wal-index says %08x",
			ErrBroken, limit.maxFrame, last.Commit, last.Cksum, limit.cksum)
	}
	return c.batch(h, from), nil
}

// scanChain collects frames as long as the checksum chain holds.
func scanChain(wal io.ReaderAt, walSize int64, h sqlitefile.WALHeader, from WALPos) (Batch, error) {
	cksum := from.Cksum
	if from.Frame == 0 {
		cksum = h.Cksum
	}
	var c collector
	last := sqlitefile.FrameCount(walSize, h.PageSize)
	err := eachFrame(wal, h.PageSize, from.Frame+1, last, func(frame uint32, b []byte) error {
		f := sqlitefile.ParseFrame(b)
		if f.Salt1 != h.Salt1 || f.Salt2 != h.Salt2 || f.Pgno == 0 {
			return errEnd
		}
		cksum = h.FrameCksum(cksum, b, b[sqlitefile.FrameHeaderSize:])
		if cksum != f.Cksum {
			return errEnd
		}
		c.add(frame, f)
		return nil
	})
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return Batch{}, fmt.Errorf("%w: it shrank under the scan: %w", ErrRestarted, err)
	}
	if err != nil && !errors.Is(err, errEnd) {
		return Batch{}, err
	}
	return c.batch(h, from), nil
}
