package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/litefs/litefs/internal/archive"
	"github.com/litefs/litefs/internal/durable"
	"github.com/litefs/litefs/internal/objstore"
	"github.com/litefs/litefs/internal/pagesum"
)

// Progress is told how many bytes of the objects have been read.
type Progress func(done, total int64)

// DamagedError says that an object is missing or damaged. It matches its cause.
type DamagedError struct {
	Object archive.Object
	Key    string
	Err    error
	Next   *Moment // the newest moment before the one that was asked for that does without it; nil: none
}

func (e *DamagedError) Error() string {
	s := fmt.Sprintf("object %s: %v", e.Key, e.Err)
	if e.Next != nil {
		return fmt.Sprintf("%s; without it there is %s", s, e.Next)
	}
	return s + "; without it no moment before can be made"
}
func (e *DamagedError) Unwrap() error { return e.Err }

// Result is what a restore has made.
type Result struct {
	Moment
	Objects int
	Read    int64  // bytes of objects
	Sum     uint64 // rolling checksum of the file
	Skipped []string
}

// Restore makes a moment the content of the file at path, which must not exist. An object that is
// missing or damaged is done without where others hold the same (Result.Skipped names it); else the
// error is a DamagedError.
func (h *History) Restore(ctx context.Context, m Moment, path string, progress Progress) (got Result, err error) {
	if _, err := os.Lstat(path); err == nil {
		return got, fmt.Errorf("%s exists: choose another file, or remove it", path)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return got, err
	}
	// A -wal or journal that lies there would be taken for the new file's.
	for _, suffix := range []string{"-wal", "-shm", "-journal"} {
		if _, err := os.Lstat(path + suffix); err == nil {
			return got, fmt.Errorf("%s would be taken for the restored database's: remove it first", path+suffix)
		}
	}
	write := func(f *os.File) (err error) {
		if got, err = h.write(ctx, m, f, progress); err != nil {
			return err
		}
		return f.Chmod(0o644)
	}
	// A link and not a rename: a file that came to be there meanwhile is not replaced.
	err = durable.Put(path, "."+filepath.Base(path)+".*.tmp", write, durable.Link)
	return got, err
}

// write tries plan after plan, without the objects that turn out to be damaged.
func (h *History) write(ctx context.Context, m Moment, f *os.File, progress Progress) (Result, error) {
	left := slices.Clone(h.Objects)
	var skipped []string
	for {
		plan, err := archive.Plan(left, m.N)
		if err != nil {
			return Result{}, err
		}
		w := newWriter(f)
		err = w.apply(ctx, h, plan, progress)
		var damaged *DamagedError
		if errors.As(err, &damaged) {
			left = slices.DeleteFunc(left, func(o archive.Object) bool { return o == damaged.Object })
			if _, perr := archive.Plan(left, m.N); perr == nil {
				skipped = append(skipped, fmt.Sprintf("%s: %v", damaged.Key, damaged.Err))
				continue
			}
			damaged.Next = h.before(ctx, left, m.N)
			return Result{}, err
		}
		if err != nil {
			return Result{}, err
		}
		sum, err := w.finish()
		if err != nil {
			return Result{}, err
		}
		if m.State.Known() && sum != m.State.Sum {
			return Result{}, fmt.Errorf("%w: the pages of moment %d give checksum %016x, the database had %016x", archive.ErrCorrupt, m.N, sum, m.State.Sum)
		}
		got := Result{Moment: m, Objects: len(plan), Sum: sum, Skipped: skipped}
		for _, o := range plan {
			got.Read += o.Size
		}
		return got, nil
	}
}

// before is the newest moment before n that some objects make.
func (h *History) before(ctx context.Context, objects []archive.Object, n uint64) *Moment {
	moments := archive.Moments(objects)
	i, _ := slices.BinarySearch(moments, n)
	for i--; i >= 0; i-- {
		if got, err := h.header(ctx, moments[i]); err == nil {
			return &Moment{moments[i], got}
		}
	}
	return nil
}

// Bounds of a restore.
const (
	ahead     = 8         // small objects that are fetched before they are needed
	small     = 1 << 20   // bytes of a small object
	batchSize = 256 << 10 // bytes of pages that are hashed and written at once
	batches   = 8
	hashers   = 2
	patience  = 2 * time.Minute // for one small object
)

// writer writes pages of objects into a file, and knows the checksum of each.
type writer struct {
	f        *os.File
	pageSize uint32
	sums     []uint64 // by page number - 1; 0: never written
	free     chan *batch
}

// batch is pages that follow each other.
type batch struct {
	pgno uint32 // of the first
	data []byte
}

func newWriter(f *os.File) *writer {
	w := &writer{f: f, free: make(chan *batch, batches)}
	for range batches {
		w.free <- &batch{data: make([]byte, 0, batchSize)}
	}
	return w
}

// apply writes the objects of a plan, one after the other: a later one's pages go over those before.
func (w *writer) apply(ctx context.Context, h *History, plan []archive.Object, progress Progress) error {
	if err := w.f.Truncate(0); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var total, done int64
	for _, o := range plan {
		total += o.Size
	}
	fetched := h.fetchAhead(ctx, plan)
	defer fetched.wait()
	defer cancel() // before the wait
	for i, o := range plan {
		r, err := fetched.open(ctx, i)
		if err == nil {
			counted := &countingReader{Reader: r, report: func(n int64) {
				if progress != nil {
					progress(done+n, total)
				}
			}}
			err = errors.Join(w.applyOne(ctx, counted, o, h.Ours()), r.Close())
		}
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, archive.ErrCorrupt) || errors.Is(err, objstore.ErrNotFound):
			return &DamagedError{Object: o, Key: h.Key(o), Err: err}
		default:
			return fmt.Errorf("object %s: %w", h.Key(o), err)
		}
		done += o.Size
	}
	return nil
}

