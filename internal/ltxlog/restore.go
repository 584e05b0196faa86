package ltxlog

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"

	"github.com/litefs/litefs/internal/vfs"
)

// A log has a file of its own with copies of entries between OpenRecent and its next Open (and one that an earlier
// version has left, from its last use). It has two halves, of which OpenRecent uses the first. A half is a sequence of records from its beginning, each at a
// multiple of recordAlign:
//
//	0   8 bytes  unpackedMagic
//	8   8 bytes  generation, big endian as all numbers
//	16  8 bytes  Min
//	24  8 bytes  Max
//	32  8 bytes  size of the entry in bytes
//	40  4 bytes  CRC-32C of the above and of the entry
//	44           the entry
//
// Open brings back what the file has of the entries behind the durable mark, if it continues the chain and is
// missing or torn under its own name, makes them durable, and removes the file.
const (
	recentName     = "recent"
	maxRecent      = 64 << 20 // bytes of a file that is believed
	unpackedPrefix = 44
	unpackedMagic  = "LTXRECNT"
)

func appendUnpacked(buf []byte, p sharedCopy) []byte {
	start := len(buf)
	buf = append(buf, unpackedMagic...)
	for _, v := range []uint64{1, p.min, p.max, uint64(len(p.b))} {
		buf = binary.BigEndian.AppendUint64(buf, v)
	}
	sum := crc32.Update(crc32.Checksum(buf[start:], crc32c), crc32c, p.b)
	buf = append(binary.BigEndian.AppendUint32(buf, sum), p.b...)
	return append(buf, make([]byte, start+int(unpackedSize(len(p.b)))-len(buf))...)
}

func unpackedSize(entry int) int64 { return align(int64(entry) + unpackedPrefix) }

// record is a valid record of the file.
type record struct {
	Entry
	content []byte // as it is to lie on the disk
}

