package ltxlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/litefs/litefs/internal/vfs"
)

// A pack is a file of small entries that adjoin each other, in the order in which they were added. One after the other they
// cost one write each, and a sync of all of them is one of a single file; a file for each entry costs its making, its
// opening, its sync and its removal, which is more than everything else that a small transaction costs.
//
//	<TXID of the first entry, 16 hex>.pack
//
// A pack is a sequence of records, each at a multiple of recordAlign, so that no write touches a block that is durable:
//
//	0   8 bytes  packMagic
//	8   8 bytes  generation, big endian as all numbers: a random number, one a pack
//	16  8 bytes  Min
//	24  8 bytes  Max
//	32  8 bytes  size of what is stored of the entry
//	40  4 bytes  CRC-32C of the above
//	44           the entry, as form lays it down; it is verified by its own checksum
//
// A pack is written by one run of the process, and only at its end. Whoever reads it goes on behind a record that is
// damaged. Records of entries that were merged or retired stay until the last entry of the pack goes, and the file with it:
// found again, they are covered by a larger entry, or are the older end of the log. Those that were dropped from the newer
// end do not stay, or they would be found again behind what comes next: see cutPack.
const (
	packSuffix = ".pack"
	packMagic  = "LTXPACK1"
	packPrefix = 44
	maxPack    = 256 << 10 // bytes after which the next pack is begun
	maxPacked  = 64 << 10  // bytes of an entry that goes into one; a larger one has a file of its own
)

// pack is a file of entries.
type pack struct {
	name string
	gen  uint64
	// Where the next record goes, and the last transaction of the newest one, listed or not. The change lock guards them.
	size int64
	max  uint64

	live int // listed entries that lie in it. Log.mu guards it.

	// write is held while a record is written, and while the file is replaced by a copy of itself: a record must not go
	// into the old one meanwhile.
	write struct {
		sync.Mutex
		file   vfs.File
		sealed bool // it was replaced, or may be damaged: nothing more is written to it
		failed bool // its fsync failed when it was cut, and the next Sync does not know yet
	}
}

// place is where an entry lies in a pack. Without a pack it has a file of its own.
type place struct {
	pack   *pack
	at     int64 // of its record
	stored int64 // bytes of the entry that are stored, behind the prefix of the record
}

// end is where the next record begins.
func (p place) end() int64 { return align(p.at + packPrefix + p.stored) }

// span names a listed entry.
type span struct{ min, max uint64 }

func (e Entry) span() span { return span{e.Min, e.Max} }

func packName(minTXID uint64) string { return fmt.Sprintf("%016x%s", minTXID, packSuffix) }

// parsePackName accepts exactly the names that packName makes.
func parsePackName(name string) (minTXID uint64, ok bool) {
	hex, ok := strings.CutSuffix(name, packSuffix)
	if !ok || len(hex) != 16 || strings.ToLower(hex) != hex {
		return 0, false
	}
	minTXID, err := strconv.ParseUint(hex, 16, 63)
	return minTXID, err == nil && minTXID > 0
}

// appendPacked makes a record.
func appendPacked(buf []byte, gen uint64, s span, stored []byte) []byte {
	start := len(buf)
	buf = append(buf, packMagic...)
	for _, v := range []uint64{gen, s.min, s.max, uint64(len(stored))} {
		buf = binary.BigEndian.AppendUint64(buf, v)
	}
	buf = binary.BigEndian.AppendUint32(buf, crc32.Checksum(buf[start:], crc32c))
	return append(buf, stored...)
}

// packedHead is the prefix of a record.
type packedHead struct {
	gen uint64
	span
	stored uint64
}

func parsePackedHead(b []byte) (h packedHead, ok bool) {
	if string(b[:8]) != packMagic || crc32.Checksum(b[:40], crc32c) != binary.BigEndian.Uint32(b[40:]) {
		return h, false
	}
	for i, v := range []*uint64{&h.gen, &h.min, &h.max, &h.stored} {
		*v = binary.BigEndian.Uint64(b[8+8*i:])
	}
	return h, h.min > 0 && h.min <= h.max && h.max <= MaxTXID
}

// scanPack returns the entries of a pack, of which first is the TXID in its name. The error is one of the disk; wrong content
// is noted in the candidate, or it is not found.
func (l *Log) scanPack(name string, first uint64) (p *pack, found []candidate, err error) {
	f, err := l.fs.OpenFile(l.path(name), os.O_RDONLY, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	p = &pack{name: name, size: info.Size()}
	p.write.sealed = true
	var b [packPrefix]byte
	for at := int64(0); at+packPrefix <= p.size; {
		if err := readFull(f, b[:], at); errors.Is(err, ErrCorrupt) {
			break // it was cut meanwhile, beside a log that is read only
		} else if err != nil {
			return nil, nil, err
		}
		h, ok := parsePackedHead(b[:])
		if ok && len(found) == 0 {
			p.gen = h.gen
		}
		if !ok || h.gen != p.gen {
			at += recordAlign
			continue
		}
		where := place{p, at, int64(min(h.stored, uint64(p.size)))}
		c, err := l.readPacked(f, h, where, p.size)
		if err != nil {
			return nil, nil, err
		}
		found = append(found, c)
		p.max = max(p.max, h.max)
		at = where.end()
	}
	// The first entry of a pack is always in it: without it the older end of the log would be lost unnoticed.
	if !slices.ContainsFunc(found, func(c candidate) bool { return c.Min == first }) {
		c := candidate{place: place{pack: p}, bad: corrupt("pack %s does not have it", name)}
		c.Min, c.Max = first, first
		found = append(found, c)
		p.max = max(p.max, first)
	}
	return p, found, nil
}

// readPacked reads the ends of an entry in a pack of size bytes.
func (l *Log) readPacked(f io.ReaderAt, h packedHead, where place, size int64) (candidate, error) {
	c := candidate{place: where}
	c.Min, c.Max = h.min, h.max
	if where.at+packPrefix+where.stored > size {
		c.bad = corrupt("pack %s ends within it", where.pack.name)
		return c, nil
	}
	return l.readEndsOf(io.NewSectionReader(f, where.at+packPrefix, where.stored), where.stored, c)
}

// storedFile is what a file has of one entry.
type storedFile struct {
	*io.SectionReader
	io.Closer
}

// openStored opens what is stored of an entry.
func (l *Log) openStored(e Entry, where place) (storedFile, error) {
	if where.pack == nil {
		f, err := l.fs.OpenFile(l.entryPath(e), os.O_RDONLY, 0)
		if err != nil {
			return storedFile{}, err
		}
		return storedFile{io.NewSectionReader(f, 0, wholeFile), f}, nil
	}
	f, err := l.fs.OpenFile(l.path(where.pack.name), os.O_RDONLY, 0)
	if err != nil {
		return storedFile{}, err
	}
	return storedFile{io.NewSectionReader(f, where.at+packPrefix, where.stored), f}, nil
}

// HasOwnFile says whether the bytes of a listed entry are a file, in the clear, which keeps them for who has opened it: that
// of a small entry may be used again (retire).
func (l *Log) HasOwnFile(e Entry) bool {
	_, plain := l.form.(plainForm)
	return plain && l.placeOf(e).pack == nil && e.Size > maxSpareSize
}
