package peer

import (
	"errors"
	"fmt"
	"sync"

	"github.com/litefs/litefs/sqlitefile"
)

// ioChunk is how many bytes are read or written at a time where many are.
const ioChunk = 1 << 20

// Buffers are memory for frames and pages on their way to a file, which many Peers may share: a node has a Peer for each
// of its databases, and of those there are thousands.
type Buffers struct{ pool sync.Pool }

// idleBuf bounds each of them between two uses: enough for the small transactions that come often.
const idleBuf = 64 << 10

func (b *Buffers) take() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return (*p)[:0]
	}
	return nil
}

func (b *Buffers) put(buf []byte) {
	if cap(buf) > 0 && cap(buf) <= idleBuf {
		b.pool.Put(&buf)
	}
}

// walFile is the -wal.
type walFile struct {
	f   *file
	hdr sqlitefile.WALHeader // in force for the next frame
	// written says that hdr is what the file begins with. After a restart it
	// is not until the first frame comes, as in wal.c.
	written bool
	// trim says that the WAL restarted and the file may be larger than need be.
	trim bool
}

func (w *walFile) file() *file {
	if w == nil {
		return nil
	}
	return w.f
}

// putHeader writes the header. It is synced before any frame follows: after a
// power cut the old header could otherwise stand before new frames, and old
// frames that were not yet overwritten would be recovered over newer content
// (wal.c, walFrames, "Sync the header").
func (w *walFile) putHeader(sync bool) error {
	var b [sqlitefile.WALHeaderSize]byte
	w.hdr.Cksum = w.hdr.Encode(b[:])
	if _, err := w.f.WriteAt(b[:], 0); err != nil {
		return fmt.Errorf("write WAL header: %w", err)
	}
	if sync {
		if err := w.f.Sync(); err != nil {
			return fmt.Errorf("sync WAL header: %w", err)
		}
	}
	w.written = true
	return nil
}

// shrink cuts what a large WAL left behind the frames in force, once after a
// restart, when the first commit of the new WAL is written: before it, the old
// header still stands, and a part of the old frames must not look like the
// whole (wal.c, walLimitSize).
func (w *walFile) shrink(used, limit int64) error {
	if !w.trim {
		return nil
	}
	w.trim = false
	fi, err := w.f.Stat()
	if err != nil {
		return err
	}
	if fi.Size() <= 2*max(used, limit) {
		return nil // a file that is written over again costs less than one that grows
	}
	return w.f.Truncate(max(used, limit))
}

func (w *walFile) readPage(frame uint32, buf []byte) error {
	at := sqlitefile.FrameOffset(frame, w.hdr.PageSize) + sqlitefile.FrameHeaderSize
	if _, err := w.f.ReadAt(buf, at); err != nil {
		return fmt.Errorf("read frame %d of %s: %w", frame, w.f.Name(), err)
	}
	return nil
}

// walScan is what the checksum chain of a WAL proves.
type walScan struct {
	hdr       sqlitefile.WALHeader
	valid     bool     // there is a header
	pgnos     []uint32 // page of each frame up to the last commit, from frame 1
	pageCount uint32   // after the last commit
	cksum     sqlitefile.Cksum
}

func (s walScan) frames() uint32 { return uint32(len(s.pgnos)) }

// scanWAL follows the checksum chain from the header to the last commit, over
// at most limit frames. A WAL without a valid header has no frames.
func scanWAL(f *file, limit uint32) (walScan, error) {
	hdr, err := sqlitefile.ReadWALHeader(f)
	if errors.Is(err, sqlitefile.ErrNoWAL) {
		return walScan{}, nil
	}
	if err != nil {
		return walScan{}, err
	}
	s := walScan{hdr: hdr, valid: true}
	frameSize := int(sqlitefile.FrameSize(hdr.PageSize))
	buf := make([]byte, max(1, ioChunk/frameSize)*frameSize)
	var pgnos []uint32
	cksum := hdr.Cksum
	for next := uint32(1); next <= limit; {
		n, err := readAtMost(f, buf, sqlitefile.FrameOffset(next, hdr.PageSize))
		if err != nil {
			return walScan{}, fmt.Errorf("read WAL from frame %d: %w", next, err)
		}
		if n < frameSize {
			return s, nil
		}
		for b := buf[:n]; len(b) >= frameSize && next <= limit; b = b[frameSize:] {
			fr := sqlitefile.ParseFrame(b)
			if fr.Pgno == 0 || fr.Salt1 != hdr.Salt1 || fr.Salt2 != hdr.Salt2 {
				return s, nil
			}
			cksum = hdr.FrameCksum(cksum, b, b[sqlitefile.FrameHeaderSize:frameSize])
			if cksum != fr.Cksum {
				return s, nil
			}
			pgnos = append(pgnos, fr.Pgno)
			if fr.Commit != 0 {
				s.pgnos, s.pageCount, s.cksum = pgnos, fr.Commit, cksum
			}
			next++
		}
	}
	return s, nil
}

// appender writes the frames of one transaction after the last commit. Nothing
// of it is visible to anyone before the wal-index says so.
type appender struct {
	w     *walFile
	buf   []byte // whole frames not yet written
	at    int64  // where buf goes
	cksum sqlitefile.Cksum
	held  bool     // the last frame in buf waits for its header: it may be the commit
	pgnos []uint32 // page of each frame so far
}

func newAppender(w *walFile, last uint32, cksum sqlitefile.Cksum, buf []byte) *appender {
	return &appender{w: w, buf: buf[:0], at: sqlitefile.FrameOffset(last+1, w.hdr.PageSize), cksum: cksum}
}

func (a *appender) add(pgno uint32, page []byte) error {
	if err := a.seal(0); err != nil {
		return err
	}
	var header [sqlitefile.FrameHeaderSize]byte
	a.buf = append(append(a.buf, header[:]...), page...)
	a.pgnos = append(a.pgnos, pgno)
	a.held = true
	return nil
}

// seal completes the last frame, as the commit when pageCount is not 0.
func (a *appender) seal(pageCount uint32) error {
	if !a.held {
		return nil
	}
	a.held = false
	frame := a.buf[len(a.buf)-int(sqlitefile.FrameSize(a.w.hdr.PageSize)):]
	a.cksum = a.w.hdr.EncodeFrame(frame, a.cksum, a.pgnos[len(a.pgnos)-1], pageCount, frame[sqlitefile.FrameHeaderSize:])
	if len(a.buf) >= ioChunk || pageCount != 0 {
		return a.flush()
	}
	return nil
}

func (a *appender) flush() error {
	if _, err := a.w.f.WriteAt(a.buf, a.at); err != nil {
		return fmt.Errorf("write frames to %s: %w", a.w.f.Name(), err)
	}
	a.at += int64(len(a.buf))
	a.buf = a.buf[:0]
	return nil
}
