package litefs

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"
)

// StreamFrameType says what a frame of the stream holds.
type StreamFrameType uint32

// Frame types. A number, once given, keeps its meaning.
const (
	StreamFrameTypeDB  = StreamFrameType(1)
	StreamFrameTypeLTX = StreamFrameType(2)

	StreamFrameTypeHeartbeat = StreamFrameType(3)
	StreamFrameTypeDropDB    = StreamFrameType(4)
	StreamFrameTypeChunk     = StreamFrameType(5)
	StreamFrameTypeResumed   = StreamFrameType(6)
	StreamFrameTypeOffLog    = StreamFrameType(9)
	StreamFrameTypeNodes     = StreamFrameType(7)
	StreamFrameTypeHandoff   = StreamFrameType(8)
	StreamFrameTypeLevel     = StreamFrameType(10)
	StreamFrameTypeBase      = StreamFrameType(12)
	StreamFrameTypePages     = StreamFrameType(13)
	StreamFrameTypeBaseEnd   = StreamFrameType(14)
	StreamFrameTypeDecided   = StreamFrameType(15)

	// From the replica to the primary.
	StreamFrameTypeAck    = StreamFrameType(16)
	StreamFrameTypeResume = StreamFrameType(17)

	StreamFrameTypeResumeBase = StreamFrameType(24)
)

// Bounds of what a frame may announce. What is beyond is refused before it is allocated or read.
const (
	MaxStreamFrameNameLen = 4096    // bytes of a name
	MaxStreamFrameLTXSize = 1 << 48 // bytes of an LTX file; SQLite's largest database has 2^48
)

// StreamFrame is one frame of the stream between two nodes. On the wire: its type as a big-endian
// uint32, then what WriteTo writes, all integers big-endian.
//
// ReadFrom reads exactly one frame. When r ends inside it, it returns io.ErrUnexpectedEOF itself, not
// wrapped; when r ends before its first byte, io.EOF.
type StreamFrame interface {
	io.ReaderFrom
	io.WriterTo
	Type() StreamFrameType
}

// ReadStreamFrame reads a the stream type & frame from the reader. It returns io.EOF when r ends
// before the first byte, io.ErrUnexpectedEOF when it ends within the frame, and an error for an
// unknown type or a value out of bounds. It never reads beyond the frame.
func ReadStreamFrame(r io.Reader) (StreamFrame, error) {
	var b [4]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return nil, err
	}
	f, err := newStreamFrame(StreamFrameType(binary.BigEndian.Uint32(b[:])))
	if err != nil {
		return nil, err
	}
	if _, err := f.ReadFrom(r); err == io.EOF {
		return nil, io.ErrUnexpectedEOF
	} else if err != nil {
		return nil, err
	}
	return f, nil
}

func newStreamFrame(typ StreamFrameType) (StreamFrame, error) {
	switch typ {
	case StreamFrameTypeDB:
		return &DBStreamFrame{}, nil
	case StreamFrameTypeLTX:
		return &LTXStreamFrame{}, nil
	case StreamFrameTypeHeartbeat:
		return &HeartbeatStreamFrame{}, nil
	case StreamFrameTypeDropDB:
		return &DropDBStreamFrame{}, nil
	case StreamFrameTypeChunk:
		return &ChunkStreamFrame{}, nil
	case StreamFrameTypeResumed:
		return &ResumedStreamFrame{}, nil
	case StreamFrameTypeOffLog:
		return &OffLogStreamFrame{}, nil
	case StreamFrameTypeNodes:
		return &NodesStreamFrame{}, nil
	case StreamFrameTypeHandoff:
		return &HandoffStreamFrame{}, nil
	case StreamFrameTypeAck:
		return &AckStreamFrame{}, nil
	case StreamFrameTypeResume:
		return &ResumeStreamFrame{}, nil
	case StreamFrameTypeBase:
		return &BaseStreamFrame{}, nil
	case StreamFrameTypePages:
		return &PagesStreamFrame{}, nil
	case StreamFrameTypeBaseEnd:
		return &BaseEndStreamFrame{}, nil
	case StreamFrameTypeDecided:
		return &DecidedStreamFrame{}, nil
	case StreamFrameTypeLevel:
		return &LevelStreamFrame{}, nil
	case StreamFrameTypeResumeBase:
		return &ResumeBaseStreamFrame{}, nil
	}
	return nil, fmt.Errorf("invalid stream frame type: 0x%02x", uint32(typ))
}

