package sqlitefile

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// HeaderSize is the size in bytes of the database header, the start of page 1
// (fileformat2.html 1.3).
const HeaderSize = 100

// PageCountOffset is where the database header keeps the size of the database
// in pages.
const PageCountOffset = 28

const headerMagic = "SQLite format 3\x00"

// minUsableSize is the least number of bytes that the reserved space at the end
// of each page may leave.
const minUsableSize = 480

// ErrNotDatabase is returned for bytes that do not start a SQLite database.
// Databases that an application encrypts as a whole look like this too.
var ErrNotDatabase = errors.New("not a SQLite database")

// Header is the part of the database header that replication reads.
type Header struct {
	PageSize        uint32 // bytes, 512 to 65536
	WriteVersion    byte   // 1 rollback journal, 2 WAL
	ReadVersion     byte   // 1 rollback journal, 2 WAL
	Reserved        byte   // unused bytes at the end of each page
	ChangeCounter   uint32 // raised by each transaction in rollback mode
	PageCount       uint32 // size of the database in pages; see Pages before using it
	SchemaCookie    uint32
	AutoVacuumRoot  uint32 // largest root page; not 0: auto_vacuum or incremental_vacuum
	UserVersion     uint32
	ApplicationID   uint32
	VersionValidFor uint32 // ChangeCounter when the last two fields were written
	SQLiteVersion   uint32 // library that wrote last, such as 3040001
}

// ParseHeader decodes the first HeaderSize bytes of a database. It accepts what
// SQLite would open for reading and returns ErrNotDatabase for the rest.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderSize {
		return Header{}, fmt.Errorf("%w: %d bytes, a header has %d", ErrNotDatabase, len(b), HeaderSize)
	}
	if string(b[:16]) != headerMagic {
		return Header{}, fmt.Errorf("%w: it does not start with %q", ErrNotDatabase, headerMagic[:15])
	}
	h := Header{
		PageSize:        decodePageSize16(binary.BigEndian.Uint16(b[16:])),
		WriteVersion:    b[18],
		ReadVersion:     b[19],
		Reserved:        b[20],
		ChangeCounter:   binary.BigEndian.Uint32(b[24:]),
		PageCount:       binary.BigEndian.Uint32(b[PageCountOffset:]),
		SchemaCookie:    binary.BigEndian.Uint32(b[40:]),
		AutoVacuumRoot:  binary.BigEndian.Uint32(b[52:]),
		UserVersion:     binary.BigEndian.Uint32(b[60:]),
		ApplicationID:   binary.BigEndian.Uint32(b[68:]),
		VersionValidFor: binary.BigEndian.Uint32(b[92:]),
		SQLiteVersion:   binary.BigEndian.Uint32(b[96:]),
	}
	switch {
	case !ValidPageSize(h.PageSize):
		return Header{}, fmt.Errorf("%w: page size %d, want a power of two from 512 to 65536", ErrNotDatabase, h.PageSize)
	case h.PageSize-uint32(h.Reserved) < minUsableSize:
		return Header{}, fmt.Errorf("%w: %d of %d bytes of a page reserved, %d must be left", ErrNotDatabase, h.Reserved, h.PageSize, minUsableSize)
	case h.ReadVersion > 2:
		return Header{}, fmt.Errorf("%w: read version %d, want 1 or 2", ErrNotDatabase, h.ReadVersion)
	case b[21] != 64 || b[22] != 32 || b[23] != 32:
		return Header{}, fmt.Errorf("%w: payload fractions %v, want [64 32 32]", ErrNotDatabase, b[21:24])
	}
	return h, nil
}

// IsWAL reports whether a connection that opens the database uses a WAL.
func (h Header) IsWAL() bool { return h.ReadVersion == 2 }

// Pages returns the size of the database in pages, for a file of fileSize
// bytes. The header's count is right only if the library that wrote last keeps
// it, which it shows by setting VersionValidFor (fileformat2.html 1.3.8). The
// file's size alone is the wrong source: SQLite shrinks a file after the commit
// that made the database smaller.
func (h Header) Pages(fileSize int64) uint32 {
	if h.PageCount != 0 && h.ChangeCounter == h.VersionValidFor {
		return h.PageCount
	}
	return clampPages(fileSize / int64(h.PageSize))
}

// clampPages bounds a page count taken from a file's size to the field's width.
func clampPages(n int64) uint32 {
	return uint32(min(max(n, 0), 1<<32-1))
}

// decodePageSize16 expands a page size that was stored in 16 bits. 65536 does
// not fit and is stored as 1, in the database header as in the wal-index.
func decodePageSize16(n uint16) uint32 {
	if n == 1 {
		return MaxPageSize
	}
	return uint32(n)
}

// encodePageSize16 is the inverse of decodePageSize16.
func encodePageSize16(n uint32) uint16 {
	if n == MaxPageSize {
		return 1
	}
	return uint16(n)
}
