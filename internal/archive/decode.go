package archive

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/pierrec/lz4/v4"
	"github.com/superfly/ltx"

	"github.com/litefs/litefs/internal/isocrc"
)

// Reader reads one object, page by page. What it gives is proved only when Next has returned io.EOF:
// then order, completeness, index and checksum are those of a whole object.
type Reader struct {
	Header Header

	r     *bufio.Reader
	hdr   ltx.Header
	lock  uint32
	prev  uint32
	n     int64 // bytes read
	crc   uint64
	block []byte
	data  []byte

	indexCRC uint64 // of the index that the pages ask for
	indexLen uint64
}

// NewReader reads the header. ours is ParseHeader's.
func NewReader(r io.Reader, ours bool) (*Reader, error) {
	d := &Reader{r: bufio.NewReaderSize(r, 256<<10)}
	b := make([]byte, HeaderSize)
	if err := d.readHashed(b, "header"); err != nil {
		return nil, err
	}
	var err error
	if d.hdr, d.Header, err = parseHeader(b, ours); err != nil {
		return nil, err
	}
	d.lock = ltx.LockPgno(d.hdr.PageSize)
	d.data = make([]byte, d.hdr.PageSize)
	d.block = make([]byte, lz4.CompressBlockBound(int(d.hdr.PageSize))+64)
	return d, nil
}

func (d *Reader) read(b []byte, what string) error {
	n, err := io.ReadFull(d.r, b)
	d.n += int64(n)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return corrupt("it ends at byte %d, in the %s", d.n, what)
	}
	if err != nil {
		return fmt.Errorf("read the %s at byte %d: %w", what, d.n, err)
	}
	return nil
}

func (d *Reader) readHashed(b []byte, what string) error {
	if err := d.read(b, what); err != nil {
		return err
	}
	d.crc = isocrc.Update(d.crc, b)
	return nil
}

// Next returns the next page, valid until the next call, or io.EOF when all was read and is right.
func (d *Reader) Next() (pgno uint32, data []byte, err error) {
	offset := d.n
	var b [ltx.PageHeaderSize]byte
	if err := d.readHashed(b[:], "page header"); err != nil {
		return 0, nil, err
	}
	var ph ltx.PageHeader
	if err := ph.UnmarshalBinary(b[:]); err != nil {
		return 0, nil, err
	}
	if ph.IsZero() {
		if err := d.end(); err != nil {
			return 0, nil, err
		}
		return 0, nil, io.EOF
	}
	if err := d.checkOrder(ph.Pgno); err != nil {
		return 0, nil, err
	}
	switch ph.Flags {
	case 0:
		err = d.readFrame()
	case ltx.PageHeaderFlagSize:
		err = d.readBlock()
	default:
		err = corrupt("flags %#x", ph.Flags)
	}
	if err != nil {
		return 0, nil, fmt.Errorf("page %d: %w", ph.Pgno, err)
	}
	d.crc = isocrc.Update(d.crc, d.data)
	d.prev = ph.Pgno
	var rec [3 * binary.MaxVarintLen64]byte
	index := binary.AppendUvarint(rec[:0], uint64(ph.Pgno))
	index = binary.AppendUvarint(index, uint64(offset))
	d.expectIndex(binary.AppendUvarint(index, uint64(d.n-offset)))
	return ph.Pgno, d.data, nil
}

func (d *Reader) checkOrder(pgno uint32) error {
	switch {
	case pgno <= d.prev:
		return corrupt("page %d follows page %d", pgno, d.prev)
	case pgno > d.hdr.Commit:
		return corrupt("page %d of a database of %d", pgno, d.hdr.Commit)
	case pgno == d.lock:
		return corrupt("page %d is the lock page", pgno)
	case d.hdr.IsSnapshot() && pgno != d.after(d.prev):
		return corrupt("page %d follows page %d where every page must be", pgno, d.prev)
	}
	return nil
}

// after is the page after pgno that a database uses.
func (d *Reader) after(pgno uint32) uint32 {
	if pgno+1 == d.lock {
		return pgno + 2
	}
	return pgno + 1
}

// readBlock reads a page that is one LZ4 block with its size in front.
func (d *Reader) readBlock() error {
	var b [4]byte
	if err := d.readHashed(b[:], "size of a page"); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(b[:])
	if size == 0 || int(size) > len(d.block) {
		return corrupt("%d bytes compressed", size)
	}
	if err := d.read(d.block[:size], "page"); err != nil {
		return err
	}
	return d.uncompress(d.block[:size])
}

