package http

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/litefs/litefs"
)

// POST /pages is one exchange about one database, over HTTP/2 with both halves open; all numbers are big
// endian, a position is a TXID and a checksum of 8 bytes each:
//
//	node     mode, 1 byte; database id, uint32; number of positions, uint32; positions of its log, newest
//	         first, each after its epoch, uint64
//	primary  relation, 1 byte; the last common TXID, uint64; its own position. End, with PagesLocate
//	node     page size, uint32; number of pages, uint32; the XOR of the checksums of each 256 pages, uint64
//	primary  number of blocks that differ, uint32; their numbers, uint32 each
//	node     the checksums of the pages in those blocks, uint64 each
//	primary  any number of waits; then with PagesList the number of pages that differ and their numbers,
//	         with PagesFetch the size of an LTX file, int64, and the file; or a refusal
//
// Both halves travel in blocks, as those of a stream. Each of the primary's last messages begins with a byte that says which it is.
const (
	pagesWait    = 0 // there will be more
	pagesFollow  = 1
	pagesRefused = 2 // length of a line, uint16, and the line; it is the last message
	pagesTooMany = 3 // as pagesRefused: a snapshot is the way
)

// pageDatabase is what a Database of a primary also is.
type pageDatabase interface {
	PageSums() (litefs.PageSums, litefs.Pos)
	Locate(log []litefs.LogPos) (litefs.Relation, uint64)
	DiffLTX(ctx context.Context, base litefs.PageSums) (*litefs.LTXReader, error)
}

// maxExchanges bounds the exchanges at a time: each holds 16 bytes for every page of its database.
const maxExchanges = 4

// maxRefusal bounds the line of a refusal, in bytes.
const maxRefusal = 1024

