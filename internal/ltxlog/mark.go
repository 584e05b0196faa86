package ltxlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"

	"github.com/litefs/litefs/internal/vfs"
)

// The durable file tells the next Open which entries a power cut cannot have torn: a fault in one
// of those is damage to report, a fault behind them is a crash to clean up. It is written after
// the entries are on disk and may lag behind, since a lower mark only means more to verify.
//
// It also tells which copies in the file of recent entries do not count for this log any more. That must not be lost:
// a copy that does not count may be of an entry that was dropped. So the file has two places. A mark never goes where
// the last one is that was synced: half a mark, and one that did not come to the disk, leave that one.
//
//	0   8 bytes  TXID up to which entries are on disk, big endian as all numbers
//	8   8 bytes  copies with a smaller number do not count
//	16  8 bytes  number of the mark: the larger one counts
//	24  4 bytes  CRC-32 of the above
const (
	markSize  = 28
	markSpace = 512 // bytes from one place to the other: sectors of their own

	oldMarkSize    = 20 // of a file with one place, without the number of the mark
	oldestMarkSize = 12 // and without that of copies
)

// mark is what the durable file says. The zero value: nothing is known.
type mark struct {
	txid, forgotten uint64
	seq             uint64
	place           int64 // 0 or 1
}

// writeMark does not sync: see above. A failure to raise it is no failure of the log.
func (l *Log) writeMark() {
	if err := l.putMark(l.synced(), false); err != nil {
		l.logger.Warn("note durable position of transaction log", "path", l.path(durableName), "err", err)
	}
}

// lowerMark must be durable before entries below the old mark are removed or written anew:
// else the next Open would take their absence for damage.
func (l *Log) lowerMark(txid uint64) error {
	if l.synced() > txid || !l.markOnDisk() {
		if err := l.putMark(min(l.synced(), txid), true); err != nil {
			return fmt.Errorf("lower durable position: %w", err)
		}
	}
	l.mu.Lock()
	l.mu.synced = min(l.mu.synced, txid)
	l.mu.durable = min(l.mu.durable, txid)
	l.mu.Unlock()
	return nil
}

// markOnDisk says whether a mark as low as the one that Open has read is on disk: it may be of a run that died, or whose
// fsync failed, and a higher one come back in its place.
func (l *Log) markOnDisk() bool {
	l.mark.Lock()
	defer l.mark.Unlock()
	return l.mark.seq == 0 || l.mark.file != nil
}

func (l *Log) putMark(txid uint64, sync bool) error {
	l.mark.Lock()
	defer l.mark.Unlock()
	return l.putMarkLocked(txid, l.mark.forgotten, sync)
}

// putForget notes, durably, that copies with a number below seq do not count.
func (l *Log) putForget(seq uint64) error {
	l.mark.Lock()
	defer l.mark.Unlock()
	if err := l.putMarkLocked(l.synced(), seq, true); err != nil {
		return err
	}
	l.mark.forgotten = seq
	return nil
}

func (l *Log) putMarkLocked(txid, forgotten uint64, sync bool) error {
	if l.mark.file == nil {
		if err := l.openMark(); err != nil {
			return err
		}
	}
	next := mark{txid, forgotten, l.mark.seq + 1, 1 - l.mark.safe}
	if err := writeAllAt(l.mark.file, next.encode(), next.place*markSpace); err != nil {
		return err
	}
	l.mark.seq = next.seq
	if !sync {
		return nil
	}
	if err := l.mark.file.Sync(); err != nil {
		return err
	}
	if l.mark.unnamed {
		if err := l.fs.SyncDir(l.dir); err != nil {
			return err
		}
	}
	l.mark.safe, l.mark.unnamed = next.place, false
	return nil
}

// openMark opens the file for the first mark of this run. What the last run has left there may have to come to the disk yet.
func (l *Log) openMark() error {
	f, err := l.fs.OpenFile(l.path(durableName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if l.mark.seq > 0 {
		if err := f.Sync(); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	l.mark.file, l.mark.unnamed = f, true
	return nil
}

func (m mark) encode() []byte {
	b := make([]byte, 0, markSize)
	for _, v := range []uint64{m.txid, m.forgotten, m.seq} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
}

func readMark(fsys vfs.FS, path string) (m mark, err error) {
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return m, err
	}
	var b [markSpace + markSize]byte
	n, err := f.ReadAt(b[:], 0)
	if errors.Is(err, io.EOF) {
		err = nil // shorter
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return m, err
	}
	return decodeMarks(b[:n]), nil
}

// decodeMarks takes anything that is no mark for none.
func decodeMarks(b []byte) (m mark) {
	sum := func(b []byte, n int) bool {
		return len(b) >= n && binary.BigEndian.Uint32(b[n-4:]) == crc32.ChecksumIEEE(b[:n-4])
	}
	switch {
	case len(b) == oldMarkSize && sum(b, oldMarkSize):
		return mark{txid: binary.BigEndian.Uint64(b), forgotten: binary.BigEndian.Uint64(b[8:])}
	case len(b) == oldestMarkSize && sum(b, oldestMarkSize):
		return mark{txid: binary.BigEndian.Uint64(b)}
	}
	for place := range int64(2) {
		b := b[min(int(place*markSpace), len(b)):]
		if sum(b[:min(markSize, len(b))], markSize) && binary.BigEndian.Uint64(b[16:]) > m.seq {
			m = mark{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:]), place}
		}
	}
	return m
}