// applyOne writes the pages of one object. Hashing and writing go on beside the reading; they have ended
// when it returns.
func (w *writer) applyOne(ctx context.Context, r io.Reader, o archive.Object, ours bool) error {
	in, err := archive.NewReader(r, ours)
	if err != nil {
		return err
	}
	if in.Header.Min != o.Min || in.Header.Max != o.Max {
		return fmt.Errorf("%w: its header says moments %d to %d", archive.ErrCorrupt, in.Header.Min, in.Header.Max)
	}
	if w.pageSize == 0 {
		w.pageSize = in.Header.PageSize
	}
	if in.Header.PageSize != w.pageSize {
		return fmt.Errorf("%w: pages of %d bytes, those before have %d", archive.ErrCorrupt, in.Header.PageSize, w.pageSize)
	}
	if err := w.resize(int(in.Header.Commit)); err != nil {
		return err
	}
	full := make(chan *batch, batches)
	work, ctx := errgroup.WithContext(ctx)
	for range hashers {
		work.Go(func() error {
			var err error
			for b := range full {
				if err == nil {
					err = w.put(b)
				}
				b.data = b.data[:0]
				w.free <- b // has room for all
			}
			return err
		})
	}
	work.Go(func() error {
		defer close(full)
		return w.collect(ctx, in, full)
	})
	return work.Wait()
}

// collect gives the pages of an object to full, in batches.
func (w *writer) collect(ctx context.Context, in *archive.Reader, full chan<- *batch) error {
	var now *batch
	defer func() {
		if now != nil {
			full <- now // as many as there are batches fit
		}
	}()
	for {
		pgno, data, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if now != nil && (now.pgno+uint32(len(now.data))/w.pageSize != pgno || len(now.data)+len(data) > batchSize) {
			full <- now
			now = nil
		}
		if now == nil {
			select {
			case now = <-w.free:
				now.pgno = pgno
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		now.data = append(now.data, data...)
	}
}

// put hashes and writes a batch.
func (w *writer) put(b *batch) error {
	size := int(w.pageSize)
	for i := 0; i < len(b.data); i += size {
		pgno := b.pgno + uint32(i/size)
		w.sums[pgno-1] = pagesum.Page(pgno, b.data[i:i+size])
	}
	_, err := w.f.WriteAt(b.data, int64(b.pgno-1)*int64(size))
	return err
}

// resize cuts pages off, or makes room for sums.
func (w *writer) resize(pages int) error {
	if pages < len(w.sums) {
		w.sums = w.sums[:pages]
		return w.f.Truncate(int64(pages) * int64(w.pageSize))
	}
	w.sums = append(w.sums, make([]uint64, pages-len(w.sums))...)
	return nil
}

// finish gives the file its size and returns the checksum of its pages.
func (w *writer) finish() (uint64, error) {
	sum := uint64(1) << 63
	for _, s := range w.sums {
		sum ^= s &^ (1 << 63)
	}
	return sum, w.f.Truncate(int64(len(w.sums)) * int64(w.pageSize))
}

// fetched are the objects of a plan on their way.
type fetched struct {
	h     *History
	plan  []archive.Object
	small []chan fetchedOne // nil for those that are read as they come
	slots chan struct{}     // taken from the request of a small one until its use
	work  sync.WaitGroup
}

type fetchedOne struct {
	data []byte
	err  error
}

// fetchAhead fetches the small objects of a plan, a few at a time and in order.
func (h *History) fetchAhead(ctx context.Context, plan []archive.Object) *fetched {
	f := &fetched{h: h, plan: plan, small: make([]chan fetchedOne, len(plan)), slots: make(chan struct{}, ahead)}
	for i, o := range plan {
		if o.Size <= small {
			f.small[i] = make(chan fetchedOne, 1)
		}
	}
	f.work.Go(func() {
		for i, o := range plan {
			if f.small[i] == nil {
				continue
			}
			select {
			case f.slots <- struct{}{}:
			case <-ctx.Done():
				f.small[i] <- fetchedOne{err: ctx.Err()}
				continue
			}
			f.work.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, patience)
				defer cancel()
				data, _, err := objstore.ReadAll(ctx, h.store, h.Key(o), small)
				f.small[i] <- fetchedOne{data, err}
			})
		}
	})
	return f
}

func (f *fetched) open(ctx context.Context, i int) (io.ReadCloser, error) {
	if f.small[i] == nil {
		o, err := f.h.store.Get(ctx, f.h.Key(f.plan[i]), objstore.Range{})
		if err != nil {
			return nil, err
		}
		return o.Body, nil
	}
	got := <-f.small[i]
	select {
	case <-f.slots:
	default: // it had none: the context has ended
	}
	return io.NopCloser(bytes.NewReader(got.data)), got.err
}

func (f *fetched) wait() { f.work.Wait() }

// countingReader reports how many bytes have been read.
type countingReader struct {
	io.Reader
	n      int64
	report func(n int64)
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.n += int64(n)
	c.report(c.n)
	return n, err
}