// WriteStreamFrame writes the stream type & frame to the writer.
func WriteStreamFrame(w io.Writer, f StreamFrame) error {
	if _, err := w.Write(binary.BigEndian.AppendUint32(nil, uint32(f.Type()))); err != nil {
		return err
	}
	_, err := f.WriteTo(w)
	return err
}

// DBStreamFrame represents a frame with basic database information. This is
// sent at the beginning of the stream and when a new database is created.
// The LTX frames after it are of this database, until the next DB frame.
//
// On the wire: id uint32, length of the name uint32, name.
type DBStreamFrame struct {
	DBID uint32
	Name string
}

// Type returns the type of stream frame.
func (*DBStreamFrame) Type() StreamFrameType { return StreamFrameTypeDB }

// ReadFrom reads the frame from r. A name longer than MaxStreamFrameNameLen is refused; whether it
// may be a database's name is ValidateName's to say.
func (f *DBStreamFrame) ReadFrom(r io.Reader) (int64, error) {
	var head [8]byte
	n, err := io.ReadFull(r, head[:])
	if err != nil {
		return int64(n), err
	}
	size := binary.BigEndian.Uint32(head[4:])
	if size > MaxStreamFrameNameLen {
		return int64(n), fmt.Errorf("invalid DB stream frame: name of %d bytes, at most %d are allowed", size, MaxStreamFrameNameLen)
	}
	name := make([]byte, size)
	m, err := io.ReadFull(r, name)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return int64(n + m), err
	}
	f.DBID, f.Name = binary.BigEndian.Uint32(head[:]), string(name)
	return int64(n + m), nil
}

// WriteTo writes the frame to w. It refuses what ReadFrom would refuse.
func (f *DBStreamFrame) WriteTo(w io.Writer) (int64, error) {
	if len(f.Name) > MaxStreamFrameNameLen {
		return 0, fmt.Errorf("invalid DB stream frame: name of %d bytes, at most %d are allowed", len(f.Name), MaxStreamFrameNameLen)
	}
	b := make([]byte, 0, 8+len(f.Name))
	b = binary.BigEndian.AppendUint32(b, f.DBID)
	b = binary.BigEndian.AppendUint32(b, uint32(len(f.Name)))
	b = append(b, f.Name...)
	n, err := w.Write(b)
	return int64(n), err
}

// LTXStreamFrame announces an LTX file of the database named last: Size bytes that follow the frame.
//
// On the wire: size int64.
type LTXStreamFrame struct {
	Size int64
}

// Type returns the type of stream frame.
func (*LTXStreamFrame) Type() StreamFrameType { return StreamFrameTypeLTX }

// ReadFrom reads the frame from r; not the file that follows. A size below 1 or above
// MaxStreamFrameLTXSize is refused.
func (f *LTXStreamFrame) ReadFrom(r io.Reader) (int64, error) {
	var b [8]byte
	n, err := io.ReadFull(r, b[:])
	if err != nil {
		return int64(n), err
	}
	size := int64(binary.BigEndian.Uint64(b[:]))
	if err := validateLTXSize(size); err != nil {
		return int64(n), err
	}
	f.Size = size
	return int64(n), nil
}

