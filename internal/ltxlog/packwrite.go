package ltxlog

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
)

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

// takeFailed says whether a fsync failed that Sync does not know of.
func (p *pack) takeFailed() bool {
	p.write.Lock()
	defer p.write.Unlock()
	was := p.write.failed
	p.write.failed = false
	return was
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
			return place{}, errors.Join(err, l.takeBackPacked(where))
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

// takeBackPacked removes, durably, an entry that is not listed from the end of its pack. When that fails, the next change of
// the log tries again before it does anything else. The caller holds change.
func (l *Log) takeBackPacked(where place) error {
	where.pack.size = where.at
	if where.at == 0 {
		return errors.Join(l.endPack(), l.syncDropped())
	}
	err := l.cutTail(where)
	if err != nil {
		l.change.cut = where
	}
	return err
}

// cutTail cuts a pack, durably, where an entry begins, of which no reader knows.
func (l *Log) cutTail(where place) error {
	where.pack.write.Lock()
	defer where.pack.write.Unlock()
	f, err := l.fs.OpenFile(l.path(where.pack.name), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = f.Truncate(where.at)
	if err == nil {
		if err = f.Sync(); err != nil {
			where.pack.write.sealed, where.pack.write.failed = true, true
		}
	}
	return errors.Join(err, f.Close())
}
