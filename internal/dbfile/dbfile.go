// Package dbfile is a SQLite database as one file that nobody has open: what an
// import begins with and an export leaves behind.
package dbfile

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/litefs/litefs/internal/pagesum"
	"github.com/litefs/litefs/sqlitefile"
)

// ErrNoImage is a file that is no whole database.
var ErrNoImage = errors.New("not a whole SQLite database")

// Progress is told how many of total bytes are done. nil: nobody wants to know.
type Progress func(done, total int64)

func (p Progress) report(done, total int64) {
	if p != nil {
		p(done, total)
	}
}

// Image is a database file that has a header and a size that go together.
type Image struct {
	r    io.ReaderAt
	hdr  sqlitefile.Header
	size int64 // bytes; a multiple of the page size, not 0

	old *sqlitefile.Header // of the database whose place it takes; nil: of none
}

// Open looks at the header of a file of size bytes. A file that is cut off, or
// longer than its database, is ErrNoImage.
func Open(r io.ReaderAt, size int64) (*Image, error) {
	b := make([]byte, sqlitefile.HeaderSize)
	n, err := r.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	hdr, err := sqlitefile.ParseHeader(b[:n])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoImage, err)
	}
	im := &Image{r: r, hdr: hdr, size: size}
	want := int64(hdr.Pages(size)) * int64(hdr.PageSize)
	if want != size || size == 0 {
		return nil, fmt.Errorf("%w: %d bytes, the header says %d pages of %d bytes: it was cut off, or not all of it is in the file",
			ErrNoImage, size, hdr.Pages(size), hdr.PageSize)
	}
	return im, nil
}

// OpenFile opens the database at path, which nobody may have open: a journal or
// a write-ahead log beside it has a part of it. The caller closes the file.
func OpenFile(path string) (*Image, *os.File, error) {
	for _, suffix := range []string{"-journal", "-wal"} {
		if fi, err := os.Stat(path + suffix); err == nil && fi.Size() > 0 {
			return nil, nil, fmt.Errorf("%s has a part of the database: close all that has it open, or copy it with sqlite3 %s \".backup COPY\"", path+suffix, path)
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%w: it is no regular file", ErrNoImage)
	}
	var im *Image
	if err == nil {
		im, err = Open(f, fi.Size())
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return im, f, nil
}

// Header returns the header of the database as it is in the file.
func (im *Image) Header() sqlitefile.Header { return im.hdr }

// Size returns the bytes of the file.
func (im *Image) Size() int64 { return im.size }

// PageCount returns the size of the database in pages.
func (im *Image) PageCount() uint32 { return uint32(im.size / int64(im.hdr.PageSize)) }

// Replace makes Pages yield a database that can take the place of the one with
// the header old under open connections; see sqlitefile.Succeed.
func (im *Image) Replace(old sqlitefile.Header) { im.old = &old }

// Pages yields every page in ascending order, without the lock page. The data is
// valid until yield returns.
func (im *Image) Pages(yield func(pgno uint32, data []byte) error) error {
	in := bufio.NewReaderSize(io.NewSectionReader(im.r, 0, im.size), 1<<20)
	page := make([]byte, im.hdr.PageSize)
	for pgno := uint32(1); pgno <= im.PageCount(); pgno++ {
		if _, err := io.ReadFull(in, page); err != nil {
			return fmt.Errorf("page %d: %w", pgno, err)
		}
		if pgno == 1 && im.old != nil {
			sqlitefile.Succeed(page, *im.old, im.PageCount())
		}
		if pgno == sqlitefile.LockPgno(im.hdr.PageSize) {
			continue
		}
		if err := yield(pgno, page); err != nil {
			return err
		}
	}
	return nil
}

// Check reads all that the database points to: ErrNoImage if it is not as SQLite
// writes it.
func (im *Image) Check(ctx context.Context) error {
	page := make([]byte, im.hdr.PageSize)
	_, err := sqlitefile.Check(func(pgno uint32) ([]byte, error) {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		if _, err := im.r.ReadAt(page, int64(pgno-1)*int64(im.hdr.PageSize)); err != nil {
			return nil, fmt.Errorf("page %d: %w", pgno, err)
		}
		return page, nil
	}, im.PageCount())
	if errors.Is(err, sqlitefile.ErrTree) {
		return fmt.Errorf("%w: %w: see what PRAGMA integrity_check says of it", ErrNoImage, err)
	}
	return err
}

// Checksum reads the whole file: the checksum of all its pages, as a position has it.
func (im *Image) Checksum(ctx context.Context, progress Progress) (sum uint64, err error) {
	done := int64(0)
	err = im.Pages(func(pgno uint32, data []byte) error {
		sum ^= pagesum.Page(pgno, data)
		done += int64(len(data))
		progress.report(done, im.size)
		return context.Cause(ctx)
	})
	return sum | flag, err
}

// flag is set in every checksum of LTX, so that none is 0.
const flag = 1 << 63

// Copy copies a database of size bytes from r to w, and compares the checksum of
// its pages with want. What it has written is worth nothing after an error.
func Copy(w io.Writer, r io.Reader, size int64, want uint64, progress Progress) error {
	in, out := bufio.NewReaderSize(r, 1<<20), bufio.NewWriterSize(w, 1<<20)
	header, err := in.Peek(int(min(size, sqlitefile.HeaderSize)))
	if err != nil {
		return fmt.Errorf("broken off before the first page: %w", err)
	}
	if size == 0 {
		return nil
	}
	hdr, err := sqlitefile.ParseHeader(header)
	if err != nil {
		return err
	}
	if size%int64(hdr.PageSize) != 0 {
		return fmt.Errorf("%w: %d bytes are no database with pages of %d", ErrNoImage, size, hdr.PageSize)
	}
	page := make([]byte, hdr.PageSize)
	var sum uint64
	for pgno, done := uint32(1), int64(0); done < size; pgno++ {
		if _, err := io.ReadFull(in, page); err != nil {
			return fmt.Errorf("broken off at page %d: %w", pgno, err)
		}
		if pgno != sqlitefile.LockPgno(hdr.PageSize) {
			sum ^= pagesum.Page(pgno, page)
		}
		if _, err := out.Write(page); err != nil {
			return err
		}
		done += int64(len(page))
		progress.report(done, size)
	}
	if sum |= flag; sum != want {
		return fmt.Errorf("checksum of the pages is %016x, want %016x: try again, and see litefs verify on the node", sum, want)
	}
	return out.Flush()
}
