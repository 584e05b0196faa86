package litefs

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Bounds of the flow between two nodes, in bytes. Both sides hold them: the sender so that it does not
// fill the receiver's memory, the receiver so that it need not trust the sender.
const (
	// MaxStreamFileSize is the largest LTX file that goes in one piece, as an LTX frame. A larger one
	// goes in chunks, between which other databases take their turns.
	MaxStreamFileSize = 64 << 10

	// MaxStreamChunkSize is the largest payload of a Chunk frame.
	MaxStreamChunkSize = 128 << 10

	// StreamWindow is how many bytes of one database's files may be on their way, which is: sent, and
	// not yet acknowledged as taken in.
	StreamWindow = 4 << 20
)

// ChunkStreamFrame announces a piece of an LTX file: Len bytes that follow the frame, from Offset on, of
// a file of Size bytes. The pieces of one file come in order, with frames of other databases between
// them. A piece with Len 0 gives the file up.
//
// On the wire: id uint32, size int64, offset int64, length uint32.
type ChunkStreamFrame struct {
	DBID   uint32
	Size   int64
	Offset int64
	Len    uint32
}

// Last reports whether the file ends with this piece.
func (f *ChunkStreamFrame) Last() bool { return f.Offset+int64(f.Len) == f.Size }

// Type returns the type of stream frame.
func (*ChunkStreamFrame) Type() StreamFrameType { return StreamFrameTypeChunk }

// ReadFrom reads the frame from r; not the bytes that follow. A piece that is too long, or that does not
// lie within its file, is refused.
func (f *ChunkStreamFrame) ReadFrom(r io.Reader) (int64, error) {
	var b [24]byte
	n, err := io.ReadFull(r, b[:])
	if err != nil {
		return int64(n), err
	}
	got := ChunkStreamFrame{
		DBID:   binary.BigEndian.Uint32(b[:]),
		Size:   int64(binary.BigEndian.Uint64(b[4:])),
		Offset: int64(binary.BigEndian.Uint64(b[12:])),
		Len:    binary.BigEndian.Uint32(b[20:]),
	}
	if err := got.validate(); err != nil {
		return int64(n), err
	}
	*f = got
	return int64(n), nil
}

// WriteTo writes the frame to w. It refuses what ReadFrom would refuse.
func (f *ChunkStreamFrame) WriteTo(w io.Writer) (int64, error) {
	if err := f.validate(); err != nil {
		return 0, err
	}
	b := make([]byte, 0, 24)
	b = binary.BigEndian.AppendUint32(b, f.DBID)
	b = binary.BigEndian.AppendUint64(b, uint64(f.Size))
	b = binary.BigEndian.AppendUint64(b, uint64(f.Offset))
	b = binary.BigEndian.AppendUint32(b, f.Len)
	n, err := w.Write(b)
	return int64(n), err
}

func (f *ChunkStreamFrame) validate() error {
	if err := validateLTXSize(f.Size); err != nil {
		return err
	}
	if f.Len > MaxStreamChunkSize || f.Offset < 0 || f.Offset > f.Size || int64(f.Len) > f.Size-f.Offset {
		return fmt.Errorf("invalid chunk stream frame: %d bytes at %d of a file of %d, at most %d at once are allowed", f.Len, f.Offset, f.Size, MaxStreamChunkSize)
	}
	return nil
}

// ResumedStreamFrame answers a Resume frame: the database's files after it are the continuation.
//
// On the wire: id uint32, ask uint32.
type ResumedStreamFrame struct {
	DBID uint32
	Ask  uint32 // of the Resume frame
}

// Type returns the type of stream frame.
func (*ResumedStreamFrame) Type() StreamFrameType { return StreamFrameTypeResumed }

// ReadFrom reads the frame from r.
func (f *ResumedStreamFrame) ReadFrom(r io.Reader) (int64, error) {
	var b [8]byte
	n, err := io.ReadFull(r, b[:])
	if err != nil {
		return int64(n), err
	}
	f.DBID, f.Ask = binary.BigEndian.Uint32(b[:]), binary.BigEndian.Uint32(b[4:])
	return int64(n), nil
}

// WriteTo writes the frame to w.
func (f *ResumedStreamFrame) WriteTo(w io.Writer) (int64, error) {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 8), f.DBID)
	n, err := w.Write(binary.BigEndian.AppendUint32(b, f.Ask))
	return int64(n), err
}

