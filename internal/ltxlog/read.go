package ltxlog

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/pierrec/lz4/v4"
	"github.com/superfly/ltx"
)

// open opens the file of a listed entry. Files are removed only after they were taken from the
// list, so under the lock a listed entry has one.
func (l *Log) open(e Entry) (*entryFile, error) {
	f, err := l.openListed(e)
	if err != nil {
		return nil, err
	}
	if f.SectionReader, err = l.contentOf(f.stored, e); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (l *Log) openListed(e Entry) (*entryFile, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.mu.closed {
		return nil, ErrClosed
	}
	if have, ok := find(l.mu.entries, e.Min); !ok || have.Min != e.Min || have.Max != e.Max || have.Post != e.Post {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, entryName(e.Min, e.Max))
	}
	f, err := l.openStored(e, l.mu.places[e.span()])
	if err != nil {
		return nil, err
	}
	name := entryName(e.Min, e.Max)
	l.readers.Lock()
	defer l.readers.Unlock()
	if l.readers.open == nil {
		l.readers.open = map[string]int{}
	}
	l.readers.open[name]++
	return &entryFile{stored: f, log: l, name: name}, nil
}

// contentOf opens what a file has of an entry that is known.
func (l *Log) contentOf(stored io.ReaderAt, e Entry) (*io.SectionReader, error) {
	r, err := l.form.open(stored, nil, e.Size, e.Max)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", entryName(e.Min, e.Max), err)
	}
	return io.NewSectionReader(r, 0, e.Size), nil
}

// entryFile is the content of an entry whose file is open, counted in readers until it is closed.
type entryFile struct {
	*io.SectionReader
	stored storedFile // as it lies on the disk
	log    *Log
	name   string
	once   sync.Once
}

func (f *entryFile) Close() error {
	err := f.stored.Close()
	f.once.Do(func() {
		r := &f.log.readers
		r.Lock()
		defer r.Unlock()
		if r.open[f.name]--; r.open[f.name] == 0 {
			delete(r.open, f.name)
		}
	})
	return err
}

func (l *Log) beingRead(name string) bool {
	l.readers.Lock()
	defer l.readers.Unlock()
	return l.readers.open[name] > 0
}

