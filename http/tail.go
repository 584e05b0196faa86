package http

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/litefs/litefs"
)

// POST /tail asks a node, whatever its role, for what its logs have after some positions. The body is a
// position map; the answer is a sequence of records, all numbers big endian, both in
// blocks as those of a stream:
//
//	database id, uint32
//	newest position of its log here: TXID, uint64, and checksum, uint64
//	size, int64; first and last TXID, uint64 each; an LTX file of that size. Size 0: the log here does
//	not lead on from the position asked for, and nothing follows
//
// It ends with a record of nothing but zeroes: one that ends otherwise was cut off.
const tailRecord = 4 + 16 + 8 + 16

// handleTail answers from the log alone: what has arrived counts, applied or not.
func (s *Server) handleTail(w http.ResponseWriter, r *http.Request) {
	if got := r.Header.Get(headerProtocol); got != protocolVersion {
		s.refuse(w, r, http.StatusBadRequest, fmt.Sprintf("this node speaks version %s of the stream, the request says %.32q", protocolVersion, got))
		return
	}
	if got, own := r.Header.Get(headerClusterID), s.src.ClusterID(); got != own || own == "" {
		s.refuse(w, r, http.StatusConflict, fmt.Sprintf("the request is of cluster %.128q, this node of %q", got, own))
		return
	}
	if got, want := r.Header.Get(headerSum), handshakeSum(r.Header); got != want {
		s.refuse(w, r, http.StatusBadRequest, errCorrupt.Error())
		return
	}
	rc := http.NewResponseController(w)
	after, err := s.readPositions(rc, newBlockReader(r.Body))
	if err != nil {
		s.refuse(w, r, http.StatusBadRequest, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	out := newBlockStreamWriter(w, rc, s.limits.stall)
	files := 0
	for id, pos := range after {
		db, ok := s.src.Database(id)
		if !ok {
			continue
		}
		n, err := sendTail(r.Context(), out, db, pos)
		if files += n; err != nil {
			s.opt.Logger.Warn("tail of a log not sent", "database", db.Name(), "remote", r.RemoteAddr, "error", err)
			return
		}
	}
	if _, err = out.Write(make([]byte, tailRecord)); err == nil {
		err = out.Flush()
	}
	s.opt.Logger.Info("a node has asked for the ends of logs", "node", r.Header.Get(headerID), "remote", r.RemoteAddr, "databases", len(after), "files", files, "error", err)
}

// sendTail sends what comes after pos, and returns how many files that were.
func sendTail(ctx context.Context, out *streamWriter, db Database, pos litefs.Pos) (files int, err error) {
	for ctx.Err() == nil {
		ltx, err := db.NextLTX(pos)
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if errors.Is(err, litefs.ErrSnapshotNeeded) {
			_, err := out.Write(appendTailRecord(nil, db.ID(), db.Pos(), &litefs.LTXReader{}))
			return files, err
		}
		if err != nil {
			return files, err
		}
		_, err = out.Write(appendTailRecord(nil, db.ID(), db.Pos(), ltx))
		if err == nil {
			_, err = io.CopyN(out, ltx, ltx.Size)
		}
		if err = errors.Join(err, ltx.Close()); err != nil {
			return files, err
		}
		files++
		pos = ltx.Pos()
	}
	return files, context.Cause(ctx)
}

func appendTailRecord(b []byte, id uint32, at litefs.Pos, ltx *litefs.LTXReader) []byte {
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint64(b, at.TXID)
	b = binary.BigEndian.AppendUint64(b, at.Chksum)
	b = binary.BigEndian.AppendUint64(b, uint64(ltx.Size))
	b = binary.BigEndian.AppendUint64(b, ltx.MinTXID)
	return binary.BigEndian.AppendUint64(b, ltx.MaxTXID)
}

var _ litefs.TailClient = (*Client)(nil)

// Tails asks the node at rawurl for what its logs have after the positions.
func (c *Client) Tails(ctx context.Context, rawurl string, after map[uint32]litefs.Pos, fn func(litefs.Tail) error) error {
	if err := c.tails(ctx, rawurl, after, fn); err != nil {
		return fmt.Errorf("ends of the logs of %s: %w", rawurl, err)
	}
	return nil
}

func (c *Client) tails(ctx context.Context, rawurl string, after map[uint32]litefs.Pos, fn func(litefs.Tail) error) (err error) {
	if c.identity == nil {
		return errors.New("a client without an identity asks for no logs")
	}
	u, err := endpoint(rawurl, "tail")
	if err != nil {
		return err
	}
	var positions bytes.Buffer
	if err := WritePosMap(newBlockWriter(&positions), after); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u, &positions)
	if err != nil {
		return err
	}
	c.identify(req)
	conn := c.newConnection()
	defer conn.close()
	resp, err := c.do(conn, req)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	return readTails(newBlockReader(&patientReader{ctx: ctx, cancel: cancel, r: resp.Body, patience: c.timeouts.stall}), after, fn)
}

func readTails(r io.Reader, after map[uint32]litefs.Pos, fn func(litefs.Tail) error) error {
	for {
		var b [tailRecord]byte
		if err := readFull(r, b[:]); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
		if b == [tailRecord]byte{} {
			return nil
		}
		t := litefs.Tail{
			DBID: binary.BigEndian.Uint32(b[:]),
			At:   litefs.Pos{TXID: binary.BigEndian.Uint64(b[4:]), Chksum: binary.BigEndian.Uint64(b[12:])},
		}
		if _, ok := after[t.DBID]; !ok {
			return fmt.Errorf("answer: database %s was not asked for", litefs.FormatDBID(t.DBID))
		}
		size := int64(binary.BigEndian.Uint64(b[20:]))
		if size < 0 || size > litefs.MaxStreamFrameLTXSize {
			return fmt.Errorf("answer: LTX file of %d bytes", size)
		}
		file := io.LimitReader(r, size)
		if size > 0 {
			t.LTX = &litefs.LTXReader{
				ReadCloser: io.NopCloser(file), Size: size,
				MinTXID: binary.BigEndian.Uint64(b[28:]), MaxTXID: binary.BigEndian.Uint64(b[36:]),
			}
		}
		if err := fn(t); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, file); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
}
