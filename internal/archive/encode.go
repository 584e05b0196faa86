package archive

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/pierrec/lz4/v4"
	"github.com/superfly/ltx"

	"github.com/litefs/litefs/internal/isocrc"
)

// Writer makes one object. ltx.Encoder is not used because it writes pages in a form that Litestream
// before 0.5.16 refuses.
type Writer struct {
	w     io.Writer
	h     Header
	lock  uint32 // the page that no database uses
	have  uint32 // pages that whoever reads the object has already
	prev  uint32
	n     int64
	crc   uint64
	index []byte
	zero  []byte

	buf bytes.Buffer
	lz4 *lz4.Writer
}

// NewWriter begins an object on w, which is best buffered. have is how many pages the database had, at
// the least, since the moment before the object: pages above it are in the object, whatever the caller
// gives. SQLite need not have written a page that a database grew by; it is zero then.
func NewWriter(w io.Writer, h Header, have uint32) (*Writer, error) {
	hdr := h.ltx()
	if err := hdr.Validate(); err != nil {
		return nil, fmt.Errorf("encode an object of an archive: %w", err)
	}
	if h.Commit == 0 || !h.State.Known() {
		return nil, fmt.Errorf("encode an object of an archive: %d pages at %x/%016x", h.Commit, h.State.TXID, h.State.Sum)
	}
	if h.Min == 1 {
		have = 0
	}
	e := &Writer{w: w, h: h, lock: ltx.LockPgno(h.PageSize), have: have, lz4: lz4.NewWriter(nil)}
	err := e.lz4.Apply(lz4.BlockSizeOption(lz4.Block64Kb), lz4.ConcurrencyOption(1), lz4.ChecksumOption(true))
	if err != nil {
		return nil, err
	}
	b, err := hdr.MarshalBinary()
	if err != nil {
		return nil, err
	}
	return e, e.write(b)
}

// write writes bytes that are hashed as they are.
func (e *Writer) write(b []byte) error {
	e.crc = isocrc.Update(e.crc, b)
	return e.raw(b)
}

func (e *Writer) raw(b []byte) error {
	n, err := e.w.Write(b)
	e.n += int64(n)
	return err
}

// Page adds a page. Numbers ascend; the lock page and pages behind the end are left out.
func (e *Writer) Page(pgno uint32, data []byte) error {
	if pgno <= e.prev || len(data) != int(e.h.PageSize) {
		return fmt.Errorf("encode an object of an archive: page %d of %d bytes after page %d of %d", pgno, len(data), e.prev, e.h.PageSize)
	}
	if pgno == e.lock || pgno > e.h.Commit {
		return nil
	}
	if err := e.fill(pgno); err != nil {
		return err
	}
	return e.page(pgno, data)
}

// fill adds the pages before pgno that the object must have and nobody gave.
func (e *Writer) fill(pgno uint32) error {
	for p := max(e.prev, e.have) + 1; p < pgno; p++ {
		if p == e.lock {
			continue
		}
		if e.zero == nil {
			e.zero = make([]byte, e.h.PageSize)
		}
		if err := e.page(p, e.zero); err != nil {
			return err
		}
	}
	return nil
}

func (e *Writer) page(pgno uint32, data []byte) error {
	var hdr [ltx.PageHeaderSize]byte
	binary.BigEndian.PutUint32(hdr[:], pgno)
	offset := e.n
	if err := e.write(hdr[:]); err != nil {
		return err
	}
	e.buf.Reset()
	e.lz4.Reset(&e.buf)
	if _, err := e.lz4.Write(data); err != nil {
		return fmt.Errorf("compress page %d: %w", pgno, err)
	}
	if err := e.lz4.Close(); err != nil {
		return fmt.Errorf("compress page %d: %w", pgno, err)
	}
	e.crc = isocrc.Update(e.crc, data)
	if err := e.raw(e.buf.Bytes()); err != nil {
		return err
	}
	e.index = binary.AppendUvarint(e.index, uint64(pgno))
	e.index = binary.AppendUvarint(e.index, uint64(offset))
	e.index = binary.AppendUvarint(e.index, uint64(e.n-offset))
	e.prev = pgno
	return nil
}

// Close ends the object and returns its size in bytes. It does not close what it was written to.
func (e *Writer) Close() (int64, error) {
	if err := e.fill(e.h.Commit + 1); err != nil {
		return 0, err
	}
	end := make([]byte, ltx.PageHeaderSize, ltx.PageHeaderSize+len(e.index)+1+8+ltx.TrailerSize)
	e.index = binary.AppendUvarint(e.index, 0)
	end = append(end, e.index...)
	end = binary.BigEndian.AppendUint64(end, uint64(len(e.index)))
	end = binary.BigEndian.AppendUint64(end, 0) // database checksum: none
	if err := e.write(end); err != nil {
		return 0, err
	}
	err := e.raw(binary.BigEndian.AppendUint64(nil, sumFlag|e.crc))
	return e.n, err
}