func (d *Reader) uncompress(block []byte) error {
	n, err := lz4.UncompressBlock(block, d.data)
	if err != nil {
		return corrupt("%w", err)
	}
	if n != len(d.data) {
		return corrupt("%d bytes, want %d", n, len(d.data))
	}
	return nil
}

// Of an LZ4 frame (its format's specification): a descriptor, blocks, an end mark, a checksum.
const (
	frameMagic      = 0x184D2204
	frameDictionary = 1 << 0
	frameContentSum = 1 << 2
	frameSize       = 1 << 3
	frameBlockSum   = 1 << 4
	frameVersion    = 0b01 << 6
	blockStored     = 1 << 31
)

// readFrame reads a page that is an LZ4 frame. A page fits into the smallest blocks that frames have, so
// there is one block. lz4.Reader is not used because it cannot tell how much it will read. The frame's
// checksums are not looked at: that of the object covers the content.
func (d *Reader) readFrame() error {
	var b [15]byte
	if err := d.read(b[:7], "LZ4 frame"); err != nil {
		return err
	}
	flags := b[4]
	if binary.LittleEndian.Uint32(b[:]) != frameMagic || flags&(3<<6) != frameVersion || flags&frameDictionary != 0 {
		return corrupt("no LZ4 frame")
	}
	if flags&frameSize != 0 {
		if err := d.read(b[7:15], "LZ4 frame"); err != nil {
			return err
		}
	}
	if err := d.read(b[:4], "LZ4 block"); err != nil {
		return err
	}
	size := binary.LittleEndian.Uint32(b[:])
	stored := size&blockStored != 0
	size &^= blockStored
	if size == 0 || int(size) > len(d.block) || stored && int(size) != len(d.data) {
		return corrupt("%d bytes compressed", size)
	}
	block := d.block[:size]
	if err := d.read(block, "page"); err != nil {
		return err
	}
	if stored {
		copy(d.data, block)
	} else if err := d.uncompress(block); err != nil {
		return err
	}
	rest := 4 // the end mark
	if flags&frameBlockSum != 0 {
		if err := d.read(b[:4], "checksum of an LZ4 block"); err != nil {
			return err
		}
	}
	if flags&frameContentSum != 0 {
		rest += 4
	}
	if err := d.read(b[:rest], "end of an LZ4 frame"); err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(b[:]) != 0 {
		return corrupt("a second LZ4 block")
	}
	return nil
}

func (d *Reader) expectIndex(b []byte) {
	d.indexCRC = isocrc.Update(d.indexCRC, b)
	d.indexLen += uint64(len(b))
}

// end reads what is behind the pages.
func (d *Reader) end() error {
	if next := d.after(d.prev); d.hdr.IsSnapshot() && next <= d.hdr.Commit {
		return corrupt("page %d is missing", next)
	}
	d.expectIndex([]byte{0})
	var crc uint64
	for left := d.indexLen; left > 0; {
		part := d.block[:min(left, uint64(len(d.block)))]
		if err := d.readHashed(part, "page index"); err != nil {
			return err
		}
		crc = isocrc.Update(crc, part)
		left -= uint64(len(part))
	}
	if crc != d.indexCRC {
		return corrupt("the page index does not name the pages")
	}
	var b [8 + ltx.TrailerSize]byte
	if err := d.readHashed(b[:16], "trailer"); err != nil {
		return err
	}
	if err := d.read(b[16:], "trailer"); err != nil {
		return err
	}
	if got := binary.BigEndian.Uint64(b[:]); got != d.indexLen {
		return corrupt("the page index has %d bytes, its length says %d", d.indexLen, got)
	}
	if got, want := binary.BigEndian.Uint64(b[16:]), sumFlag|d.crc; got != want {
		return corrupt("checksum %016x, its content gives %016x", got, want)
	}
	if _, err := d.r.ReadByte(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = corrupt("bytes behind the end at byte %d", d.n)
		}
		return err
	}
	return nil
}

// NewLogReader reads an LTX file of a node's log, or a snapshot from it, as an object: it is one but
// for the database checksum. epoch is that of its last transaction.
func NewLogReader(r io.Reader) (_ *Reader, epoch uint64, err error) {
	d, err := NewReader(r, false)
	if err != nil {
		return nil, 0, err
	}
	return d, d.hdr.NodeID, nil
}
