package litefs

import (
	"io"
	"math"
)

// AllDecided is the TXID of a Decided frame for a database that no commit is held back for.
const AllDecided = uint64(math.MaxUint64)

// DecidedStreamFrame tells up to which transaction a replica may apply what it has, and is about to get, of a database.
// What comes after it is prepared: it is kept in the log until it is decided.
//
// On the wire: id uint32, TXID uint64.
type DecidedStreamFrame struct {
	DBID uint32
	TXID uint64 // AllDecided: all, always
}

// Type returns the type of stream frame.
func (*DecidedStreamFrame) Type() StreamFrameType { return StreamFrameTypeDecided }

// ReadFrom reads the frame from r.
func (f *DecidedStreamFrame) ReadFrom(r io.Reader) (int64, error) {
	return readDBTXID(r, &f.DBID, &f.TXID)
}

// WriteTo writes the frame to w.
func (f *DecidedStreamFrame) WriteTo(w io.Writer) (int64, error) {
	return writeDBTXID(w, f.DBID, f.TXID)
}
