package http

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/pierrec/lz4/v4"

	"github.com/litefs/litefs"
)

// Stream is a stream of changes from a primary. NextFrame and Read are for one goroutine, WriteFrames
// for one goroutine; Close may be called from any, and ends them.
type Stream struct {
	clusterID, nodeID string
	epoch             uint64
	promises          bool

	cancel context.CancelCauseFunc
	conn   *connection
	body   io.ReadCloser
	in     *frameReader
	up     *blockWriter // the request's body
	buf    bytes.Buffer // of WriteFrames

	closeOnce sync.Once
	closeErr  error
}

var (
	_ litefs.StreamReader = (*Stream)(nil)
	_ litefs.StreamPeer   = (*Stream)(nil)
	_ litefs.StreamWriter = (*Stream)(nil)

	_ litefs.StreamPromises = (*Stream)(nil)
)

// readHeader takes the primary's half of the handshake.
func (s *Stream) readHeader(h http.Header) error {
	if got := h.Get(headerProtocol); got != protocolVersion {
		return fmt.Errorf("the node answers with version %.32q of the stream, want %s: is it a litefs of the same version?", got, protocolVersion)
	}
	if got := h.Get(headerLTX); got != ltxVersion {
		return fmt.Errorf("the node sends LTX version %.32q, want %s: is it a litefs of the same version?", got, ltxVersion)
	}
	s.promises = h.Get(headerPromises) != ""
	s.clusterID, s.nodeID = h.Get(headerClusterID), h.Get(headerID)
	for _, id := range []string{s.clusterID, s.nodeID} {
		if id == "" || len(id) > maxIDLen || id != printable(id) {
			return fmt.Errorf("the node answers with the id %.32q, want 1 to %d printable bytes", id, maxIDLen)
		}
	}
	epoch, err := strconv.ParseUint(h.Get(headerEpoch), 10, 64)
	if err != nil {
		return fmt.Errorf("the node answers with the epoch %.32q, want a number", h.Get(headerEpoch))
	}
	if got, want := h.Get(headerSum), handshakeSum(h); got != want {
		return fmt.Errorf("the node's answer has the checksum %.32q, want %q: %w", got, want, errCorrupt)
	}
	s.epoch = epoch
	return nil
}

// ClusterID returns the cluster that the primary belongs to.
func (s *Stream) ClusterID() string { return s.clusterID }

// NodeID returns the primary's node id.
func (s *Stream) NodeID() string { return s.nodeID }

// Promises reports whether the primary tells what is decided.
func (s *Stream) Promises() bool { return s.promises }

// Epoch returns the primary's epoch at the start of the stream.
func (s *Stream) Epoch() uint64 { return s.epoch }

// NextFrame reads the next frame from the stream. After an LTX or Chunk frame, its bytes can be read via
// Read() until io.EOF (of a Pages frame they are Size, unpacked); what is left of them is skipped by the next call. A DB frame's name is a valid
// one, and files are of databases that were named. Returns io.EOF if the primary ended the stream, ErrStalled if it
// went silent.
func (s *Stream) NextFrame() (litefs.StreamFrame, error) { return s.in.NextFrame() }

// Read reads from the file of the last frame, io.EOF at its end.
func (s *Stream) Read(p []byte) (int, error) { return s.in.Read(p) }

// WriteFrames sends frames to the primary, in one piece. It waits until the connection has taken them.
func (s *Stream) WriteFrames(frames ...litefs.StreamFrame) error {
	s.buf.Reset()
	for _, f := range frames {
		if err := litefs.WriteStreamFrame(&s.buf, f); err != nil {
			return err
		}
	}
	_, err := s.up.Write(s.buf.Bytes())
	return err
}

// Close ends the stream and its connection. A read that waits then fails.
func (s *Stream) Close() error {
	s.closeOnce.Do(func() {
		s.cancel(errClosed)
		s.closeErr = s.body.Close()
		s.conn.close()
	})
	return s.closeErr
}

var errClosed = errors.New("stream closed")

// frameReader reads frames and the files between them, and holds the rules of their order.
type frameReader struct {
	r    *bufio.Reader
	left int64 // bytes of the file after the last frame that were not read yet
	db   bool  // an LTX frame may follow: a database is named
	id   uint32
	ids  map[uint32]struct{} // databases that were named and not dropped
	err  error               // the first error; the stream cannot be read on after it

	block, plain []byte // of Pages frames that are packed
	rest         []byte // of plain: what Read returns next
}

func newFrameReader(r io.Reader) *frameReader {
	// Small: r reads from memory, and what a frame announces goes from there to where it is wanted.
	return &frameReader{r: bufio.NewReaderSize(r, 1<<10), ids: make(map[uint32]struct{})}
}

