package litefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/litefs/litefs/internal/pagesum"
	"github.com/litefs/litefs/sqlitefile"
)

// A base is read from a database while transactions go on, with no copy and no
// lock that anybody could feel: a page is proved by its checksum on record, so
// it is as some transaction after the base began has left it, and the log from
// there on makes one state of all pages. What could not be proved (a frame that
// is not in the file yet, a transaction under way) is read again at the end.

// minBase is the size in bytes below which a database is always sent as its log.
const minBase = 1 << 20

// BaseReader gives the pages of a base. It is for one goroutine.
type BaseReader interface {
	// Start describes the base. DBID is that of the database.
	Start() BaseStreamFrame

	// Next returns the next pages, valid until the next call, or false when
	// none are ready: the notify function of Base is called when there are.
	Next() (BaseRun, bool)

	// Close ends the reading and waits for its end.
	Close() error
}

// BaseRun is a part of a base.
type BaseRun struct {
	Pgno uint32 // first page of Data
	Data []byte // whole pages; empty: the base has ended

	End uint64 // with the end: the position up to which the log is needed
	Err error  // with the end: why the base cannot be completed
}

// errNoBase says that the log is the better way, or the only one.
var errNoBase = errors.New("the log is sent")

// Base begins a base for a replica that has nothing of the database, or
// continues one that began at pos from page next on, if the log still leads on
// from there; Start tells which. nil: the replica is to get the log. notify is
// called, from any goroutine, when Next has something new.
func (db *DB) Base(ctx context.Context, pos Pos, next uint32, notify func()) (BaseReader, error) {
	start, err := db.startBase(pos, next)
	if errors.Is(err, errNoBase) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("base: %w", err)
	}
	f, err := os.Open(db.DatabasePath())
	if err != nil {
		return nil, fmt.Errorf("base: %w", err)
	}
	b := &baseReader{db: db, start: start, file: f, notify: notify, full: make(chan *baseBuffer, baseBuffers+1), free: make(chan *baseBuffer, baseBuffers)}
	for range baseBuffers {
		b.free <- &baseBuffer{data: make([]byte, baseRunSize/int(start.PageSize)*int(start.PageSize))}
	}
	ctx, b.cancel = context.WithCancel(ctx)
	b.work.Go(func() { b.run(ctx) })
	return b, nil
}

// startBase decides where a base begins.
func (db *DB) startBase(pos Pos, next uint32) (BaseStreamFrame, error) {
	// Not under db.mu, which a commit holds that waits for replicas: their streams must go on meanwhile.
	if db.ended.Load() {
		return BaseStreamFrame{}, ErrDatabaseNotFound
	}
	head, ok := db.txlog.Head()
	if !ok || head.Max < 2 || db.unproved.Load() {
		return BaseStreamFrame{}, errNoBase
	}
	start := BaseStreamFrame{
		DBID: db.id, Pos: Pos{TXID: head.Max, Chksum: head.Post}, Epoch: head.Epoch,
		UnixMilli: head.Timestamp.UnixMilli(), PageSize: head.PageSize, Count: head.Commit, First: 1,
	}
	if e, ok := db.txlog.Find(pos.TXID); ok && e.Max == pos.TXID && e.Post == pos.Chksum && e.PageSize == head.PageSize && next > 0 {
		start.Pos, start.Count, start.First = pos, e.Commit, next
		start.Epoch, start.UnixMilli = e.Epoch, e.Timestamp.UnixMilli()
		return start, nil
	}
	size := int64(head.Commit) * int64(head.PageSize)
	if size < minBase {
		return BaseStreamFrame{}, errNoBase
	}
	// A log from the first transaction on that is much smaller than the
	// database is the quicker way; usually it is the larger one.
	if tail, _ := db.txlog.Tail(); tail.Min == 1 {
		var log int64
		for _, e := range db.txlog.Entries() {
			log += e.Size
		}
		if log < size/4 {
			return BaseStreamFrame{}, errNoBase
		}
	}
	return start, nil
}

const (
	baseRunSize = 1 << 20 // bytes read and proved at a time
	baseBuffers = 4       // runs in memory for one base

	// basePatience bounds the wait for a transaction that keeps pages from
	// being proved.
	basePatience = time.Minute
)

// baseReader is a BaseReader. Its goroutine is ahead of Next by the buffers.
type baseReader struct {
	db     *DB
	start  BaseStreamFrame
	file   *os.File
	notify func()
	cancel context.CancelFunc
	work   sync.WaitGroup

	full chan *baseBuffer // has room for all buffers and the end
	free chan *baseBuffer
	now  *baseBuffer // whose runs Next returns; nil: none

	missing []uint32 // pages that could not be proved, ascending
}

// baseBuffer is pages that were read together, and which of them are proved.
type baseBuffer struct {
	data []byte
	runs []BaseRun // parts of data, or the end
}

func (b *baseReader) Start() BaseStreamFrame { return b.start }

func (b *baseReader) Next() (BaseRun, bool) {
	if b.now != nil && len(b.now.runs) == 0 {
		b.free <- b.now // has room for all
		b.now = nil
	}
	if b.now == nil {
		select {
		case b.now = <-b.full:
		default:
			return BaseRun{}, false
		}
	}
	r := b.now.runs[0]
	b.now.runs = b.now.runs[1:]
	return r, true
}