// handlePages answers one exchange.
func (s *Server) handlePages(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor < 2 {
		s.refuse(w, r, http.StatusUpgradeRequired, "exchanges of pages need HTTP/2 with prior knowledge")
		return
	}
	if code, line := s.checkHandshake(r); code != 0 {
		s.refuse(w, r, code, line)
		return
	}
	if !s.src.IsPrimary() {
		s.refuse(w, r, http.StatusServiceUnavailable, "this node is not the primary")
		return
	}
	select {
	case s.exchanges <- struct{}{}:
		defer func() { <-s.exchanges }()
	default:
		w.Header().Set("Retry-After", "1")
		s.refuse(w, r, http.StatusTooManyRequests, fmt.Sprintf("%d databases are being compared already", maxExchanges))
		return
	}
	rc := http.NewResponseController(w)
	x := &exchange{
		s: s, ctx: r.Context(), rc: rc,
		in: bufio.NewReader(newBlockReader(r.Body)), out: newBlockStreamWriter(w, rc, s.limits.stall),
	}
	if err := x.hear(); err != nil {
		s.refuse(w, r, http.StatusBadRequest, err.Error())
		return
	}
	db, ok := s.src.Database(x.id)
	x.db, _ = db.(pageDatabase)
	if !ok || x.db == nil {
		s.refuse(w, r, http.StatusNotFound, fmt.Sprintf("no database %s", litefs.FormatDBID(x.id)))
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	log := s.opt.Logger.With("replica", r.Header.Get(headerID), "remote", r.RemoteAddr, "database", db.Name())
	err := x.run()
	if err = errors.Join(err, x.out.Flush()); err != nil {
		log.Warn("comparison of pages ended early", "reason", err)
		return
	}
	log.Info("pages compared with a replica", "mode", int(x.mode), "relation", x.relation.String(), "blocks", x.blocks, "pages", x.pages, "bytes", x.sent)
}

// exchange is one exchange at work, on the primary.
type exchange struct {
	s    *Server
	ctx  context.Context
	rc   *http.ResponseController
	in   *bufio.Reader
	out  *streamWriter
	db   pageDatabase
	id   uint32
	mode litefs.PagesMode
	log  []litefs.LogPos

	relation      litefs.Relation
	blocks, pages int   // that differ
	sent          int64 // bytes of the LTX file
}

// hear reads the node's first message.
func (x *exchange) hear() error {
	var b [9]byte
	if err := x.read(b[:], "question"); err != nil {
		return err
	}
	x.mode, x.id = litefs.PagesMode(b[0]), binary.BigEndian.Uint32(b[1:])
	n := binary.BigEndian.Uint32(b[5:])
	if x.mode > litefs.PagesFetch || n > litefs.MaxLogPositions {
		return fmt.Errorf("question of kind %d with %d positions, at most %d are allowed", x.mode, n, litefs.MaxLogPositions)
	}
	for range n {
		var b [24]byte
		if err := x.read(b[:], "position"); err != nil {
			return err
		}
		x.log = append(x.log, litefs.LogPos{
			Epoch: binary.BigEndian.Uint64(b[:]),
			Pos:   litefs.Pos{TXID: binary.BigEndian.Uint64(b[8:]), Chksum: binary.BigEndian.Uint64(b[16:])},
		})
	}
	return nil
}

// read reads exactly b, within the limit for a body.
func (x *exchange) read(b []byte, what string) error {
	if err := x.rc.SetReadDeadline(time.Now().Add(x.s.limits.body)); err != nil {
		return fmt.Errorf("read deadline: %w", err)
	}
	if err := readFull(x.in, b); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func (x *exchange) run() error {
	var common uint64
	x.relation, common = x.db.Locate(x.log)
	own, pos := x.db.PageSums()
	b := append([]byte(nil), byte(x.relation))
	b = binary.BigEndian.AppendUint64(b, common)
	b = binary.BigEndian.AppendUint64(b, pos.TXID)
	b = binary.BigEndian.AppendUint64(b, pos.Chksum)
	if err := x.send(b); err != nil || x.mode == litefs.PagesLocate {
		return err
	}
	theirs, err := x.compare(own)
	if err != nil {
		return err
	}
	differ := litefs.DifferingPages(own, theirs)
	x.pages = len(differ)
	if own.PageSize != theirs.PageSize {
		return x.refuse(fmt.Errorf("pages have %d bytes, the node's %d: %w", own.PageSize, theirs.PageSize, litefs.ErrSnapshotNeeded))
	}
	if x.mode == litefs.PagesList {
		b := binary.BigEndian.AppendUint32([]byte{pagesFollow}, uint32(len(differ)))
		for _, pgno := range differ {
			b = binary.BigEndian.AppendUint32(b, pgno)
		}
		return x.send(b)
	}
	if err := litefs.TooManyPages(len(differ), len(own.Sums)); err != nil {
		return x.refuse(err)
	}
	return x.sendPages(theirs)
}

// compare finds out the checksums of the node's pages: a block whose checksum is ours has our pages.
func (x *exchange) compare(own litefs.PageSums) (litefs.PageSums, error) {
	var b [8]byte
	if err := x.read(b[:], "size"); err != nil {
		return litefs.PageSums{}, err
	}
	pageSize, count := binary.BigEndian.Uint32(b[:]), binary.BigEndian.Uint32(b[4:])
	blocks, err := x.readSums(litefs.SumBlocks(int(count)), "checksums of blocks")
	if err != nil {
		return litefs.PageSums{}, err
	}
	var sums []uint64
	differ := litefs.DifferingBlocks(own.Blocks(), blocks)
	for len(differ) > 0 && int(differ[len(differ)-1]) >= len(blocks) {
		differ = differ[:len(differ)-1] // only we have it
	}
	x.blocks = len(differ)
	answer := binary.BigEndian.AppendUint32(nil, uint32(len(differ)))
	for _, i := range differ {
		answer = binary.BigEndian.AppendUint32(answer, i)
	}
	if err := x.send(answer); err != nil {
		return litefs.PageSums{}, err
	}
	for i := range blocks {
		n := min(litefs.SumBlock, int(count)-i*litefs.SumBlock)
		ours := own.Block(uint32(i))
		if len(differ) == 0 || differ[0] != uint32(i) {
			sums = append(sums, ours...)
			sums = append(sums, make([]uint64, max(0, n-len(ours)))...)
			sums = sums[:i*litefs.SumBlock+n]
			continue
		}
		differ = differ[1:]
		block, err := x.readSums(n, "checksums of pages")
		if err != nil {
			return litefs.PageSums{}, err
		}
		sums = append(sums, block...)
	}
	return litefs.PageSums{PageSize: pageSize, Sums: sums}, nil
}

// readSums reads n checksums. Memory grows with what was read, not with what was announced.
func (x *exchange) readSums(n int, what string) ([]uint64, error) {
	var sums []uint64
	b := make([]byte, 8*min(n, 4096))
	for len(sums) < n {
		b = b[:8*min(n-len(sums), 4096)]
		if err := x.read(b, what); err != nil {
			return nil, err
		}
		for i := 0; i < len(b); i += 8 {
			sums = append(sums, binary.BigEndian.Uint64(b[i:]))
		}
	}
	return sums, nil
}

// sendPages sends the file of the pages that differ, which may take its time to be made.
func (x *exchange) sendPages(theirs litefs.PageSums) (err error) {
	ltx, err := x.patiently(func(ctx context.Context) (*litefs.LTXReader, error) { return x.db.DiffLTX(ctx, theirs) })
	if err != nil {
		return x.refuse(err)
	}
	defer func() { err = errors.Join(err, ltx.Close()) }()
	if err := x.send(binary.BigEndian.AppendUint64([]byte{pagesFollow}, uint64(ltx.Size))); err != nil {
		return err
	}
	x.sent, err = io.Copy(x.out, io.LimitReader(ltx, ltx.Size))
	if err == nil && x.sent < ltx.Size {
		err = fmt.Errorf("LTX file ends at byte %d of %d: %w", x.sent, ltx.Size, io.ErrUnexpectedEOF)
	}
	return err
}

// patiently runs diff, and tells the node meanwhile that there will be more.
func (x *exchange) patiently(diff func(context.Context) (*litefs.LTXReader, error)) (*litefs.LTXReader, error) {
	ctx, cancel := context.WithCancelCause(x.ctx)
	defer context.AfterFunc(x.s.ctx, func() { cancel(errStopping) })()
	defer cancel(nil)
	var ltx *litefs.LTXReader
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		ltx, err = diff(ctx)
	}()
	tick := time.NewTicker(x.s.limits.heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return ltx, err
		case <-tick.C:
			if werr := x.send([]byte{pagesWait}); werr != nil {
				cancel(werr)
				<-done
				if err == nil {
					werr = errors.Join(werr, ltx.Close())
				}
				return nil, werr
			}
		}
	}
}

// refuse tells the node why it gets nothing.
func (x *exchange) refuse(why error) error {
	kind := byte(pagesRefused)
	if errors.Is(why, litefs.ErrSnapshotNeeded) {
		kind = pagesTooMany
	}
	line := why.Error()
	line = line[:min(len(line), maxRefusal)]
	b := binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(line)))
	return x.send(append(b, line...))
}

func (x *exchange) send(b []byte) error {
	if _, err := x.out.Write(b); err != nil {
		return err
	}
	return x.out.Flush()
}