// OpenEntry returns the bytes of an entry (e.Size of them), which stay readable when the entry is
// retired meanwhile. ErrNotFound: it was removed, merged or replaced; ask the list again.
func (l *Log) OpenEntry(e Entry) (io.ReadCloser, error) {
	f, err := l.open(e)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Pages calls fn for every page of an entry in ascending order, after the whole entry was
// verified: ErrCorrupt before the first call, or never. data is valid until fn returns.
func (l *Log) Pages(e Entry, fn func(pgno uint32, data []byte) error) (err error) {
	if b, ok := l.Live(e); ok {
		return l.pagesOfSmall(bytes.NewReader(b), e, fn)
	}
	f, err := l.open(e)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if e.Size <= int64(l.spill) {
		return l.pagesOfSmall(f, e, fn)
	}
	if err := l.checkEntry(f, e); err != nil {
		return err
	}
	_, err = l.buffers.decode(f, e.Size, nil, func(f frame) error { return fn(f.pgno, f.data) })
	return err
}

// maxArena is how many bytes of pages are kept while an entry is being verified; the pages of an
// entry that has more are decompressed a second time.
const maxArena = 2 << 20

// pagesOfSmall is Pages for an entry that fits in memory: one read, and most often one decoding.
func (l *Log) pagesOfSmall(f io.ReaderAt, e Entry, fn func(pgno uint32, data []byte) error) error {
	d := l.buffers.decoder(nil, e.Size)
	defer l.buffers.putDecoder(d)
	d.raw = resize(d.raw, int(e.Size))
	if err := readFull(f, d.raw, 0); err != nil {
		return fmt.Errorf("read %s: %w", entryName(e.Min, e.Max), err)
	}
	var pgnos []uint32
	d.arena = d.arena[:0]
	whole := true
	d.r.Reset(bytes.NewReader(d.raw))
	got, err := d.decode(nil, func(f frame) error {
		if whole = whole && len(d.arena)+len(f.data) <= maxArena; whole {
			pgnos = append(pgnos, f.pgno)
			d.arena = append(d.arena, f.data...)
		}
		return nil
	})
	if err := isEntry(e, got, err); err != nil {
		return err
	}
	if !whole {
		_, err := l.buffers.decode(bytes.NewReader(d.raw), e.Size, nil, func(f frame) error { return fn(f.pgno, f.data) })
		return err
	}
	for i, pgno := range pgnos {
		if err := fn(pgno, d.arena[i*int(e.PageSize):][:e.PageSize]); err != nil {
			return err
		}
	}
	return nil
}

// checkEntry verifies the content and that it is the entry listed.
func (l *Log) checkEntry(src io.ReaderAt, e Entry) error {
	got, err := l.buffers.decode(io.NewSectionReader(src, 0, e.Size), e.Size, nil, nil)
	return isEntry(e, got, err)
}

func isEntry(e, got Entry, err error) error {
	if err == nil && got != e {
		err = corrupt("content is of %s with checksums %016x, %016x, want %016x, %016x",
			entryName(got.Min, got.Max), got.Pre, got.Post, e.Pre, e.Post)
	}
	if err != nil {
		return fmt.Errorf("verify %s: %w", entryName(e.Min, e.Max), err)
	}
	return nil
}

// Verify reads an entry completely. ErrCorrupt: the content is damaged.
func (l *Log) Verify(e Entry) (err error) {
	f, err := l.open(e)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return l.checkEntry(f, e)
}

// verify is Verify for an entry that need not be listed.
func (l *Log) verify(e Entry, where place) (err error) {
	f, err := l.openStored(e, where)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	content, err := l.contentOf(f, e)
	if err != nil {
		return err
	}
	return l.checkEntry(content, e)
}

// Page returns one page of an entry, found by the entry's index; false when the entry does not
// have it. Only this page is read, so the checksum of the file is not verified.
func (l *Log) Page(e Entry, pgno uint32) (data []byte, ok bool, err error) {
	f, err := l.open(e)
	if err != nil {
		return nil, false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	data, ok, err = readPage(f, e, pgno)
	if err != nil {
		return nil, false, fmt.Errorf("page %d of %s: %w", pgno, entryName(e.Min, e.Max), err)
	}
	return data, ok, nil
}

func readPage(f io.ReaderAt, e Entry, pgno uint32) ([]byte, bool, error) {
	offset, size, ok, err := findFrame(f, e, pgno)
	if err != nil || !ok {
		return nil, false, err
	}
	limit := int64(framePrefix + lz4.CompressBlockBound(int(e.PageSize)))
	if size <= framePrefix || size > limit || offset < ltx.HeaderSize || offset > e.Size-size {
		return nil, false, corrupt("index has it at byte %d, %d bytes", offset, size)
	}
	b := make([]byte, size)
	if err := readFull(f, b, offset); err != nil {
		return nil, false, err
	}
	var ph ltx.PageHeader
	if err := ph.UnmarshalBinary(b); err != nil {
		return nil, false, err
	}
	if ph.Pgno != pgno || ph.Flags != ltx.PageHeaderFlagSize || int64(binary.BigEndian.Uint32(b[ltx.PageHeaderSize:])) != size-framePrefix {
		return nil, false, corrupt("no such page at byte %d", offset)
	}
	data := make([]byte, e.PageSize)
	if err := decompress(data, b[framePrefix:]); err != nil {
		return nil, false, corrupt("%w", err)
	}
	return data, true, nil
}

// findFrame looks a page up in the index, reading it as a stream: it has 10 bytes a page.
func findFrame(f io.ReaderAt, e Entry, pgno uint32) (offset, size int64, ok bool, err error) {
	var b [8]byte
	end := e.Size - ltx.TrailerSize - int64(len(b))
	if err := readFull(f, b[:], end); err != nil {
		return 0, 0, false, err
	}
	length := binary.BigEndian.Uint64(b[:])
	if length > uint64(max(end-ltx.HeaderSize, 0)) {
		return 0, 0, false, corrupt("index has %d bytes", length)
	}
	r := bufio.NewReaderSize(io.NewSectionReader(f, end-int64(length), int64(length)), 16<<10)
	for {
		var rec [3]uint64
		for i := range rec {
			if rec[i], err = binary.ReadUvarint(r); err != nil {
				return 0, 0, false, corrupt("index: %w", err)
			}
			if rec[0] == 0 || rec[0] > uint64(pgno) {
				return 0, 0, false, nil
			}
		}
		if rec[0] == uint64(pgno) {
			if rec[1] > uint64(e.Size) || rec[2] > uint64(e.Size) {
				return 0, 0, false, corrupt("index has page %d at byte %d, %d bytes", pgno, rec[1], rec[2])
			}
			return int64(rec[1]), int64(rec[2]), true, nil
		}
	}
}

// readFull reads exactly b; a file that ends before is ErrCorrupt.
func readFull(f io.ReaderAt, b []byte, offset int64) error {
	if offset < 0 {
		return corrupt("file is too short")
	}
	n, err := f.ReadAt(b, offset)
	if n == len(b) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return corrupt("file ends at byte %d", offset+int64(n))
	}
	return err
}
