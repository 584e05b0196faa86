package ltxlog

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/internal/durable"
	"github.com/litefs/litefs/internal/vfs"
)

// An entry that must be durable before Append returns would need two syncs, of its file and of the
// directory, and each is a commit of the file system's journal. It is copied instead into a file
// that all logs of a node share, whose blocks are there: one write without any metadata, for all
// logs that wait for one at the same time. File and directory are synced with the next Sync, and
// after that the copy is not needed any more.
//
// The file has two halves, so that the logs whose copies fill the one are synced in the background
// while copies go to the other. A half is a sequence of writes, each at a multiple of recordAlign,
// and a write a sequence of records, without gaps:
//
//	0   8 bytes  recordMagic
//	8   8 bytes  generation, big endian as all numbers
//	16  8 bytes  number of the record, larger than those before it
//	24  8 bytes  id of the log
//	32  8 bytes  Min
//	40  8 bytes  Max
//	48  8 bytes  size of the entry in bytes
//	56  4 bytes  CRC-32C of the above and of the entry
//	60           the entry
//
// It ends with the first that is not valid, not of the generation of the first one, or not numbered
// upwards: what lies behind is of an earlier use, or of a write that failed. The generation is a
// random number, drawn each time a half is begun anew.
//
// OpenRecent gives each log what is its own, before any log is opened: see unpack. Therefore an
// entry that is dropped from the newer end of a log must not be there any more: see forgetRecent.
const (
	recentFile   = 4 << 20 // bytes of the file
	recordAlign  = 4096    // pages of the page cache: no write shares one with an earlier one
	recordPrefix = 60
	recordMagic  = "LTXRECN2"
	maxBatch     = 1 << 20 // bytes of one write of several records

	// recentAfter is how many durable appends a node's logs are asked for before it has the file. Databases
	// in WAL mode are asked for a few while they are made, and then for no more.
	recentAfter = 8
)

var crc32c = crc32.MakeTable(crc32.Castagnoli)

// Recent is the file of the entries that the logs of one node have made durable one by one. It is safe for
// concurrent use.
//
// Invariant: a half is used again only when each log that has copies in it has those entries on disk under
// their names.
//
// Nobody waits for it who holds the sync lock of a log, for it syncs logs.
type Recent struct {
	fs     vfs.FS
	path   string
	logger *slog.Logger
	size   int64 // RecentOptions.size
	after  int   // RecentOptions.after
	inline bool  // RecentOptions.syncInline

	background sync.WaitGroup // the one sync that may be under way; begun and waited for by who writes

	mu    sync.Mutex // guards everything below, and is not held while records are written
	file  vfs.File   // opened for synchronous writes at first use
	asked int        // durable appends so far, until the file is used
	off   bool       // a log was closed that needs its copies at the next start
	half  [2]recentHalf
	at    int    // the half in use
	seq   uint64 // number of the newest record

	pause   func(time.Duration) // RecentOptions.pause
	company float64             // records of a write, the mean of late ones

	queue   []*copying // who waits to be written; the first writes for all when nobody else does
	busy    bool       // somebody writes
	syncing bool       // logs are synced in the background
	buf     []byte     // of who writes
}

// recentHalf is the state of one half.
type recentHalf struct {
	gen  uint64          // of its records; 0: not used yet
	next int64           // where the next write goes, from the start of the half
	logs map[*Log]uint64 // Max of the newest record of each
}

// copying is an entry on its way into the file.
type copying struct {
	log   *Log
	entry Entry
	b     []byte
	ahead func()     // called just before it is written; nil: nobody wants to know
	turn  chan error // errYourTurn, or what became of it
}

var errYourTurn = errors.New("write what waits")

// RecentOptions configures a Recent.
type RecentOptions struct {
	FS     vfs.FS       // default: the real disk
	Logger *slog.Logger // default: discard

	// Wipe has everything that lies in the file written over, when what it is needed for has been taken out: it may be
	// of a time before logs were encrypted.
	Wipe bool

	size       int64 // default: recentFile
	after      int   // default: recentAfter; -1: from the first
	syncInline bool  // no sync in the background

	pause func(time.Duration) // how a write waits for company; default: nap
}

func (o *RecentOptions) ensureDefaults() {
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.size == 0 {
		o.size = recentFile
	}
	if o.after == 0 {
		o.after = recentAfter
	}
	if o.pause == nil {
		o.pause = nap
	}
}