// AckStreamFrame tells, from the replica to the primary, how far a database is there.
//
// On the wire: id uint32, taken int64, then five positions of TXID uint64 and checksum uint64.
type AckStreamFrame struct {
	DBID  uint32
	Taken int64 // bytes of the database's files taken in, or thrown away, since the stream began

	Received Pos // in the log
	Durable  Pos // in the log, and not lost with the power
	Applied  Pos // visible to readers

	Prepared, Decided Pos // reserved for commits that wait for replicas; zero
}

// Type returns the type of stream frame.
func (*AckStreamFrame) Type() StreamFrameType { return StreamFrameTypeAck }

// ReadFrom reads the frame from r.
func (f *AckStreamFrame) ReadFrom(r io.Reader) (int64, error) {
	var b [12 + 5*16]byte
	n, err := io.ReadFull(r, b[:])
	if err != nil {
		return int64(n), err
	}
	taken := int64(binary.BigEndian.Uint64(b[4:]))
	if taken < 0 {
		return int64(n), fmt.Errorf("invalid ack stream frame: %d bytes taken", taken)
	}
	f.DBID, f.Taken = binary.BigEndian.Uint32(b[:]), taken
	for i, p := range f.positions() {
		*p = readPos(b[12+16*i:])
	}
	return int64(n), nil
}

// WriteTo writes the frame to w. It refuses what ReadFrom would refuse.
func (f *AckStreamFrame) WriteTo(w io.Writer) (int64, error) {
	if f.Taken < 0 {
		return 0, fmt.Errorf("invalid ack stream frame: %d bytes taken", f.Taken)
	}
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 12+5*16), f.DBID)
	b = binary.BigEndian.AppendUint64(b, uint64(f.Taken))
	for _, p := range f.positions() {
		b = appendPos(b, *p)
	}
	n, err := w.Write(b)
	return int64(n), err
}

func (f *AckStreamFrame) positions() [5]*Pos {
	return [5]*Pos{&f.Received, &f.Durable, &f.Applied, &f.Prepared, &f.Decided}
}

// ResumeStreamFrame asks, from the replica to the primary, to send a database from Pos on, whatever was
// sent before. What comes before the Resumed frame of the same number belongs to the time before. The
// zero position asks for everything.
//
// On the wire: id uint32, ask uint32, TXID uint64, checksum uint64.
type ResumeStreamFrame struct {
	DBID uint32
	Ask  uint32
	Pos  Pos
}

// Type returns the type of stream frame.
func (*ResumeStreamFrame) Type() StreamFrameType { return StreamFrameTypeResume }

// ReadFrom reads the frame from r.
func (f *ResumeStreamFrame) ReadFrom(r io.Reader) (int64, error) {
	var b [24]byte
	n, err := io.ReadFull(r, b[:])
	if err != nil {
		return int64(n), err
	}
	f.DBID, f.Ask, f.Pos = binary.BigEndian.Uint32(b[:]), binary.BigEndian.Uint32(b[4:]), readPos(b[8:])
	return int64(n), nil
}

// WriteTo writes the frame to w.
func (f *ResumeStreamFrame) WriteTo(w io.Writer) (int64, error) {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 24), f.DBID)
	b = binary.BigEndian.AppendUint32(b, f.Ask)
	n, err := w.Write(appendPos(b, f.Pos))
	return int64(n), err
}

// readPos reads a position from the first 16 bytes of b.
func readPos(b []byte) Pos {
	return Pos{TXID: binary.BigEndian.Uint64(b), Chksum: binary.BigEndian.Uint64(b[8:])}
}

func appendPos(b []byte, p Pos) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, p.TXID), p.Chksum)
}

// OffLogStreamFrame tells that the primary's log does not lead on from the position at which the replica
// has a database. The replica fetches the pages that differ and asks to go on from where they lead, or
// asks for everything; until it has asked, nothing of the database is sent.
//
// On the wire: id uint32.
type OffLogStreamFrame struct {
	DBID uint32
}

// Type returns the type of stream frame.
func (*OffLogStreamFrame) Type() StreamFrameType { return StreamFrameTypeOffLog }

// ReadFrom reads the frame from r.
func (f *OffLogStreamFrame) ReadFrom(r io.Reader) (int64, error) {
	return readDBID(r, &f.DBID)
}

// WriteTo writes the frame to w.
func (f *OffLogStreamFrame) WriteTo(w io.Writer) (int64, error) {
	return writeDBID(w, f.DBID)
}
