package sqlitefile

import "encoding/binary"

// Layout of the wal-index in bytes (walformat.html 2.1): two copies of the
// header, then the checkpoint information. The first block's hash table follows
// in the same 32 KiB. Everything is in the byte order of the machine.
const (
	IndexHeaderSize = 48
	CkptInfoOffset  = 2 * IndexHeaderSize
	CkptInfoSize    = 40
	IndexBlockSize  = 32768
)

// Byte offsets of the fields of the checkpoint information that are written one
// by one, each under its own lock.
const (
	BackfillOffset          = CkptInfoOffset
	ReadMarkOffset          = CkptInfoOffset + 4
	BackfillAttemptedOffset = CkptInfoOffset + 32
)

// ReadMarkUnused is the value of a read mark that no reader has set.
const ReadMarkUnused = 0xffffffff

// IndexHeader is the header of the wal-index. It is how a commit becomes
// visible: frames after MaxFrame do not exist for a reader.
type IndexHeader struct {
	Version        uint32 // WALVersion
	Change         uint32 // raised by each transaction
	IsInit         bool   // false: the wal-index must be recovered from the WAL
	BigEndianCksum bool   // byte order of the WAL's checksums
	PageSize       uint32 // bytes
	MaxFrame       uint32 // last frame of the last commit; 0: the WAL holds nothing
	PageCount      uint32 // size of the database in pages after that commit
	FrameCksum     Cksum  // checksum of frame MaxFrame, or of the WAL header
	Salt1, Salt2   uint32 // of the WAL header that is in force, or that the next writer writes when MaxFrame is 0
}

// ParseIndexHeader decodes the first 96 bytes of a -shm file. It answers false
// while the two copies differ (a writer is between them: read again), when the
// header is not initialised, or its checksum or page size is wrong.
func ParseIndexHeader(b []byte) (IndexHeader, bool) {
	if len(b) < CkptInfoOffset {
		return IndexHeader{}, false
	}
	if string(b[:IndexHeaderSize]) != string(b[IndexHeaderSize:CkptInfoOffset]) {
		return IndexHeader{}, false
	}
	ne := binary.NativeEndian
	h := IndexHeader{
		Version:        ne.Uint32(b),
		Change:         ne.Uint32(b[8:]),
		IsInit:         b[12] != 0,
		BigEndianCksum: b[13] != 0,
		PageSize:       decodePageSize16(ne.Uint16(b[14:])),
		MaxFrame:       ne.Uint32(b[16:]),
		PageCount:      ne.Uint32(b[20:]),
		FrameCksum:     Cksum{ne.Uint32(b[24:]), ne.Uint32(b[28:])},
		// The salts are not numbers to SQLite: it copies the 8 bytes of the WAL
		// header, so they stay big-endian here on every machine.
		Salt1: binary.BigEndian.Uint32(b[32:]),
		Salt2: binary.BigEndian.Uint32(b[36:]),
	}
	stored := Cksum{ne.Uint32(b[40:]), ne.Uint32(b[44:])}
	// A page size of 0 belongs to a wal-index of a WAL without a header.
	ok := h.IsInit && h.Version == WALVersion && stored == indexCksum(b) &&
		(ValidPageSize(h.PageSize) || h.PageSize == 0 && h.MaxFrame == 0)
	if !ok {
		return IndexHeader{}, false
	}
	return h, true
}

// Encode fills the first IndexHeaderSize bytes of b with one copy of the header
// and computes its checksum. A writer writes the second copy, at offset 48,
// before the first one: a reader takes the two in the other order.
func (h IndexHeader) Encode(b []byte) {
	_ = b[IndexHeaderSize-1]
	ne := binary.NativeEndian
	ne.PutUint32(b, h.Version)
	ne.PutUint32(b[4:], 0)
	ne.PutUint32(b[8:], h.Change)
	b[12], b[13] = boolByte(h.IsInit), boolByte(h.BigEndianCksum)
	ne.PutUint16(b[14:], encodePageSize16(h.PageSize))
	ne.PutUint32(b[16:], h.MaxFrame)
	ne.PutUint32(b[20:], h.PageCount)
	ne.PutUint32(b[24:], h.FrameCksum[0])
	ne.PutUint32(b[28:], h.FrameCksum[1])
	binary.BigEndian.PutUint32(b[32:], h.Salt1)
	binary.BigEndian.PutUint32(b[36:], h.Salt2)
	c := indexCksum(b)
	ne.PutUint32(b[40:], c[0])
	ne.PutUint32(b[44:], c[1])
}

// indexCksum is the checksum of a header's first 40 bytes, always summed in the
// machine's order, whatever the WAL's.
func indexCksum(b []byte) Cksum {
	return Cksum{}.add(nativeBigEndian(), b[:40])
}

// CkptInfo is the checkpoint information, after the two headers.
type CkptInfo struct {
	Backfill          uint32            // frames copied to the database and synced; <= MaxFrame
	ReadMark          [ReadMarks]uint32 // frame up to which the holders of each WALReadLock read; ReadMark[0] is always 0
	BackfillAttempted uint32            // frames that may be in the database, synced or not; >= Backfill
}

// ParseCkptInfo decodes CkptInfoSize bytes, those at CkptInfoOffset.
func ParseCkptInfo(b []byte) (CkptInfo, bool) {
	if len(b) < CkptInfoSize {
		return CkptInfo{}, false
	}
	c := CkptInfo{
		Backfill:          binary.NativeEndian.Uint32(b),
		BackfillAttempted: binary.NativeEndian.Uint32(b[32:]),
	}
	for i := range c.ReadMark {
		c.ReadMark[i] = binary.NativeEndian.Uint32(b[4+4*i:])
	}
	return c, true
}

// Encode fills the first CkptInfoSize bytes of b. The 8 bytes in between that
// carry the file locks are zero: SQLite never reads or writes them.
func (c CkptInfo) Encode(b []byte) {
	clear(b[:CkptInfoSize])
	binary.NativeEndian.PutUint32(b, c.Backfill)
	for i, m := range c.ReadMark {
		binary.NativeEndian.PutUint32(b[4+4*i:], m)
	}
	binary.NativeEndian.PutUint32(b[32:], c.BackfillAttempted)
}

func boolByte(v bool) byte {
	if v {
		return 1
	}
	return 0
}
