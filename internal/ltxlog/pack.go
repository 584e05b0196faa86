package ltxlog

import (
	"crypto/rand"
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

func isPackName(name string) bool {
	hex, ok := strings.CutSuffix(name, packSuffix)
	if !ok || len(hex) != 16 || strings.ToLower(hex) != hex {
		return false
	}
	_, err := strconv.ParseUint(hex, 16, 63)
	return err == nil
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

// scanPack returns the entries of a pack. The error is one of the disk; wrong content is noted in the candidate, or it is
// not found.
func (l *Log) scanPack(name string) (p *pack, found []candidate, err error) {
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
		if err := readFull(f, b[:], at); err != nil {
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

// HasOwnFile says whether the bytes of a listed entry are a file, in the clear.
func (l *Log) HasOwnFile(e Entry) bool {
	_, plain := l.form.(plainForm)
	return plain && l.placeOf(e).pack == nil
}

// packFor returns the pack to which an entry is added: that of the entry before it, or a new one. The caller holds change.
func (l *Log) packFor(e Entry, stored int64) (*pack, error) {
	p := l.change.pack
	if head, ok := l.Head(); p != nil && ok && p.size+stored <= l.maxPack && l.placeOf(head).pack == p {
		return p, nil
	}
	if err := l.endPack(); err != nil {
		return nil, err
	}
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, fmt.Errorf("draw a generation: %w", err)
	}
	p = &pack{name: packName(e.Min), gen: binary.BigEndian.Uint64(b[:])}
	f, err := l.fs.OpenFile(l.path(p.name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	l.names.Store(true)
	p.write.file = f
	l.change.pack = p
	return p, nil
}

// endPack ends the use of the pack that is written. One without an entry goes. The caller holds change.
func (l *Log) endPack() error {
	p := l.change.pack
	if p == nil {
		return nil
	}
	l.change.pack = nil
	if l.liveIn(p) == 0 {
		l.removeOrRemember(p.name)
	}
	return p.seal()
}

// seal lets nobody write to the pack any more.
func (p *pack) seal() error {
	p.write.Lock()
	defer p.write.Unlock()
	f := p.write.file
	p.write.file, p.write.sealed = nil, true
	if f == nil {
		return nil
	}
	return f.Close()
}

// putPacked writes an entry behind the newest one of its pack. The caller holds change.
func (l *Log) putPacked(e Entry, enc *encoder, stored []byte, sync bool) (place, error) {
	for {
		p, err := l.packFor(e, int64(len(stored)))
		if err != nil {
			return place{}, err
		}
		where := place{p, p.size, int64(len(stored))}
		enc.record = appendPacked(enc.record[:0], p.gen, e.span(), stored)
		sealed, err := l.writeRecord(where, enc.record, sync)
		switch {
		case sealed:
			if err := l.endPack(); err != nil {
				return place{}, err
			}
		case err != nil:
			return place{}, errors.Join(err, l.takeBackPacked(where, false))
		default:
			p.size, p.max = where.end(), e.Max
			return where, nil
		}
	}
}

// writeRecord writes one record at its place, unless the pack is sealed.
func (l *Log) writeRecord(where place, record []byte, sync bool) (sealed bool, err error) {
	w := &where.pack.write
	w.Lock()
	defer w.Unlock()
	if w.sealed {
		return true, nil
	}
	if w.file == nil {
		if w.file, err = l.fs.OpenFile(l.path(where.pack.name), os.O_RDWR, 0); err != nil {
			return false, err
		}
	}
	if err := writeAllAt(w.file, record, where.at); err != nil || !sync {
		return false, err
	}
	if err := w.file.Sync(); err != nil {
		w.sealed = true // what is written to it next might not come to the disk, and nobody would be told
		return false, err
	}
	return false, nil
}

// takeBackPacked removes an entry that is not listed from the end of its pack. When that fails, the next change of the log
// tries again before it does anything else. The caller holds change.
func (l *Log) takeBackPacked(where place, durably bool) error {
	where.pack.size = where.at
	if where.at == 0 {
		err := l.endPack()
		if durably {
			err = errors.Join(err, l.fs.SyncDir(l.dir))
		}
		return err
	}
	err := l.cutTail(where, durably)
	if err != nil {
		l.change.cut = where
	}
	return err
}

// cutTail cuts a pack where an entry begins, of which no reader knows.
func (l *Log) cutTail(where place, durably bool) error {
	where.pack.write.Lock()
	defer where.pack.write.Unlock()
	f, err := l.fs.OpenFile(l.path(where.pack.name), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = f.Truncate(where.at)
	if err == nil && durably {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// cutPack drops what lies behind a listed entry in its pack: the file is replaced by a copy, so that who reads an entry
// that goes can read on. The caller makes the new name durable, and holds change and sync.
func (l *Log) cutPack(last Entry, where place) error {
	p := where.pack
	if err := l.replacePack(p, where.end(), true); err != nil {
		return err
	}
	p.max = last.Max
	delete(l.sync.suspect, p.name) // the copy is on disk
	return nil
}

// cutBehind drops what lies behind the last of entries, which are the list, in a pack: entries that were dropped, and those
// that had been merged into one that was. When that fails, the next change of the log tries again before it does anything
// else. The caller holds change and sync.
func (l *Log) cutBehind(entries []Entry) error {
	for _, e := range slices.Backward(entries) {
		where := l.placeOf(e)
		if where.pack == nil {
			continue
		}
		if where.pack.max == e.Max {
			return nil
		}
		err := l.cutPack(e, where)
		if err != nil {
			l.change.cut = place{pack: where.pack, at: where.end()}
		}
		return err
	}
	return nil
}

// replacePack puts a copy of the first n bytes of a pack in its place.
func (l *Log) replacePack(p *pack, n int64, sync bool) error {
	p.write.Lock()
	defer p.write.Unlock()
	p.write.sealed = true
	err := l.copyFile(p.name, rewriteTemp, n, sync)
	if err == nil {
		err = l.fs.Rename(l.path(rewriteTemp), l.path(p.name))
	}
	if err != nil {
		return errors.Join(err, l.remove(rewriteTemp))
	}
	l.names.Store(true)
	return nil
}

// retirePacked takes an entry that is not in the list any more from its pack, and removes the pack when it was the last
// one. On an error it is as before. The caller holds change and sync.
func (l *Log) retirePacked(e Entry, p *pack) error {
	if l.liveIn(p) == 1 {
		if err := l.removePack(p); err != nil {
			return err
		}
	}
	l.leavePack(e, p)
	return nil
}

func (l *Log) removePack(p *pack) error {
	if p == l.change.pack {
		l.change.pack = nil
	}
	if err := p.seal(); err != nil {
		l.logger.Warn("close transaction log file", "path", l.path(p.name), "err", err)
	}
	if err := l.remove(p.name); err != nil {
		return err
	}
	delete(l.sync.suspect, p.name)
	return nil
}

// leavePack notes that an entry does not lie in its pack any more.
func (l *Log) leavePack(e Entry, p *pack) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.mu.places, e.span())
	p.live--
}

// listAt notes where an entry lies. The caller holds mu.
func (l *Log) listAt(e Entry, where place) {
	if where.pack == nil {
		return
	}
	if l.mu.places == nil {
		l.mu.places = map[span]place{}
	}
	l.mu.places[e.span()] = where
	where.pack.live++
}

// placeOf returns where a listed entry lies.
func (l *Log) placeOf(e Entry) place {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.mu.places[e.span()]
}

func (l *Log) liveIn(p *pack) int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return p.live
}

// fileOf returns the name of the file in which an entry lies.
func (l *Log) fileOf(e Entry) string {
	if p := l.placeOf(e).pack; p != nil {
		return p.name
	}
	return entryName(e.Min, e.Max)
}
