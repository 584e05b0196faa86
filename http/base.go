package http

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/pierrec/lz4/v4"

	"github.com/litefs/litefs"
)

// outBase is a base on its way. Its reader is ahead of the session, which never waits for it.
type outBase struct {
	reader litefs.BaseReader
	start  litefs.BaseStreamFrame
	begun  time.Time

	pgno uint32 // of the first page of data
	data []byte // what is left of a run
	sent int64  // bytes, with those that an earlier connection has sent
}

func (b *outBase) size() int64 { return int64(b.start.Count) * int64(b.start.PageSize) }

// bases is what a session has to do with bases.
type bases struct {
	open    map[uint32]*outBase
	asked   map[uint32]litefs.ResumeBaseStreamFrame // to be continued
	waiting map[uint32]struct{}                     // there are too many already
	news    *baseNews
	packer  *packer // nil: pages go as they are
}

// baseNews is which bases have something to send. Their readers tell, from goroutines of their own.
type baseNews struct {
	ch chan struct{} // capacity 1

	mu  sync.Mutex
	ids map[uint32]struct{}
}

func (n *baseNews) tell(id uint32) {
	n.mu.Lock()
	n.ids[id] = struct{}{}
	n.mu.Unlock()
	select {
	case n.ch <- struct{}{}:
	default:
	}
}

func (n *baseNews) take() map[uint32]struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	ids := n.ids
	n.ids = make(map[uint32]struct{})
	return ids
}

func newBases(remote string) bases {
	b := bases{
		open: make(map[uint32]*outBase), asked: make(map[uint32]litefs.ResumeBaseStreamFrame), waiting: make(map[uint32]struct{}),
		news: &baseNews{ch: make(chan struct{}, 1), ids: make(map[uint32]struct{})},
	}
	if !isLocal(remote) {
		b.packer = newPacker()
	}
	return b
}

// isLocal reports whether bytes to remote stay on this machine, where packing them costs more than it
// saves.
func isLocal(remote string) bool {
	host, _, err := net.SplitHostPort(remote)
	ip := net.ParseIP(host)
	return err == nil && ip != nil && ip.IsLoopback()
}

// packer makes LZ4 blocks.
type packer struct {
	lz4 lz4.Compressor
	buf []byte
}

func newPacker() *packer {
	return &packer{buf: make([]byte, lz4.CompressBlockBound(litefs.MaxStreamChunkSize))}
}

// pack returns the block of b, or b when that is not larger. It is valid until the next call.
func (p *packer) pack(b []byte) []byte {
	if p == nil {
		return b
	}
	n, err := p.lz4.CompressBlock(b, p.buf)
	if err != nil || n == 0 || n >= len(b) {
		return b
	}
	return p.buf[:n]
}

// beginBase begins a base of a database of which the replica has nothing, or continues one. false: the
// log is to be sent.
func (s *session) beginBase(ctx context.Context, db Database) (bool, error) {
	id := db.ID()
	ask, asked := s.bases.asked[id]
	if !asked && !s.pos[id].IsZero() {
		return false, nil
	}
	if s.snapshots.open+len(s.bases.open) >= maxSnapshots {
		s.bases.waiting[id] = struct{}{}
		return true, nil // queued again when one has ended
	}
	delete(s.bases.asked, id)
	r, err := db.Base(ctx, ask.Pos, ask.Next, func() { s.bases.news.tell(id) })
	if err != nil {
		s.fail(db, err)
		return true, nil
	}
	if r == nil {
		return false, nil
	}
	b := &outBase{reader: r, start: r.Start(), begun: time.Now()}
	b.start.DBID = id
	b.sent = int64(b.start.First-1) * int64(b.start.PageSize)
	s.bases.open[id] = b
	s.note(id, b)
	if asked {
		continued := b.start.Pos == ask.Pos && b.start.First == ask.Next
		s.log.Info("a cut copy of a database is asked for", "database", db.Name(), "continued", continued, "from", b.start.First, "pages", b.start.Count)
	}
	if err := litefs.WriteStreamFrame(s.out, &b.start); err != nil {
		return true, fmt.Errorf("database %s: %w", db.Name(), err)
	}
	return true, nil // queued again by its reader
}

// note tells the registry how far a base is.
func (s *session) note(id uint32, b *outBase) {
	s.acks.src.conn.Sending(id, litefs.Transfer{From: b.start.Pos, Sent: b.sent, Size: b.size()})
}

// sendBase sends the next pages of a base, if they are ready.
func (s *session) sendBase(db Database, b *outBase) error {
	id := db.ID()
	if len(b.data) == 0 {
		run, ok := b.reader.Next()
		switch {
		case !ok:
			return nil // queued again by its reader
		case run.Err != nil:
			s.fail(db, errors.Join(fmt.Errorf("base: %w", run.Err), s.giveUp(id)))
			return nil
		case len(run.Data) == 0:
			return s.endBase(db, b, run.End)
		}
		b.pgno, b.data = run.Pgno, run.Data
		s.note(id, b)
	}
	s.due.push(id)
	size := int(b.start.PageSize)
	raw := b.data[:min(len(b.data), litefs.MaxStreamChunkSize/size*size)]
	block := s.bases.packer.pack(raw)
	frame := &litefs.PagesStreamFrame{DBID: id, Pgno: b.pgno, Size: uint32(len(raw)), Len: uint32(len(block))}
	if err := litefs.WriteStreamFrame(s.out, frame); err != nil {
		return fmt.Errorf("database %s: %w", db.Name(), err)
	}
	if _, err := s.out.Write(block); err != nil {
		return fmt.Errorf("database %s: pages from %d: %w", db.Name(), b.pgno, err)
	}
	s.count(id, int64(len(raw)))
	b.pgno += uint32(len(raw) / size)
	b.data = b.data[len(raw):]
	b.sent += int64(len(raw))
	return nil
}

// endBase tells the replica that all pages were sent; the log follows.
func (s *session) endBase(db Database, b *outBase, end uint64) error {
	id := db.ID()
	if err := litefs.WriteStreamFrame(s.out, &litefs.BaseEndStreamFrame{DBID: id, TXID: end}); err != nil {
		return fmt.Errorf("database %s: %w", db.Name(), err)
	}
	s.log.Info("copy of a database sent", "database", db.Name(), "from", b.start.Pos.TXID, "to", end, "bytes", b.sent, "took", time.Since(b.begun).Round(time.Millisecond))
	s.pos[id] = b.start.Pos
	s.due.push(id)
	delete(s.failures, id)
	return s.giveUp(id)
}

// resumeBase continues a base that was cut.
func (s *session) resumeBase(id uint32, f litefs.ResumeBaseStreamFrame) error {
	if err := s.resume(id, litefs.ResumeStreamFrame{DBID: id, Ask: f.Ask}); err != nil {
		return err
	}
	s.bases.asked[id] = f
	return nil
}

// giveUpBase ends a base, if there is one.
func (s *session) giveUpBase(id uint32) error {
	delete(s.bases.asked, id)
	b, ok := s.bases.open[id]
	if !ok {
		return nil
	}
	delete(s.bases.open, id)
	s.acks.src.conn.Sending(id, litefs.Transfer{})
	s.wakeBases()
	return b.reader.Close()
}

// wakeBases lets those bases try to begin that there were too many for.
func (s *session) wakeBases() {
	for id := range s.bases.waiting {
		s.due.push(id)
	}
	clear(s.bases.waiting)
}