// readRecent returns the records of the file, in the order of the log.
func (l *Log) readRecent() (records []record, err error) {
	err = eachHalf(l.fs, l.path(recentName), func(f vfs.File, at, end int64) error {
		found, err := l.readHalf(f, at, end)
		records = append(records, found...)
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(records, func(a, b record) int { return cmp.Compare(a.Min, b.Min) })
	return records, nil
}

// eachHalf calls fn for both halves of a file.
func eachHalf(fsys vfs.FS, path string, fn func(f vfs.File, at, end int64) error) (err error) {
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	half := info.Size() / 2
	if err := fn(f, 0, half); err != nil {
		return err
	}
	return fn(f, half, 2*half)
}

func (l *Log) readHalf(f vfs.File, at, end int64) (records []record, err error) {
	var gen uint64
	for at+recordAlign <= end {
		rec, g, err := l.readRecord(f, at, end)
		if errors.Is(err, ErrCorrupt) || err == nil && len(records) > 0 && g != gen {
			return records, nil
		}
		if err != nil {
			return nil, err
		}
		gen = g
		records = append(records, rec)
		at += unpackedSize(len(rec.content))
	}
	return records, nil
}

// readRecord reads one record and verifies it, and the entry in it, completely.
func (l *Log) readRecord(f vfs.File, at, end int64) (rec record, gen uint64, err error) {
	var p [unpackedPrefix]byte
	if err := readFull(f, p[:], at); err != nil {
		return record{}, 0, err
	}
	size := binary.BigEndian.Uint64(p[32:])
	if string(p[:8]) != unpackedMagic || size < minEntrySize || size > maxRecent || at+unpackedPrefix+int64(size) > end {
		return record{}, 0, corrupt("no record")
	}
	rec.content = make([]byte, size)
	if err := readFull(f, rec.content, at+unpackedPrefix); err != nil {
		return record{}, 0, err
	}
	sum := crc32.Update(crc32.Checksum(p[:40], crc32c), crc32c, rec.content)
	if sum != binary.BigEndian.Uint32(p[40:]) {
		return record{}, 0, corrupt("record at byte %d has another checksum", at)
	}
	rec.Entry, err = l.decodeStored(rec.content, binary.BigEndian.Uint64(p[24:]))
	if err == nil && (rec.Min != binary.BigEndian.Uint64(p[16:]) || rec.Max != binary.BigEndian.Uint64(p[24:])) {
		err = corrupt("record at byte %d is of another entry", at)
	}
	return rec, binary.BigEndian.Uint64(p[8:]), err
}

// decodeStored verifies an entry as it lies on the disk.
func (l *Log) decodeStored(b []byte, maxTXID uint64) (Entry, error) {
	size := l.form.entrySize(b, int64(len(b)))
	content, err := l.form.open(bytes.NewReader(b), b, size, maxTXID)
	if err != nil {
		return Entry{}, err
	}
	return l.buffers.decode(io.NewSectionReader(content, 0, size), size, nil, nil)
}

// restore writes the entries that only the recent file has under their names, and returns found
// with them. found is sorted, and so is the result.
func (l *Log) restore(packs []*pack, found []candidate, mark uint64) ([]candidate, error) {
	records, err := l.readRecent()
	if err != nil {
		return nil, fmt.Errorf("read recent entries: %w", err)
	}
	for _, rec := range records {
		if rec.Max <= mark {
			continue
		}
		if needed, err := l.lacks(packs, found, rec.Entry); err != nil {
			return nil, err
		} else if !needed {
			continue
		}
		if found, err = l.unpackBehind(found, rec.Entry); err != nil {
			return nil, err
		}
		name := entryName(rec.Min, rec.Max)
		if err := l.writeFile(name, rec.content, false); err != nil {
			return nil, fmt.Errorf("restore %s: %w", name, err)
		}
		l.logger.Info("transaction log entry restored from its copy", "path", l.path(name))
		found = withFile(found, rec.Entry)
	}
	return found, nil
}

// withFile returns found with an entry that has a file of its own now, instead of all that was found of it.
func withFile(found []candidate, e Entry) []candidate {
	found = slices.DeleteFunc(found, func(c candidate) bool { return c.Min == e.Min && c.Max == e.Max })
	found = append(found, candidate{Entry: e})
	slices.SortFunc(found, byPlace)
	return found
}

// unpackBehind gives the entries that lie behind e in its pack files of their own, durably and before e has one. Else the
// pack would stay when e, which it lacks, is retired before them, and be found with a gap.
func (l *Log) unpackBehind(found []candidate, e Entry) ([]candidate, error) {
	for _, c := range slices.Clone(found) {
		if c.pack == nil || c.bad != nil || c.Min <= e.Max || c.pack.name > packName(e.Min) {
			continue
		}
		own := func(o candidate) bool { return o.pack == nil && o.bad == nil && o.Entry == c.Entry }
		if slices.ContainsFunc(found, own) {
			continue
		}
		f, err := l.openStored(c.Entry, c.place)
		if err != nil {
			return nil, err
		}
		b := make([]byte, c.stored)
		err = errors.Join(readFull(f, b, 0), f.Close())
		if err == nil {
			err = l.writeFile(entryName(c.Min, c.Max), b, true)
		}
		if err != nil {
			return nil, fmt.Errorf("take %s from its pack: %w", entryName(c.Min, c.Max), err)
		}
		found = withFile(found, c.Entry)
	}
	return found, nil
}

// lacks says whether an entry of the recent file is needed: its file is there but is not the entry,
// or there is none, and it follows one that was found. The first entry of a log follows nothing; it
// was retired where there are others and its pack is gone, for names come to the disk in their order.
func (l *Log) lacks(packs []*pack, found []candidate, e Entry) (bool, error) {
	follows, alone := false, true
	for _, c := range found {
		switch {
		case c.Min == e.Min && c.Max == e.Max:
			if c.bad == nil && c.Entry != e {
				return true, nil // of a history that was dropped
			}
			bad, err := l.check(c)
			return bad != nil, err
		case c.bad != nil:
		case c.Min <= e.Min && c.Max >= e.Max:
			return false, nil
		case c.Max == e.Min-1 && c.Post == e.Pre:
			follows = true
		}
		alone = false
	}
	if e.Min == 1 && !alone {
		alone = slices.ContainsFunc(packs, func(p *pack) bool { return p.name == packName(1) })
	}
	return follows || e.Min == 1 && alone, nil
}
