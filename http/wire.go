package http

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/litefs/litefs"
)

// Versions that the handshake compares. Both must be equal on both sides.
const (
	protocolVersion = "1"
	ltxVersion      = "3"
)

// Headers of the handshake, on requests and answers.
const (
	headerProtocol  = "Litefs-Protocol"
	headerLTX       = "Litefs-Ltx"
	headerClusterID = "Litefs-Cluster-Id"
	headerID        = "Litefs-Id"
	headerEpoch     = "Litefs-Epoch"
	headerSum       = "Litefs-Sum" // handshakeSum of the others

	// headerPromises is set by a replica that keeps what is not decided, and by a primary that tells what is. It is
	// promisesLevels of a replica that keeps levels that were set, too.
	headerPromises = "Litefs-Promises"
	promisesLevels = "2"

	headerPages = "Litefs-Pages" // set by a replica that fetches pages that differ

	headerURL       = "Litefs-Url"       // of a replica: where other nodes reach it
	headerCandidate = "Litefs-Candidate" // of a replica: "true" if it may become the primary

	headerPrimaryURL = "Litefs-Primary-Url" // with a 503: who to ask instead
)

// maxIDLen bounds the cluster and node ids in a handshake, in bytes.
const maxIDLen = 128

const (
	posSize      = 4 + 8 + 8 // bytes of one database's position in a position map
	maxPositions = 1 << 17   // databases in a position map
)

// WritePosMap writes posMap to w in one write, in no particular order.
func WritePosMap(w io.Writer, posMap map[uint32]litefs.Pos) error {
	if len(posMap) > maxPositions {
		return fmt.Errorf("position map of %d databases, at most %d are allowed", len(posMap), maxPositions)
	}
	b := make([]byte, 0, 4+len(posMap)*posSize)
	b = binary.BigEndian.AppendUint32(b, uint32(len(posMap)))
	for id, pos := range posMap {
		b = binary.BigEndian.AppendUint32(b, id)
		b = binary.BigEndian.AppendUint64(b, pos.TXID)
		b = binary.BigEndian.AppendUint64(b, pos.Chksum)
	}
	_, err := w.Write(b)
	return err
}

// ReadPosMap reads all of r as what WritePosMap writes. It returns io.ErrUnexpectedEOF, wrapped, when
// r ends too early, and an error for more databases than allowed, a database that comes twice, and for
// bytes after the map: it reads no more than one byte beyond the largest map. Memory grows with what
// was read, not with what the first bytes announce.
func ReadPosMap(r io.Reader) (map[uint32]litefs.Pos, error) {
	posMap, err := readPosMap(r)
	if err != nil {
		return nil, err
	}
	switch _, err := io.ReadFull(r, make([]byte, 1)); err {
	case io.EOF:
		return posMap, nil
	case nil:
		return nil, fmt.Errorf("position map: bytes after the last of %d databases", len(posMap))
	default:
		return nil, fmt.Errorf("position map: end: %w", err)
	}
}

// readPosMap is ReadPosMap of a map that something may follow; it reads nothing of that.
func readPosMap(r io.Reader) (map[uint32]litefs.Pos, error) {
	var b [posSize]byte
	if err := readFull(r, b[:4]); err != nil {
		return nil, fmt.Errorf("position map: number of databases: %w", err)
	}
	n := binary.BigEndian.Uint32(b[:])
	if n > maxPositions {
		return nil, fmt.Errorf("position map of %d databases, at most %d are allowed", n, maxPositions)
	}
	posMap := make(map[uint32]litefs.Pos)
	for i := range n {
		if err := readFull(r, b[:]); err != nil {
			return nil, fmt.Errorf("position map: database %d of %d: %w", i+1, n, err)
		}
		id := binary.BigEndian.Uint32(b[:])
		if _, ok := posMap[id]; ok {
			return nil, fmt.Errorf("position map: database %s comes twice", litefs.FormatDBID(id))
		}
		posMap[id] = litefs.Pos{TXID: binary.BigEndian.Uint64(b[4:]), Chksum: binary.BigEndian.Uint64(b[12:])}
	}
	return posMap, nil
}

// readFull is io.ReadFull for bytes that must be there: a clean end is an unexpected one.
func readFull(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
