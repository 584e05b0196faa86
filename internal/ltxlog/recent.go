package ltxlog

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"

	"github.com/litefs/litefs/internal/vfs"
)

// An entry that must be durable before Append returns would need two syncs, of its file and of the
// directory, and each is a commit of the file system's journal. It is copied instead into the file
// `recent`, whose blocks are there: one write without any metadata. File and directory are synced
// with the next Sync, and after that the copy is not needed any more.
//
// The file has two halves, so that the files whose copies fill the one are synced in the background
// while copies go to the other. A half is a sequence of records from its beginning, each at a
// multiple of recordAlign:
//
//	0   8 bytes  recordMagic
//	8   8 bytes  generation, big endian as all numbers
//	16  8 bytes  Min
//	24  8 bytes  Max
//	32  8 bytes  size of the entry in bytes
//	40  4 bytes  CRC-32C of the above and of the entry
//	44           the entry
//
// It ends with the first that is not valid or of another generation than the first one: what lies
// behind is of an earlier use. The generation is a random number, drawn each time a half is begun
// anew.
//
// Open brings back what the file has of the entries behind the durable mark, if it continues the
// chain and is missing or torn under its own name. Therefore an entry that is dropped from the
// newer end of the log must not be there any more: see forgetRecent.
const (
	recentName   = "recent"
	recentSize   = 1 << 20
	maxRecent    = 64 << 20 // bytes of a file that is believed
	recordAlign  = 4096     // pages of the page cache: no record shares one with another
	recordPrefix = 44
	recordMagic  = "LTXRECNT"

	// recentAfter is how many durable appends a log is asked for before it has the file. Databases
	// in WAL mode are asked for a few while they are made, and then for no more.
	recentAfter = 8
)

var crc32c = crc32.MakeTable(crc32.Castagnoli)

// recent is the state of the file. It is guarded by change.
type recent struct {
	file  vfs.File // opened for synchronous writes at first use
	asked int      // durable appends so far, until the file is used
	half  [2]recentHalf
	at    int // the half in use
	// used: there may be records in the file, of this Log or of an earlier one.
	used bool
	// torn: the write of the next record failed, and it may be there all the same.
	torn bool
	buf  []byte

	background sync.WaitGroup // the one sync that may be under way
	syncing    atomic.Bool
}

// recentHalf is the state of one half.
type recentHalf struct {
	gen  uint64 // of its records
	next int64  // where the next record goes, from the start of the half
	last uint64 // Max of the newest record written by this Log
}

// publishRecent adds an entry that its copy makes durable. It does nothing and returns false when
// that is not the way for this entry. The caller holds change and has checked that it joins.
func (l *Log) publishRecent(e Entry, w *writer, confirm func() error) (bool, error) {
	if ok, err := l.roomInRecent(w); !ok || err != nil {
		return false, err
	}
	name := entryName(e.Min, e.Max)
	if err := w.put(name, false, false); err != nil {
		return false, err
	}
	if err := l.putRecord(e, w.enc.buf, confirm); err != nil {
		return false, errors.Join(err, l.takeBack(name))
	}
	l.keepLive(e, w)
	l.mu.Lock()
	l.mu.entries = append(l.mu.entries, e)
	l.mu.durable = e.Max
	l.mu.Unlock()
	return true, nil
}

// roomInRecent readies the file for one more record, if the entry in w can be one: it is not large,
// and everything before it is durable already.
func (l *Log) roomInRecent(w *writer) (bool, error) {
	r := &l.change.recent
	n := recordSize(len(w.enc.buf))
	if head, _ := l.Head(); w.temp != nil || n > l.recentSize/2 || l.Durable() < head.Max {
		return false, nil
	}
	if r.file == nil {
		if r.asked++; r.asked <= l.recentAfter {
			return false, nil
		}
		if err := l.openRecent(); err != nil {
			// There is the other way. One that fails as well tells its caller.
			l.logger.Warn("make a file for recent log entries, will be tried again", "path", l.path(recentName), "err", err)
			r.asked = 0
			return false, nil
		}
	}
	full := r.half[r.at].next+n > l.recentSize/2
	if full && l.synced() < r.half[r.at].last {
		r.at = 1 - r.at
		if l.synced() < r.half[r.at].last {
			if err := l.Sync(); err != nil {
				return false, err
			}
		}
		l.syncInBackground()
	}
	h := &r.half[r.at]
	if l.synced() < h.last {
		return true, nil
	}
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return false, fmt.Errorf("draw a generation: %w", err)
	}
	h.gen, h.next = binary.BigEndian.Uint64(b[:]), 0
	return true, nil
}

