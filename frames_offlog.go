package litefs

import (
	"encoding/binary"
	"io"
)

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
	var b [4]byte
	n, err := io.ReadFull(r, b[:])
	if err != nil {
		return int64(n), err
	}
	f.DBID = binary.BigEndian.Uint32(b[:])
	return int64(n), nil
}

// WriteTo writes the frame to w.
func (f *OffLogStreamFrame) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(binary.BigEndian.AppendUint32(nil, f.DBID))
	return int64(n), err
}