// ready reports whether an entry of size bytes can be added.
func (r *Recent) ready(size int) bool {
	if r == nil || int64(size)+recordPrefix > r.size/8 {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.off {
		return false
	}
	if r.file != nil {
		return true
	}
	if r.asked++; r.asked <= r.after {
		return false
	}
	if err := r.open(); err != nil {
		// There is the other way. One that fails as well tells its caller.
		r.logger.Warn("make a file for recent log entries, will be tried again", "path", r.path, "err", err)
		r.asked = 0
		return false
	}
	return true
}

// add writes the copy of an entry, durably. On an error it may be there all the same. ahead, if it is not nil, is called once
// before the copy is durable: together with those of the entries that share its write.
func (r *Recent) add(l *Log, e Entry, b []byte, ahead func()) error {
	c := &copying{log: l, entry: e, b: b, ahead: ahead, turn: make(chan error, 1)}
	r.mu.Lock()
	r.queue = append(r.queue, c)
	if r.busy {
		r.mu.Unlock()
		if err := <-c.turn; err != errYourTurn { //nolint:errorlint // it is not wrapped
			return err
		}
		r.mu.Lock()
	}
	r.busy = true
	r.awaitCompany()
	batch := r.takeBatch()
	r.tellAhead(batch)
	err := r.write(batch)
	if r.busy = len(r.queue) > 0; r.busy {
		r.queue[0].turn <- errYourTurn
	}
	r.mu.Unlock()
	for _, other := range batch {
		if other != c {
			other.turn <- err
		}
	}
	return err
}

// What decides whether a write waits for more records. What a write costs a processor depends little on how many it has:
// when processors are short, few large ones are faster for everybody, and when they are not, a write that waits only makes
// its transaction late. How many records a write had of late tells the two apart: while one
// is on its way, those come together that the next one has.
const (
	companyFrom  = 1.6                   // records, the mean of late writes, from which on a write waits
	companyMean  = 8                     // writes over which the mean is taken, about
	companySize  = 6                     // records that are enough
	companyLooks = 3                     // times that a write waits at most
	companyWait  = 20 * time.Microsecond // each time; the kernel adds some 50 µs
)

// awaitCompany waits for more records, if some are to be expected. r.mu is held, but not meanwhile.
func (r *Recent) awaitCompany() {
	for i := 0; i < companyLooks && r.company > companyFrom && len(r.queue) < companySize; i++ {
		r.mu.Unlock()
		r.pause(companyWait)
		r.mu.Lock()
	}
	r.company += (float64(len(r.queue)) - r.company) / companyMean
}

// nap waits in the kernel: the timers of Go's runtime would take up to a millisecond when nothing else is to be done.
func nap(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&ts, nil) // a signal ends it early, which is as good
}

// takeBatch takes from the queue what is written at once. r.mu is held.
func (r *Recent) takeBatch() []*copying {
	n, size := 0, 0
	for n < len(r.queue) && (n == 0 || size+recordPrefix+len(r.queue[n].b) <= int(min(maxBatch, r.size/4))) {
		size += recordPrefix + len(r.queue[n].b)
		n++
	}
	batch := r.queue[:n:n]
	r.queue = r.queue[n:]
	return batch
}

// tellAhead calls ahead of each of a batch. r.mu is held, but not meanwhile.
func (r *Recent) tellAhead(batch []*copying) {
	r.mu.Unlock()
	defer r.mu.Lock()
	for _, c := range batch {
		if c.ahead != nil {
			c.ahead()
		}
	}
}

// write writes the records of a batch. r.mu is held, but not meanwhile.
func (r *Recent) write(batch []*copying) error {
	var n int64
	for _, c := range batch {
		n += recordPrefix + int64(len(c.b))
	}
	n = align(n)
	if err := r.makeRoom(n); err != nil {
		return err
	}
	if r.file == nil {
		if err := r.open(); err != nil {
			return err
		}
	}
	h, at := &r.half[r.at], int64(r.at)*r.size/2+r.half[r.at].next
	r.buf = r.buf[:0]
	for _, c := range batch {
		r.seq++
		r.buf = appendRecord(r.buf, h.gen, r.seq, c.log.id, c.entry, c.b)
	}
	r.buf = append(r.buf, make([]byte, n-int64(len(r.buf)))...)
	file, buf := r.file, r.buf
	r.mu.Unlock()
	err := writeAllAt(file, buf, at)
	r.mu.Lock()
	if err != nil {
		return err
	}
	h.next += n
	for _, c := range batch {
		h.logs[c.log] = c.entry.Max
	}
	return nil
}