func (b *baseReader) Close() error {
	b.cancel()
	b.work.Wait()
	return b.file.Close()
}

// run reads all pages, and tells the end.
func (b *baseReader) run(ctx context.Context) {
	end := BaseRun{}
	end.Err = b.readFile(ctx)
	if end.Err == nil {
		end.End, end.Err = b.readMissing(ctx)
	}
	b.full <- &baseBuffer{runs: []BaseRun{end}}
	b.notify()
}

// buffer returns a buffer that is not in use.
func (b *baseReader) buffer(ctx context.Context) (*baseBuffer, error) {
	select {
	case buf := <-b.free:
		buf.runs = buf.runs[:0]
		return buf, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// give hands the proved pages of a buffer to Next.
func (b *baseReader) give(buf *baseBuffer) {
	if len(buf.runs) == 0 {
		b.free <- buf
		return
	}
	b.full <- buf
	b.notify()
}

// add notes that page pgno is proved; it is the i-th of the buffer.
func (b *baseReader) add(buf *baseBuffer, pgno uint32, i int) {
	size := int(b.start.PageSize)
	if n := len(buf.runs); n > 0 {
		last := &buf.runs[n-1]
		if last.Pgno+uint32(len(last.Data)/size) == pgno && cap(last.Data)-len(last.Data) >= size {
			last.Data = last.Data[:len(last.Data)+size]
			return
		}
	}
	buf.runs = append(buf.runs, BaseRun{Pgno: pgno, Data: buf.data[i*size : (i+1)*size]})
}

// proved reports whether a page is what the record says.
func (b *baseReader) proved(pgno uint32, page []byte) bool {
	sum := b.db.sums.Get(pgno)
	return sum != 0 && pagesum.Page(pgno, page) == sum
}

// miss leaves a page for later. The lock page never has content.
func (b *baseReader) miss(pgno uint32) {
	if pgno != sqlitefile.LockPgno(b.start.PageSize) {
		b.missing = append(b.missing, pgno)
	}
}

// readFile reads the database file from front to end. Pages that are not what
// the record says are left for later.
func (b *baseReader) readFile(ctx context.Context) error {
	size := int(b.start.PageSize)
	for pgno := b.start.First; pgno <= b.start.Count; {
		buf, err := b.buffer(ctx)
		if err != nil {
			return err
		}
		want := min(int64(len(buf.data)), int64(b.start.Count-pgno+1)*int64(size))
		n, err := b.file.ReadAt(buf.data[:want], int64(pgno-1)*int64(size))
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		// What the file does not have yet is in the write-ahead log.
		for i := range int(want) / size {
			if (i+1)*size <= n && b.proved(pgno, buf.data[i*size:(i+1)*size]) {
				b.add(buf, pgno, i)
			} else {
				b.miss(pgno)
			}
			pgno++
		}
		b.give(buf)
	}
	return nil
}

// readMissing reads the pages that are left where they are: in the write-ahead
// log, or in the file when a transaction has ended. It returns the position up
// to which the log is needed.
func (b *baseReader) readMissing(ctx context.Context) (uint64, error) {
	for deadline := time.Now().Add(basePatience); ; {
		if len(b.missing) == 0 {
			return b.end()
		}
		img, err := b.settle()
		if err != nil {
			return 0, err
		}
		err = b.readImage(ctx, img)
		if err = errors.Join(err, img.Close()); err != nil {
			return 0, err
		}
		if len(b.missing) == 0 {
			continue
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("page %d does not have its checksum on record: run `litefs verify`", b.missing[0])
		}
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// settle captures what there is, and returns the pages of it.
func (b *baseReader) settle() (*image, error) {
	db := b.db
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed {
		return nil, ErrDatabaseNotFound
	}
	if db.peer == nil && db.store.Role() != RoleReplica {
		if err := db.captureWAL(false); err != nil {
			return nil, err
		}
	}
	if ps := db.sums.PageSize(); ps != b.start.PageSize {
		return nil, fmt.Errorf("the page size has changed from %d to %d", b.start.PageSize, ps)
	}
	return db.openAppliedImage()
}

// end returns the position of the record. No page that was proved is newer:
// under db.mu the checksums are those of the position.
func (b *baseReader) end() (uint64, error) {
	b.db.mu.Lock()
	defer b.db.mu.Unlock()
	if b.db.closed {
		return 0, ErrDatabaseNotFound
	}
	return b.db.TXID(), nil
}

// readImage hands out the missing pages, and leaves those that still are. Pages
// that the database does not have any more are not missed.
func (b *baseReader) readImage(ctx context.Context, img *image) error {
	size := int(b.start.PageSize)
	missing := b.missing
	b.missing = nil
	for len(missing) > 0 {
		buf, err := b.buffer(ctx)
		if err != nil {
			return err
		}
		for i := 0; len(missing) > 0 && (i+1)*size <= len(buf.data); missing = missing[1:] {
			pgno, page := missing[0], buf.data[i*size:(i+1)*size]
			if pgno > b.db.sums.Count() {
				continue
			}
			// An error means that the write-ahead log was cut under the image.
			if err := img.readPage(pgno, page); err != nil || !b.proved(pgno, page) {
				b.miss(pgno)
				continue
			}
			b.add(buf, pgno, i)
			i++
		}
		b.give(buf)
	}
	return nil
}