// syncInBackground syncs what is in the half that was just left, before it is needed again.
func (l *Log) syncInBackground() {
	r := &l.change.recent
	if l.syncInline || !r.syncing.CompareAndSwap(false, true) {
		return
	}
	r.background.Go(func() {
		defer r.syncing.Store(false)
		if err := l.Sync(); err != nil {
			l.logger.Warn("sync transaction log, will be tried again", "dir", l.dir, "err", err)
		}
	})
}

func recordSize(entry int) int64 {
	return (int64(entry) + recordPrefix + recordAlign - 1) / recordAlign * recordAlign
}

// openRecent opens the file and makes it if need be, with blocks that are written: blocks that are
// only reserved are a change of metadata at their first write.
func (l *Log) openRecent() error {
	name := l.path(recentName)
	info, err := l.fs.Stat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() != l.recentSize {
		err = l.makeRecent()
	}
	if err != nil {
		return err
	}
	l.change.recent.file, err = l.fs.OpenFile(name, os.O_RDWR|vfs.O_DSYNC, 0)
	return err
}

func (l *Log) makeRecent() error {
	f, err := l.fs.OpenFile(l.path(recentName), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = writeAll(f, make([]byte, l.recentSize))
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = l.fs.SyncDir(l.dir)
	}
	if err != nil {
		return errors.Join(err, l.remove(recentName))
	}
	return nil
}

// putRecord writes the copy of an entry, durably, and takes it back if confirm does not agree.
func (l *Log) putRecord(e Entry, b []byte, confirm func() error) error {
	r := &l.change.recent
	h := &r.half[r.at]
	r.buf = appendRecord(r.buf[:0], h.gen, e, b)
	r.torn, r.used = true, true
	if err := l.writeRecent(r.at, r.buf); err != nil {
		return err
	}
	if err := confirm(); err != nil {
		// At once, and not before the next append: a crash would find it.
		return errors.Join(err, l.clearTorn())
	}
	r.torn = false
	h.next += int64(len(r.buf))
	h.last = e.Max
	return nil
}

// writeRecent writes b where the next record of a half goes.
func (l *Log) writeRecent(half int, b []byte) error {
	r := &l.change.recent
	n, err := r.file.WriteAt(b, int64(half)*l.recentSize/2+r.half[half].next)
	if err == nil && n < len(b) {
		err = fmt.Errorf("write %s: %d bytes of %d", r.file.Name(), n, len(b))
	}
	return err
}

func appendRecord(buf []byte, gen uint64, e Entry, b []byte) []byte {
	buf = append(buf, recordMagic...)
	for _, v := range []uint64{gen, e.Min, e.Max, uint64(len(b))} {
		buf = binary.BigEndian.AppendUint64(buf, v)
	}
	sum := crc32.Update(crc32.Checksum(buf, crc32c), crc32c, b)
	buf = append(binary.BigEndian.AppendUint32(buf, sum), b...)
	return append(buf, make([]byte, recordSize(len(b))-int64(len(buf)))...)
}

// clearTorn takes back the record of an append that failed.
func (l *Log) clearTorn() error {
	r := &l.change.recent
	if !r.torn {
		return nil
	}
	if r.file == nil {
		if err := l.openRecent(); err != nil {
			return err
		}
	}
	if err := l.writeRecent(r.at, make([]byte, recordAlign)); err != nil {
		return err
	}
	r.torn = false
	return nil
}

// forgetRecent empties the file, durably, before entries at the newer end of the log are dropped:
// the next Open would bring them back. What stays is made durable without it first. The caller
// holds change and sync.
func (l *Log) forgetRecent() error {
	r := &l.change.recent
	if !r.used {
		return nil
	}
	if err := l.syncLocked(); err != nil {
		return err
	}
	if r.file == nil {
		if err := l.openRecent(); err != nil {
			return fmt.Errorf("empty the file of recent entries: %w", err)
		}
	}
	for i := range r.half {
		r.half[i] = recentHalf{}
		if err := l.writeRecent(i, make([]byte, recordAlign)); err != nil {
			return fmt.Errorf("empty the file of recent entries: %w", err)
		}
	}
	r.torn, r.used = false, false
	return nil
}

func (l *Log) closeRecent() error {
	r := &l.change.recent
	if r.file == nil {
		return nil
	}
	err := r.file.Close()
	r.file = nil
	return err
}
