package pagesum

import (
	"encoding/binary"
	"fmt"

	"github.com/litefs/litefs/internal/isocrc"
)

// header is one of the two header slots.
//
//	0   magic      8 bytes
//	8   version    uint32
//	12  page size  uint32, bytes, 0 = none yet
//	16  page count uint32
//	20  flags      uint32, bit 0 = clean
//	24  sequence   uint64, higher is newer
//	32  TXID       uint64
//	40  boot id    64 bytes, padded with zeroes
//	104 CRC-64 (ISO) of the 104 bytes before it
//
// Numbers are little-endian.
type header struct {
	pageSize uint32
	count    uint32
	clean    bool
	seq      uint64
	txid     uint64
	bootID   string
}

const (
	magic      = "LFSPGSUM"
	version    = 1
	maxBootID  = 64
	crcOffset  = 104
	headerSize = crcOffset + 8
	slotSize   = 512 // a sector each: a torn write of the page spoils one slot
	flagClean  = 1
)

func slotOffset(seq uint64) int { return int(seq%2) * slotSize }

func (h header) encode(b []byte) {
	b = b[:headerSize]
	// Built aside: the checksum must never be right over a half-written slot.
	var n [headerSize]byte
	copy(n[:], magic)
	binary.LittleEndian.PutUint32(n[8:], version)
	binary.LittleEndian.PutUint32(n[12:], h.pageSize)
	binary.LittleEndian.PutUint32(n[16:], h.count)
	if h.clean {
		binary.LittleEndian.PutUint32(n[20:], flagClean)
	}
	binary.LittleEndian.PutUint64(n[24:], h.seq)
	binary.LittleEndian.PutUint64(n[32:], h.txid)
	copy(n[40:crcOffset], h.bootID)
	binary.LittleEndian.PutUint64(n[crcOffset:], crc(n[:crcOffset]))
	copy(b, n[:])
}

// newestHeader finds the header that counts; a zero header when both slots are
// zero, as in a file that was just made. A slot whose checksum is wrong is one
// that a crash tore, so the other one counts; ErrCorrupt when neither does.
func newestHeader(b []byte) (header, error) {
	var newest header
	var foreign uint32
	valid, blank := false, true
	for slot := range 2 {
		s := b[slot*slotSize:][:headerSize]
		blank = blank && zero(s)
		if string(s[:8]) != magic || binary.LittleEndian.Uint64(s[crcOffset:]) != crc(s[:crcOffset]) {
			continue
		}
		if v := binary.LittleEndian.Uint32(s[8:]); v != version {
			foreign = v
			continue
		}
		h := decodeHeader(s)
		if !valid || h.seq > newest.seq {
			newest = h
		}
		valid = true
	}
	switch {
	case foreign != 0:
		return header{}, fmt.Errorf("%w: %d, want %d", ErrVersion, foreign, version)
	case !valid && !blank:
		return header{}, fmt.Errorf("%w: no header with magic and checksum", ErrCorrupt)
	}
	return newest, nil
}

func decodeHeader(s []byte) header {
	id := s[40:crcOffset]
	for len(id) > 0 && id[len(id)-1] == 0 {
		id = id[:len(id)-1]
	}
	return header{
		pageSize: binary.LittleEndian.Uint32(s[12:]),
		count:    binary.LittleEndian.Uint32(s[16:]),
		clean:    binary.LittleEndian.Uint32(s[20:])&flagClean != 0,
		seq:      binary.LittleEndian.Uint64(s[24:]),
		txid:     binary.LittleEndian.Uint64(s[32:]),
		bootID:   string(id),
	}
}

func crc(b []byte) uint64 { return isocrc.Update(0, b) }

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
