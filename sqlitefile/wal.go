package sqlitefile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Sizes in bytes (fileformat2.html 4.1). A WAL is a header and then frames; a
// frame is a header and then one page.
const (
	WALHeaderSize   = 32
	FrameHeaderSize = 24
)

const (
	walMagic = 0x377f0682 // bit 0 set: checksum words are big-endian

	// WALVersion is the only version of the WAL and the wal-index.
	WALVersion = 3007000
)

// ErrNoWAL is returned for bytes that are no valid WAL header. SQLite treats
// such a file as a WAL without frames: an empty file, one that a checkpoint
// truncated, one whose first header was torn by a power cut.
var ErrNoWAL = errors.New("no valid WAL header")

// WALHeader is the header of a WAL. The salts change at each restart, which is
// how frames of the WAL's earlier life are told from those of the present.
type WALHeader struct {
	BigEndian bool   // byte order of the words that checksums are summed in
	Version   uint32 // WALVersion
	PageSize  uint32 // bytes
	Seq       uint32 // number of checkpoints that restarted this file
	Salt1     uint32 // grows by one at each restart
	Salt2     uint32 // random at each restart
	Cksum     Cksum  // of the first 24 bytes; the chain of frames starts from it
}

// ParseWALHeader decodes the first WALHeaderSize bytes of a WAL, and verifies
// magic number, version, page size and checksum. Whatever is wrong is ErrNoWAL.
func ParseWALHeader(b []byte) (WALHeader, error) {
	if len(b) < WALHeaderSize {
		return WALHeader{}, fmt.Errorf("%w: %d bytes, a header has %d", ErrNoWAL, len(b), WALHeaderSize)
	}
	magic := binary.BigEndian.Uint32(b)
	h := WALHeader{
		BigEndian: magic&1 == 1,
		Version:   binary.BigEndian.Uint32(b[4:]),
		PageSize:  binary.BigEndian.Uint32(b[8:]),
		Seq:       binary.BigEndian.Uint32(b[12:]),
		Salt1:     binary.BigEndian.Uint32(b[16:]),
		Salt2:     binary.BigEndian.Uint32(b[20:]),
		Cksum:     parseCksum(b[24:]),
	}
	switch want := (Cksum{}).add(h.BigEndian, b[:24]); {
	case magic&^1 != walMagic:
		return WALHeader{}, fmt.Errorf("%w: magic number %#x", ErrNoWAL, magic)
	case h.Version != WALVersion:
		return WALHeader{}, fmt.Errorf("%w: version %d, want %d", ErrNoWAL, h.Version, WALVersion)
	case !ValidPageSize(h.PageSize):
		return WALHeader{}, fmt.Errorf("%w: page size %d, want a power of two from 512 to 65536", ErrNoWAL, h.PageSize)
	case h.Cksum != want:
		return WALHeader{}, fmt.Errorf("%w: checksum %08x, want %08x", ErrNoWAL, h.Cksum, want)
	}
	return h, nil
}

// ReadWALHeader reads and decodes the header of a WAL. A file too short for one
// is ErrNoWAL.
func ReadWALHeader(wal io.ReaderAt) (WALHeader, error) {
	var b [WALHeaderSize]byte
	n, err := wal.ReadAt(b[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return WALHeader{}, fmt.Errorf("read WAL header: %w", err)
	}
	return ParseWALHeader(b[:n])
}

// Encode fills the first WALHeaderSize bytes of b and computes their checksum;
// h.Cksum is ignored. The chain of frames continues from the result.
func (h WALHeader) Encode(b []byte) Cksum {
	magic := uint32(walMagic)
	if h.BigEndian {
		magic |= 1
	}
	binary.BigEndian.PutUint32(b, magic)
	binary.BigEndian.PutUint32(b[4:], h.Version)
	binary.BigEndian.PutUint32(b[8:], h.PageSize)
	binary.BigEndian.PutUint32(b[12:], h.Seq)
	binary.BigEndian.PutUint32(b[16:], h.Salt1)
	binary.BigEndian.PutUint32(b[20:], h.Salt2)
	c := Cksum{}.add(h.BigEndian, b[:24])
	c.put(b[24:WALHeaderSize])
	return c
}

// Frame is a frame's header.
type Frame struct {
	Pgno   uint32 // never 0 in a valid frame
	Commit uint32 // size of the database in pages after the commit; 0 in the middle of a transaction
	Salt1  uint32 // the WAL header's, else the frame is left over from before a restart
	Salt2  uint32
	Cksum  Cksum // of everything up to and with this frame's page; see FrameCksum
}

// ParseFrame decodes the first FrameHeaderSize bytes of a frame. Any bytes are a
// frame header; whether it counts is told by its salts and its checksum.
func ParseFrame(b []byte) Frame {
	_ = b[FrameHeaderSize-1]
	return Frame{
		Pgno:   binary.BigEndian.Uint32(b),
		Commit: binary.BigEndian.Uint32(b[4:]),
		Salt1:  binary.BigEndian.Uint32(b[8:]),
		Salt2:  binary.BigEndian.Uint32(b[12:]),
		Cksum:  parseCksum(b[16:]),
	}
}

// Encode fills the first FrameHeaderSize bytes of b. f.Cksum is written as it
// is: it depends on the first 8 bytes, so encode once, call FrameCksum on b[:8],
// and encode again (or use WALHeader.EncodeFrame).
func (f Frame) Encode(b []byte) {
	_ = b[FrameHeaderSize-1]
	binary.BigEndian.PutUint32(b, f.Pgno)
	binary.BigEndian.PutUint32(b[4:], f.Commit)
	binary.BigEndian.PutUint32(b[8:], f.Salt1)
	binary.BigEndian.PutUint32(b[12:], f.Salt2)
	f.Cksum.put(b[16:FrameHeaderSize])
}

// FrameCksum returns the checksum of the frame that follows one whose checksum
// is prev; for frame 1 prev is h.Cksum. It covers the first 8 bytes of the frame
// header (page number and commit size) and the page.
func (h WALHeader) FrameCksum(prev Cksum, frameHeader8, page []byte) Cksum {
	return prev.add(h.BigEndian, frameHeader8[:8]).add(h.BigEndian, page)
}

// EncodeFrame fills the first FrameHeaderSize bytes of b with the header of the
// frame that follows one with checksum prev, and returns its checksum.
func (h WALHeader) EncodeFrame(b []byte, prev Cksum, pgno, commit uint32, page []byte) Cksum {
	f := Frame{Pgno: pgno, Commit: commit, Salt1: h.Salt1, Salt2: h.Salt2}
	f.Encode(b)
	f.Cksum = h.FrameCksum(prev, b, page)
	f.Cksum.put(b[16:FrameHeaderSize])
	return f.Cksum
}

// FrameSize returns the size in bytes of a frame, header and page.
func FrameSize(pageSize uint32) int64 {
	return FrameHeaderSize + int64(pageSize)
}

// FrameOffset returns the byte offset of a frame in the WAL. Frames count from
// 1; FrameOffset(n+1) is the size of a WAL that ends with frame n.
func FrameOffset(frame, pageSize uint32) int64 {
	return WALHeaderSize + (int64(frame)-1)*FrameSize(pageSize)
}

// FrameCount returns how many whole frames fit into a WAL of walSize bytes.
func FrameCount(walSize int64, pageSize uint32) uint32 {
	return clampPages((walSize - WALHeaderSize) / FrameSize(pageSize))
}
