package litefs

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/litefs/litefs/sqlitefile"
)

// Frames of a base: the pages of a database for a replica that has none, read while transactions go on.
// docs/replication.md says what they add up to.

// BaseStreamFrame begins a base: Pages frames of the database follow. A page among them is as it was at
// some moment from Pos on; with the log from Pos up to the position of the BaseEnd frame applied over
// them the pages are those of that position.
//
// On the wire: id uint32, TXID uint64, checksum uint64, epoch uint64, time int64, page size uint32,
// count uint32, first uint32.
type BaseStreamFrame struct {
	DBID      uint32
	Pos       Pos
	Epoch     uint64 // of the transaction at Pos
	UnixMilli int64  // its time
	PageSize  uint32 // bytes
	Count     uint32 // pages at Pos; those after them are in the log
	First     uint32 // the first page that follows: more than 1 when a base that was cut is continued
}

const baseFrameSize = 4 + 8 + 8 + 8 + 8 + 4 + 4 + 4

// Type returns the type of stream frame.
func (*BaseStreamFrame) Type() StreamFrameType { return StreamFrameTypeBase }

// ReadFrom reads the frame from r. One that no database can have is refused.
func (f *BaseStreamFrame) ReadFrom(r io.Reader) (int64, error) {
	var b [baseFrameSize]byte
	n, err := io.ReadFull(r, b[:])
	if err != nil {
		return int64(n), err
	}
	got := BaseStreamFrame{
		DBID: binary.BigEndian.Uint32(b[:]), Pos: readPos(b[4:]),
		Epoch: binary.BigEndian.Uint64(b[20:]), UnixMilli: int64(binary.BigEndian.Uint64(b[28:])),
		PageSize: binary.BigEndian.Uint32(b[36:]), Count: binary.BigEndian.Uint32(b[40:]), First: binary.BigEndian.Uint32(b[44:]),
	}
	if err := got.validate(); err != nil {
		return int64(n), err
	}
	*f = got
	return int64(n), nil
}

// WriteTo writes the frame to w. It refuses what ReadFrom would refuse.
func (f *BaseStreamFrame) WriteTo(w io.Writer) (int64, error) {
	if err := f.validate(); err != nil {
		return 0, err
	}
	b := appendPos(binary.BigEndian.AppendUint32(make([]byte, 0, baseFrameSize), f.DBID), f.Pos)
	b = binary.BigEndian.AppendUint64(b, f.Epoch)
	b = binary.BigEndian.AppendUint64(b, uint64(f.UnixMilli))
	b = binary.BigEndian.AppendUint32(b, f.PageSize)
	b = binary.BigEndian.AppendUint32(b, f.Count)
	n, err := w.Write(binary.BigEndian.AppendUint32(b, f.First))
	return int64(n), err
}

func (f *BaseStreamFrame) validate() error {
	if !sqlitefile.ValidPageSize(f.PageSize) || f.Count == 0 || f.First == 0 || f.Pos.TXID < 2 || f.Pos.Chksum == 0 {
		return fmt.Errorf("invalid base stream frame: %d pages of %d bytes at %s, from page %d on", f.Count, f.PageSize, f.Pos, f.First)
	}
	return nil
}

// PagesStreamFrame announces whole pages of a base: Len bytes that follow the frame. They are Size bytes
// of pages from page Pgno on, as they are when Len is Size, else one LZ4 block.
//
// On the wire: id uint32, page number uint32, size uint32, length uint32.
type PagesStreamFrame struct {
	DBID uint32
	Pgno uint32
	Size uint32
	Len  uint32
}

// Type returns the type of stream frame.
func (*PagesStreamFrame) Type() StreamFrameType { return StreamFrameTypePages }

// ReadFrom reads the frame from r; not the bytes that follow. Sizes out of bounds are refused.
func (f *PagesStreamFrame) ReadFrom(r io.Reader) (int64, error) {
	var b [16]byte
	n, err := io.ReadFull(r, b[:])
	if err != nil {
		return int64(n), err
	}
	got := PagesStreamFrame{
		DBID: binary.BigEndian.Uint32(b[:]), Pgno: binary.BigEndian.Uint32(b[4:]),
		Size: binary.BigEndian.Uint32(b[8:]), Len: binary.BigEndian.Uint32(b[12:]),
	}
	if err := got.validate(); err != nil {
		return int64(n), err
	}
	*f = got
	return int64(n), nil
}

// WriteTo writes the frame to w. It refuses what ReadFrom would refuse.
func (f *PagesStreamFrame) WriteTo(w io.Writer) (int64, error) {
	if err := f.validate(); err != nil {
		return 0, err
	}
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 16), f.DBID)
	b = binary.BigEndian.AppendUint32(b, f.Pgno)
	b = binary.BigEndian.AppendUint32(b, f.Size)
	n, err := w.Write(binary.BigEndian.AppendUint32(b, f.Len))
	return int64(n), err
}

func (f *PagesStreamFrame) validate() error {
	if f.Pgno == 0 || f.Size == 0 || f.Size > MaxStreamChunkSize || f.Len == 0 || f.Len > f.Size {
		return fmt.Errorf("invalid pages stream frame: %d bytes as %d from page %d on, at most %d are allowed", f.Size, f.Len, f.Pgno, MaxStreamChunkSize)
	}
	return nil
}

// BaseEndStreamFrame ends a base: nothing of it is a database before the log was applied up to TXID.
//
// On the wire: id uint32, TXID uint64.
type BaseEndStreamFrame struct {
	DBID uint32
	TXID uint64
}

// Type returns the type of stream frame.
func (*BaseEndStreamFrame) Type() StreamFrameType { return StreamFrameTypeBaseEnd }

// ReadFrom reads the frame from r.
func (f *BaseEndStreamFrame) ReadFrom(r io.Reader) (int64, error) {
	return readDBTXID(r, &f.DBID, &f.TXID)
}

// WriteTo writes the frame to w.
func (f *BaseEndStreamFrame) WriteTo(w io.Writer) (int64, error) {
	return writeDBTXID(w, f.DBID, f.TXID)
}

// ResumeBaseStreamFrame asks, from the replica to the primary, to continue a base that began at Pos from
// page Next on. It is a Resume frame otherwise. A primary that cannot continue it begins another.
//
// On the wire: id uint32, ask uint32, TXID uint64, checksum uint64, next uint32.
type ResumeBaseStreamFrame struct {
	DBID uint32
	Ask  uint32
	Pos  Pos
	Next uint32
}

// Type returns the type of stream frame.
func (*ResumeBaseStreamFrame) Type() StreamFrameType { return StreamFrameTypeResumeBase }

// ReadFrom reads the frame from r.
func (f *ResumeBaseStreamFrame) ReadFrom(r io.Reader) (int64, error) {
	var b [28]byte
	n, err := io.ReadFull(r, b[:])
	if err != nil {
		return int64(n), err
	}
	f.DBID, f.Ask = binary.BigEndian.Uint32(b[:]), binary.BigEndian.Uint32(b[4:])
	f.Pos, f.Next = readPos(b[8:]), binary.BigEndian.Uint32(b[24:])
	return int64(n), nil
}

// WriteTo writes the frame to w.
func (f *ResumeBaseStreamFrame) WriteTo(w io.Writer) (int64, error) {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 28), f.DBID)
	b = appendPos(binary.BigEndian.AppendUint32(b, f.Ask), f.Pos)
	n, err := w.Write(binary.BigEndian.AppendUint32(b, f.Next))
	return int64(n), err
}