// makeRoom readies a half for n more bytes. r.mu is held, but not while logs are synced.
func (r *Recent) makeRoom(n int64) error {
	if h := &r.half[r.at]; h.gen != 0 && h.next+n <= r.size/2 {
		return nil
	}
	left, next := r.at, 1-r.at
	if logs := r.behind(next); len(logs) > 0 {
		r.mu.Unlock()
		r.background.Wait()
		err := syncLogs(logs)
		r.mu.Lock()
		if err != nil {
			return fmt.Errorf("sync logs whose recent entries are to be written over: %w", err)
		}
	}
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return fmt.Errorf("draw a generation: %w", err)
	}
	r.half[next] = recentHalf{gen: binary.BigEndian.Uint64(b[:]) | 1, logs: make(map[*Log]uint64)}
	r.at = next
	if logs := r.behind(left); len(logs) > 0 && !r.inline && !r.syncing {
		r.syncing = true
		r.background.Go(func() {
			if err := syncLogs(logs); err != nil {
				r.logger.Warn("sync transaction logs, will be tried again", "err", err)
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			r.syncing = false
		})
	}
	return nil
}

// behind returns the logs that have not synced all that they have in a half. r.mu is held.
func (r *Recent) behind(half int) []*Log {
	var logs []*Log
	for l, last := range r.half[half].logs {
		if l.synced() < last {
			logs = append(logs, l)
		}
	}
	return logs
}

func syncLogs(logs []*Log) error {
	for _, l := range logs {
		if err := l.Sync(); err != nil && !errors.Is(err, ErrClosed) { // who closes a log syncs it, or says so: see leave
			return err
		}
	}
	return nil
}

// newest is the number of the newest record.
func (r *Recent) newest() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seq
}

// atLeast numbers records upwards from seq on.
func (r *Recent) atLeast(seq uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq = max(r.seq, seq)
}

// leave notes that a log has no copies any more that count, or that it was closed without being on disk.
func (r *Recent) leave(l *Log, onDisk bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.half {
		last, ok := r.half[i].logs[l]
		if onDisk {
			delete(r.half[i].logs, l)
		} else if ok && l.synced() < last {
			r.off = true
		}
	}
}

// open opens the file and makes it if need be, with blocks that are written: blocks that are only
// reserved are a change of metadata at their first write. r.mu is held.
func (r *Recent) open() error {
	info, err := r.fs.Stat(r.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() != r.size {
		err = r.make()
	} else if err == nil {
		err = r.fs.SyncDir(filepath.Dir(r.path)) // who made it may not have come to that
	}
	if err != nil {
		return err
	}
	r.file, err = r.fs.OpenFile(r.path, os.O_RDWR|vfs.O_DSYNC, 0)
	return err
}

func (r *Recent) make() error {
	err := durable.Write(r.fs, r.path, make([]byte, r.size))
	if err == nil {
		return nil
	}
	if rerr := r.fs.Remove(r.path); !errors.Is(rerr, fs.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

// Close ends the use of the file, after that of all logs. When all of them are on disk nothing in it counts any more.
func (r *Recent) Close() error {
	r.background.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil {
		return nil
	}
	var err error
	if !r.off && len(r.half[0].logs)+len(r.half[1].logs) == 0 {
		err = r.empty()
	}
	err = errors.Join(err, r.file.Close())
	r.file = nil
	return err
}

// empty makes an end of the records in both halves, durably. r.mu is held.
func (r *Recent) empty() error {
	for half := range int64(2) {
		if err := writeAllAt(r.file, make([]byte, recordAlign), half*r.size/2); err != nil {
			return fmt.Errorf("empty the file of recent entries: %w", err)
		}
	}
	return nil
}

func align(n int64) int64 { return (n + recordAlign - 1) / recordAlign * recordAlign }

func appendRecord(buf []byte, gen, seq, id uint64, e Entry, b []byte) []byte {
	start := len(buf)
	buf = append(buf, recordMagic...)
	for _, v := range []uint64{gen, seq, id, e.Min, e.Max, uint64(len(b))} {
		buf = binary.BigEndian.AppendUint64(buf, v)
	}
	sum := crc32.Update(crc32.Checksum(buf[start:], crc32c), crc32c, b)
	return append(binary.BigEndian.AppendUint32(buf, sum), b...)
}

func writeAllAt(f vfs.File, b []byte, at int64) error {
	n, err := f.WriteAt(b, at)
	if err == nil && n < len(b) {
		err = fmt.Errorf("write %s: %d bytes of %d", f.Name(), n, len(b))
	}
	return err
}