func (fr *frameReader) NextFrame() (litefs.StreamFrame, error) {
	if fr.left > 0 {
		if _, err := io.Copy(io.Discard, fr); err != nil {
			return nil, err
		}
	}
	if fr.err != nil {
		return nil, fr.err
	}
	f, err := litefs.ReadStreamFrame(fr.r)
	if err == nil {
		err = fr.take(f)
	}
	if err != nil {
		fr.err = err
		return nil, err
	}
	return f, nil
}

// take checks f and what it means for what follows.
func (fr *frameReader) take(f litefs.StreamFrame) error {
	switch f := f.(type) {
	case *litefs.DBStreamFrame:
		if err := litefs.ValidateName(f.Name); err != nil {
			return fmt.Errorf("the node names database %s: %w", litefs.FormatDBID(f.DBID), err)
		}
		fr.db, fr.id = true, f.DBID
		fr.ids[f.DBID] = struct{}{}
		if len(fr.ids) > maxPositions {
			return fmt.Errorf("the node names more than %d databases", maxPositions)
		}
	case *litefs.LTXStreamFrame:
		if !fr.db {
			return errors.New("the node sends an LTX frame before it names a database")
		}
		fr.left = f.Size
	case *litefs.DropDBStreamFrame:
		if f.DBID == fr.id {
			fr.db = false
		}
		delete(fr.ids, f.DBID)
	case *litefs.ChunkStreamFrame:
		if err := fr.named(f.DBID); err != nil {
			return err
		}
		fr.left = int64(f.Len)
	case *litefs.PagesStreamFrame:
		if err := fr.named(f.DBID); err != nil {
			return err
		}
		if f.Len < f.Size {
			return fr.unpack(f)
		}
		fr.left = int64(f.Len)
	case *litefs.BaseStreamFrame:
		return fr.named(f.DBID)
	case *litefs.BaseEndStreamFrame:
		return fr.named(f.DBID)
	case *litefs.LevelStreamFrame:
		return fr.named(f.DBID)
	case *litefs.DecidedStreamFrame:
		return fr.named(f.DBID)
	case *litefs.HeartbeatStreamFrame, *litefs.ResumedStreamFrame, *litefs.OffLogStreamFrame, *litefs.NodesStreamFrame, *litefs.HandoffStreamFrame:
	default:
		return fmt.Errorf("the node sends a frame of type %d, which is for primaries", f.Type())
	}
	return nil
}

// named fails for a database that was not named, or dropped since.
func (fr *frameReader) named(id uint32) error {
	if _, ok := fr.ids[id]; !ok {
		return fmt.Errorf("the node sends a piece of database %s before it names it", litefs.FormatDBID(id))
	}
	return nil
}

// unpack reads a block of pages; its content is what follows the frame then. Both sizes are bounded by
// the frame.
func (fr *frameReader) unpack(f *litefs.PagesStreamFrame) error {
	fr.block = append(fr.block[:0], make([]byte, f.Len)...)
	fr.plain = append(fr.plain[:0], make([]byte, f.Size)...)
	if _, err := io.ReadFull(fr.r, fr.block); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	n, err := lz4.UncompressBlock(fr.block, fr.plain)
	if err != nil || n != len(fr.plain) {
		return fmt.Errorf("the node sends a block of %d bytes that is not %d bytes of pages: %d, %w", f.Len, f.Size, n, err)
	}
	fr.rest, fr.left = fr.plain, int64(f.Size)
	return nil
}

// Read reads from the file after the last frame.
func (fr *frameReader) Read(p []byte) (int, error) {
	if len(fr.rest) > 0 && fr.err == nil {
		n := copy(p, fr.rest)
		fr.rest = fr.rest[n:]
		fr.left -= int64(n)
		return n, nil
	}
	if fr.err != nil && fr.left > 0 {
		return 0, fr.err
	}
	if fr.left == 0 {
		return 0, io.EOF
	}
	n, err := fr.r.Read(p[:min(int64(len(p)), fr.left)])
	fr.left -= int64(n)
	if err == io.EOF && fr.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err == io.EOF {
		err = nil // the end of the stream, right after the file: NextFrame's to tell
	}
	if err != nil {
		fr.err = err
	}
	return n, err
}

// patientReader reads from r, each read for as long as its patience lasts, and ends the context of r
// then. Time that the caller spends between reads does not count.
type patientReader struct {
	ctx      context.Context
	cancel   context.CancelCauseFunc
	r        io.Reader
	patience time.Duration
}

func (pr *patientReader) Read(p []byte) (int, error) {
	watchdog := time.AfterFunc(pr.patience, func() { pr.cancel(ErrStalled) })
	n, err := pr.r.Read(p)
	watchdog.Stop()
	if err != nil && err != io.EOF {
		if cause := context.Cause(pr.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}
