package litefs

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// maxNodesSize bounds the list of nodes, in bytes.
const maxNodesSize = 64 << 10

// maxNodeIDLen bounds a node's id, in bytes.
const maxNodeIDLen = 64

// NodesStreamFrame tells, from the primary to a replica, which nodes the cluster has: ids, URLs and
// whether they are candidates. A candidate asks them for their positions when the primary is gone.
//
// On the wire: length uint32, and so many bytes of JSON.
type NodesStreamFrame struct {
	Nodes []NodePosition
}

// Type returns the type of stream frame.
func (*NodesStreamFrame) Type() StreamFrameType { return StreamFrameTypeNodes }

// ReadFrom reads the frame from r. More than 64 nodes, or 64 KiB, are refused.
func (f *NodesStreamFrame) ReadFrom(r io.Reader) (int64, error) {
	b, n, err := readBounded(r, maxNodesSize)
	if err != nil {
		return n, err
	}
	var nodes []NodePosition
	if err := json.Unmarshal(b, &nodes); err != nil {
		return n, fmt.Errorf("invalid nodes stream frame: %w", err)
	}
	if len(nodes) > maxNodes {
		return n, fmt.Errorf("invalid nodes stream frame: %d nodes, at most %d are allowed", len(nodes), maxNodes)
	}
	f.Nodes = nodes
	return n, nil
}

// WriteTo writes the frame to w. It refuses what ReadFrom would refuse.
func (f *NodesStreamFrame) WriteTo(w io.Writer) (int64, error) {
	b, err := json.Marshal(f.Nodes)
	if err != nil {
		return 0, err
	}
	if len(f.Nodes) > maxNodes || len(b) > maxNodesSize {
		return 0, fmt.Errorf("invalid nodes stream frame: %d nodes in %d bytes", len(f.Nodes), len(b))
	}
	return writeBounded(w, b)
}

// HandoffStreamFrame tells, from the primary to a replica, that the node with this id is to take the
// lease, which is free now.
//
// On the wire: length uint32, and the id.
type HandoffStreamFrame struct {
	NodeID string
}

// Type returns the type of stream frame.
func (*HandoffStreamFrame) Type() StreamFrameType { return StreamFrameTypeHandoff }

// ReadFrom reads the frame from r.
func (f *HandoffStreamFrame) ReadFrom(r io.Reader) (int64, error) {
	b, n, err := readBounded(r, maxNodeIDLen)
	if err != nil {
		return n, err
	}
	id := string(b)
	if id == "" || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return n, fmt.Errorf("invalid handoff stream frame: %.64q is no node id", id)
	}
	f.NodeID = id
	return n, nil
}

// WriteTo writes the frame to w.
func (f *HandoffStreamFrame) WriteTo(w io.Writer) (int64, error) {
	if f.NodeID == "" || len(f.NodeID) > maxNodeIDLen {
		return 0, fmt.Errorf("invalid handoff stream frame: a node id of %d bytes", len(f.NodeID))
	}
	return writeBounded(w, []byte(f.NodeID))
}

// readBounded reads a length and so many bytes, at most limit.
func readBounded(r io.Reader, limit uint32) ([]byte, int64, error) {
	var b [4]byte
	n, err := io.ReadFull(r, b[:])
	if err != nil {
		return nil, int64(n), err
	}
	size := binary.BigEndian.Uint32(b[:])
	if size > limit {
		return nil, int64(n), fmt.Errorf("%d bytes, at most %d are allowed", size, limit)
	}
	data := make([]byte, size)
	m, err := io.ReadFull(r, data)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return data, int64(n + m), err
}

func writeBounded(w io.Writer, data []byte) (int64, error) {
	n, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(data))), data...))
	return int64(n), err
}
