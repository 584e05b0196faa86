package litefs

import (
	"encoding/binary"
	"fmt"
	"io"
)

// maxLevelLen bounds the text of a level, in bytes.
const maxLevelLen = 64

// LevelStreamFrame tells what SetLevel has noted of a database on the primary, before the first transaction that was
// committed under it: a level as Level.String has it, or LevelOfRule. Epoch is that of the primary: what one of an
// earlier epoch says does not count any more.
//
// On the wire: id uint32, epoch uint64, length uint32, text.
type LevelStreamFrame struct {
	DBID  uint32
	Epoch uint64
	Level string
}

// Type returns the type of stream frame.
func (*LevelStreamFrame) Type() StreamFrameType { return StreamFrameTypeLevel }

// ReadFrom reads the frame from r. Whether the text is a level is for who takes it to say.
func (f *LevelStreamFrame) ReadFrom(r io.Reader) (int64, error) {
	var b [12]byte
	n, err := io.ReadFull(r, b[:])
	if err != nil {
		return int64(n), err
	}
	text, m, err := readBounded(r, maxLevelLen)
	switch {
	case err == io.EOF:
		return int64(n) + m, io.ErrUnexpectedEOF
	case err == io.ErrUnexpectedEOF:
		return int64(n) + m, err
	case err != nil:
		return int64(n) + m, fmt.Errorf("invalid level stream frame: %w", err)
	}
	f.DBID, f.Epoch, f.Level = binary.BigEndian.Uint32(b[:]), binary.BigEndian.Uint64(b[4:]), string(text)
	return int64(n) + m, nil
}

// WriteTo writes the frame to w. It refuses what ReadFrom would refuse.
func (f *LevelStreamFrame) WriteTo(w io.Writer) (int64, error) {
	if len(f.Level) > maxLevelLen {
		return 0, fmt.Errorf("invalid level stream frame: a text of %d bytes, at most %d are allowed", len(f.Level), maxLevelLen)
	}
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 16+len(f.Level)), f.DBID)
	b = binary.BigEndian.AppendUint64(b, f.Epoch)
	b = binary.BigEndian.AppendUint32(b, uint32(len(f.Level)))
	n, err := w.Write(append(b, f.Level...))
	return int64(n), err
}
