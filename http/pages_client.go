package http

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/litefs/litefs"
)

var _ litefs.PageClient = (*Client)(nil)

// Pages compares the pages of a database with the node at rawurl. The error is litefs.ErrSnapshotNeeded
// when too many differ, litefs.ErrBusy when the node compares too many databases already, a *StatusError
// when it refuses.
func (c *Client) Pages(ctx context.Context, rawurl string, q litefs.PagesQuery) (*litefs.PagesAnswer, error) {
	a, err := c.pages(ctx, rawurl, q)
	if err != nil {
		return nil, fmt.Errorf("compare pages with %s: %w", rawurl, err)
	}
	return a, nil
}

func (c *Client) pages(ctx context.Context, rawurl string, q litefs.PagesQuery) (_ *litefs.PagesAnswer, err error) {
	if c.identity == nil {
		return nil, errors.New("a client without an identity compares no pages")
	}
	u, err := endpoint(rawurl, "pages")
	if err != nil {
		return nil, err
	}
	body, up := io.Pipe()
	ctx, cancel := context.WithCancelCause(ctx)
	// The transport does not look at the context while it reads the body.
	context.AfterFunc(ctx, func() { _ = up.CloseWithError(context.Cause(ctx)) }) // never fails
	conn := c.newConnection()
	x := &pageExchange{cancel: cancel, conn: conn, up: newBlockWriter(up), q: q, answer: &litefs.PagesAnswer{}}
	defer func() {
		if err != nil || x.answer.LTX == nil {
			err = errors.Join(err, x.close(err))
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	c.identify(req)
	req.Header.Set(headerSum, handshakeSum(req.Header))
	question := x.question()
	x.answer.Wire = int64(len(question))
	x.asking.Go(func() {
		_, _ = x.up.Write(question) // an error is that of the request, which ended
	})
	watchdog := time.AfterFunc(c.timeouts.handshake, func() { cancel(ErrStalled) })
	resp, err := c.do(conn, req)
	if !watchdog.Stop() && err == nil {
		err = errors.Join(ErrStalled, resp.Body.Close())
	}
	if err != nil {
		if serr := (*StatusError)(nil); errors.As(err, &serr) && serr.Code == http.StatusTooManyRequests {
			return nil, fmt.Errorf("%w: %w", litefs.ErrBusy, err)
		}
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, err
	}
	x.body = resp.Body
	x.in = bufio.NewReader(newBlockReader(&patientReader{ctx: ctx, cancel: cancel, r: resp.Body, patience: c.timeouts.stall}))
	return x.answer, x.run()
}

// identify sets the headers that tell who asks.
func (c *Client) identify(req *http.Request) {
	req.Header.Set(headerProtocol, protocolVersion)
	req.Header.Set(headerLTX, ltxVersion)
	req.Header.Set(headerClusterID, c.identity.ClusterID())
	req.Header.Set(headerID, c.identity.NodeID())
	req.Header.Set(headerEpoch, strconv.FormatUint(c.identity.Epoch(), 10))
	req.Header.Set(headerSum, handshakeSum(req.Header))
}

// pageExchange is one exchange at work, on the node that asks.
type pageExchange struct {
	cancel context.CancelCauseFunc
	conn   *connection
	body   io.ReadCloser // nil before the answer begins
	up     *blockWriter
	in     *bufio.Reader
	q      litefs.PagesQuery
	answer *litefs.PagesAnswer
	asking sync.WaitGroup
}

// close ends the exchange and its connection.
func (x *pageExchange) close(cause error) error {
	if cause == nil {
		cause = errClosed
	}
	x.cancel(cause)
	var err error
	if x.body != nil {
		err = x.body.Close()
	}
	x.conn.close()
	x.asking.Wait() // the pipe is closed with the context
	return err
}

func (x *pageExchange) question() []byte {
	log := x.q.Log[:min(len(x.q.Log), litefs.MaxLogPositions)]
	b := []byte{byte(x.q.Mode)}
	b = binary.BigEndian.AppendUint32(b, x.q.DBID)
	b = binary.BigEndian.AppendUint32(b, uint32(len(log)))
	for _, p := range log {
		b = binary.BigEndian.AppendUint64(b, p.Epoch)
		b = binary.BigEndian.AppendUint64(b, p.TXID)
		b = binary.BigEndian.AppendUint64(b, p.Chksum)
	}
	return b
}

func (x *pageExchange) write(b []byte) error {
	n, err := x.up.Write(b)
	x.answer.Wire += int64(n)
	return err
}

func (x *pageExchange) read(b []byte) error {
	if err := readFull(x.in, b); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	x.answer.Wire += int64(len(b))
	return nil
}

func (x *pageExchange) uint32() (uint32, error) {
	var b [4]byte
	err := x.read(b[:])
	return binary.BigEndian.Uint32(b[:]), err
}

func (x *pageExchange) run() error {
	var b [25]byte
	if err := x.read(b[:]); err != nil {
		return err
	}
	a := x.answer
	a.Relation, a.Common = litefs.Relation(b[0]), binary.BigEndian.Uint64(b[1:])
	a.Pos = litefs.Pos{TXID: binary.BigEndian.Uint64(b[9:]), Chksum: binary.BigEndian.Uint64(b[17:])}
	if a.Relation > litefs.RelationForked {
		return fmt.Errorf("answer: relation %d of histories", a.Relation)
	}
	if x.q.Mode == litefs.PagesLocate {
		return nil
	}
	x.asking.Wait() // the question has been answered, so it was sent
	if err := x.showSums(); err != nil {
		return err
	}
	return x.readResult()
}

// showSums sends the checksums of the blocks, and then of the pages in those that differ.
func (x *pageExchange) showSums() error {
	have := x.q.Have
	b := binary.BigEndian.AppendUint32(nil, have.PageSize)
	b = binary.BigEndian.AppendUint32(b, uint32(len(have.Sums)))
	for _, sum := range have.Blocks() {
		b = binary.BigEndian.AppendUint64(b, sum)
	}
	if err := x.write(b); err != nil {
		return err
	}
	n, err := x.uint32()
	if err != nil {
		return err
	}
	blocks := litefs.SumBlocks(len(have.Sums))
	if int64(n) > int64(blocks) {
		return fmt.Errorf("answer: %d blocks of %d differ", n, blocks)
	}
	b = b[:0]
	next := uint32(0)
	for range n {
		i, err := x.uint32()
		if err != nil {
			return err
		}
		if i < next || int64(i) >= int64(blocks) {
			return fmt.Errorf("answer: block %d after %d, of %d", i, next, blocks)
		}
		next = i + 1
		for _, sum := range have.Block(i) {
			b = binary.BigEndian.AppendUint64(b, sum)
		}
	}
	return x.write(b)
}

// readResult reads the last messages.
func (x *pageExchange) readResult() error {
	var kind [1]byte
	for {
		if err := x.read(kind[:]); err != nil {
			return err
		}
		if kind[0] != pagesWait {
			break
		}
	}
	switch {
	case kind[0] == pagesRefused || kind[0] == pagesTooMany:
		return x.readRefusal(kind[0])
	case kind[0] != pagesFollow:
		return fmt.Errorf("answer: message of kind %d", kind[0])
	case x.q.Mode == litefs.PagesList:
		return x.readList()
	}
	var b [8]byte
	if err := x.read(b[:]); err != nil {
		return err
	}
	size := int64(binary.BigEndian.Uint64(b[:]))
	if size < 1 || size > litefs.MaxStreamFrameLTXSize {
		return fmt.Errorf("answer: LTX file of %d bytes", size)
	}
	x.answer.LTX = &litefs.LTXReader{ReadCloser: &pagesFile{io.LimitReader(x.in, size), x}, Size: size}
	return nil
}

func (x *pageExchange) readRefusal(kind byte) error {
	var b [2]byte
	if err := x.read(b[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint16(b[:])
	if n > maxRefusal {
		return fmt.Errorf("answer: refusal of %d bytes", n)
	}
	line := make([]byte, n)
	if err := x.read(line); err != nil {
		return err
	}
	if kind == pagesTooMany {
		return fmt.Errorf("%w: %s", litefs.ErrSnapshotNeeded, printable(string(line)))
	}
	return fmt.Errorf("refused: %s", printable(string(line)))
}

func (x *pageExchange) readList() error {
	n, err := x.uint32()
	if err != nil {
		return err
	}
	last := uint32(0)
	for range n {
		pgno, err := x.uint32()
		if err != nil {
			return err
		}
		if pgno <= last {
			return fmt.Errorf("answer: page %d after page %d", pgno, last)
		}
		last = pgno
		x.answer.Pgnos = append(x.answer.Pgnos, pgno)
	}
	return nil
}

// pagesFile is the LTX file at the end of an exchange; closing it ends the exchange.
type pagesFile struct {
	io.Reader
	x *pageExchange
}

func (f *pagesFile) Close() error { return f.x.close(nil) }