// WriteTo writes the frame to w. It refuses what ReadFrom would refuse.
func (f *LTXStreamFrame) WriteTo(w io.Writer) (int64, error) {
	if err := validateLTXSize(f.Size); err != nil {
		return 0, err
	}
	n, err := w.Write(binary.BigEndian.AppendUint64(nil, uint64(f.Size)))
	return int64(n), err
}

func validateLTXSize(size int64) error {
	if size < 1 || size > MaxStreamFrameLTXSize {
		return fmt.Errorf("invalid LTX stream frame: size of %d bytes, want 1 to %d", size, int64(MaxStreamFrameLTXSize))
	}
	return nil
}

// HeartbeatStreamFrame tells that the sender is alive.
//
// On the wire: time int64, milliseconds since 1970 by the sender's clock; epoch uint64; behind uint32.
type HeartbeatStreamFrame struct {
	UnixMilli int64
	Epoch     uint64 // the sender's epoch
	Behind    uint32 // databases of which the sender has more to send; 0: all is on its way
}

// Time returns the sender's time.
func (f *HeartbeatStreamFrame) Time() time.Time { return time.UnixMilli(f.UnixMilli) }

// Type returns the type of stream frame.
func (*HeartbeatStreamFrame) Type() StreamFrameType { return StreamFrameTypeHeartbeat }

// ReadFrom reads the frame from r.
func (f *HeartbeatStreamFrame) ReadFrom(r io.Reader) (int64, error) {
	var b [20]byte
	n, err := io.ReadFull(r, b[:])
	if err != nil {
		return int64(n), err
	}
	f.UnixMilli = int64(binary.BigEndian.Uint64(b[:]))
	f.Epoch = binary.BigEndian.Uint64(b[8:])
	f.Behind = binary.BigEndian.Uint32(b[16:])
	return int64(n), nil
}

// WriteTo writes the frame to w.
func (f *HeartbeatStreamFrame) WriteTo(w io.Writer) (int64, error) {
	b := make([]byte, 0, 20)
	b = binary.BigEndian.AppendUint64(b, uint64(f.UnixMilli))
	b = binary.BigEndian.AppendUint64(b, f.Epoch)
	b = binary.BigEndian.AppendUint32(b, f.Behind)
	n, err := w.Write(b)
	return int64(n), err
}

// DropDBStreamFrame tells that a database was dropped. An LTX frame after it needs a DB frame first.
//
// On the wire: id uint32.
type DropDBStreamFrame struct {
	DBID uint32
}

// Type returns the type of stream frame.
func (*DropDBStreamFrame) Type() StreamFrameType { return StreamFrameTypeDropDB }

// ReadFrom reads the frame from r.
func (f *DropDBStreamFrame) ReadFrom(r io.Reader) (int64, error) {
	return readDBID(r, &f.DBID)
}

// WriteTo writes the frame to w.
func (f *DropDBStreamFrame) WriteTo(w io.Writer) (int64, error) {
	return writeDBID(w, f.DBID)
}

// The frames that are a database's id alone, or with a TXID.

func readDBID(r io.Reader, id *uint32) (int64, error) {
	var b [4]byte
	n, err := io.ReadFull(r, b[:])
	if err == nil {
		*id = binary.BigEndian.Uint32(b[:])
	}
	return int64(n), err
}

func writeDBID(w io.Writer, id uint32) (int64, error) {
	n, err := w.Write(binary.BigEndian.AppendUint32(nil, id))
	return int64(n), err
}

func readDBTXID(r io.Reader, id *uint32, txid *uint64) (int64, error) {
	var b [12]byte
	n, err := io.ReadFull(r, b[:])
	if err == nil {
		*id, *txid = binary.BigEndian.Uint32(b[:]), binary.BigEndian.Uint64(b[4:])
	}
	return int64(n), err
}

func writeDBTXID(w io.Writer, id uint32, txid uint64) (int64, error) {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 12), id)
	n, err := w.Write(binary.BigEndian.AppendUint64(b, txid))
	return int64(n), err
}
