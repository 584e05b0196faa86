package http

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/litefs/litefs"
)

// This file is how a replica borrows the write lock of a database from the primary (POST /halt/acquire, /halt/renew,
// /halt/commit, /halt/outcome, /halt/release), and how a program on the replica asks its own node to do so
// (POST /halt/hold). docs/write-forwarding.md in the root says what the calls mean.

const (
	// headerToken names a hold. It opens nothing that the credential does not open.
	headerToken = "Litefs-Halt-Token"
	// headerHaltSum is a checksum of what a request or its answer says: a bit that changes on the way must not make
	// another outcome of it. Files are verified as a whole besides.
	headerHaltSum = "Litefs-Halt-Sum"
)

func haltSum(parts ...string) string {
	return fmt.Sprintf("%08x", crc32.Checksum([]byte(strings.Join(parts, "\n")), castagnoli))
}

const (
	maxHaltWait   = 10 * time.Second // of one request for the lock; then it is made again
	maxHaltToken  = 64               // bytes
	holdHeartbeat = 5 * time.Second
	holdRelease   = 5 * time.Second // for a local program that is in a transaction; the store waits on without us
)

// haltSource is what a Source also is that lends and borrows write locks.
type haltSource interface {
	Lend(ctx context.Context, id uint32, token string) (litefs.HaltGrant, error)
	RenewHold(id uint32, token string) (litefs.HaltNews, error)
	ReleaseHold(ctx context.Context, id uint32, token string) error
	CommitHeld(ctx context.Context, id uint32, token string, tx litefs.HaltTx, ltx io.Reader, size int64) (litefs.HaltNews, error)
	HeldOutcome(ctx context.Context, id uint32, token string, tx litefs.HaltTx) (litefs.HaltOutcome, error)
	Halt(ctx context.Context, name string) (*litefs.Halt, error)
}

// haltGrant is the answer to POST /halt/acquire.
type haltGrant struct {
	Epoch   uint64 `json:"epoch"`
	Pos     string `json:"pos"`
	TTLMS   int64  `json:"ttlMS"`
	FirstMS int64  `json:"firstMS"` // instead of ttlMS until the first renewal
}

// haltNews is the answer to POST /halt/renew and /halt/commit.
type haltNews struct {
	Wanted bool `json:"wanted,omitempty"` // somebody else waits for the lock
}

// haltOutcome is the answer to POST /halt/outcome.
type haltOutcome struct {
	Outcome string `json:"outcome"` // committed, void or unknown
}

// HoldLine is a line of the answer to POST /halt/hold. The first says that the lock is held. An empty one says that it
// still is, one with an error why not; it is the last.
type HoldLine struct {
	Held  bool   `json:"held,omitempty"`
	Error string `json:"error,omitempty"`
}

func (s *Server) haltRoutes() []route {
	db := param{name: "db", text: "id of the database", required: true}
	tx := []param{db, {name: "epoch", text: "of the hold", required: true}, {name: "pre", text: "position before it", required: true}, {name: "post", text: "position after it", required: true}}
	node := func(path, summary string, query []param, h haltHandler) route {
		return route{method: "POST", path: "/halt/" + path, access: accessNode, handler: s.halt(h), answer: typeJSON, summary: summary, query: query}
	}
	commit := node("commit", "A transaction of a replica that has the write lock: an LTX file.", tx, s.haltCommit)
	commit.ownBody = true
	return []route{
		node("acquire", "The write lock of a database, for a replica.", []param{db, {name: "wait", text: "for how long, like 5s"}}, s.haltAcquire),
		node("renew", "Prolongs a hold.", []param{db}, s.haltRenew),
		node("release", "Ends a hold.", []param{db}, s.haltRelease),
		node("outcome", "What became of a transaction whose answer was lost.", tx, s.haltOutcome),
		commit,
		{method: "POST", path: "/halt/hold", access: accessOperate, handler: s.handleHold, answer: typeLines, changes: true,
			summary: "Borrows the primary's write lock for programs on this node, for as long as the answer is read.",
			query:   []param{{name: "name", text: dbParam.text, required: true}, {name: "wait", text: "for how long, like 60s"}}},
	}
}

// haltCall is a request about a hold.
type haltCall struct {
	src   haltSource
	id    uint32
	token string
	w     http.ResponseWriter
	r     *http.Request
}

// haltHandler answers one, in JSON.
type haltHandler func(ctx context.Context, c haltCall) (answer any, err error)

// halt makes a handler of h: it reads what all requests about holds have, and says what an error means.
func (s *Server) halt(h haltHandler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if got, own := r.Header.Get(headerClusterID), s.src.ClusterID(); got != own || own == "" {
			s.refuse(w, r, http.StatusConflict, fmt.Sprintf("the request is of cluster %.128q, this node of %q", got, own))
			return
		}
		if got, want := r.Header.Get(headerHaltSum), haltSum(path.Base(r.URL.Path), r.URL.RawQuery, r.Header.Get(headerToken)); got != want {
			s.refuse(w, r, http.StatusBadRequest, errCorrupt.Error())
			return
		}
		id, err := litefs.ParseDBID(r.URL.Query().Get("db"))
		if err != nil {
			s.refuse(w, r, http.StatusBadRequest, err.Error())
			return
		}
		token := r.Header.Get(headerToken)
		if token == "" || len(token) > maxHaltToken {
			s.refuse(w, r, http.StatusBadRequest, fmt.Sprintf("%s of %d bytes, want 1 to %d", headerToken, len(token), maxHaltToken))
			return
		}
		src, ok := s.src.(haltSource)
		if !ok {
			s.refuse(w, r, http.StatusNotImplemented, "this node lends no write locks")
			return
		}
		ctx, cancel := context.WithCancelCause(r.Context())
		defer context.AfterFunc(s.ctx, func() { cancel(errStopping) })()
		defer cancel(nil)
		answer, err := h(ctx, haltCall{src, id, token, w, r})
		switch {
		case errors.Is(err, litefs.ErrReadOnlyReplica):
			s.refuseReplica(w, r)
		case err != nil:
			s.refuse(w, r, haltStatus(err), err.Error())
		default:
			b, err := json.Marshal(answer)
			if err != nil {
				s.fault(w, err)
				return
			}
			w.Header().Set(headerHaltSum, haltSum(string(b)))
			s.answer(w, r, typeJSON, b)
		}
	}
}

// badCall is a request that says nothing that could be done.
type badCall struct{ error }

// haltStatuses are the statuses by which the errors of a hold travel.
var haltStatuses = []struct {
	err    error
	status int
}{
	{litefs.ErrHaltLost, http.StatusGone},
	{litefs.ErrNotJoined, http.StatusConflict},
	{litefs.ErrNotLent, http.StatusUnprocessableEntity},
	{litefs.ErrDatabaseNotFound, http.StatusNotFound},
}

func haltStatus(err error) int {
	for _, s := range haltStatuses {
		if errors.Is(err, s.err) {
			return s.status
		}
	}
	if errors.As(err, new(badCall)) {
		return http.StatusBadRequest
	}
	return http.StatusServiceUnavailable
}

func parseHaltWait(r *http.Request, most time.Duration) (time.Duration, error) {
	text := r.URL.Query().Get("wait")
	if text == "" {
		return most, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, badCall{fmt.Errorf("wait %.32q: want a duration like 5s", text)}
	}
	return min(d, most), nil
}

func (s *Server) haltAcquire(ctx context.Context, c haltCall) (any, error) {
	wait, err := parseHaltWait(c.r, maxHaltWait)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	g, err := c.src.Lend(ctx, c.id, c.token)
	if err != nil {
		return nil, err
	}
	return haltGrant{Epoch: g.Epoch, Pos: g.Pos.String(), TTLMS: g.TTL.Milliseconds(), FirstMS: g.First.Milliseconds()}, nil
}

func (s *Server) haltRenew(_ context.Context, c haltCall) (any, error) {
	news, err := c.src.RenewHold(c.id, c.token)
	return haltNews{news.Wanted}, err
}

func (s *Server) haltRelease(ctx context.Context, c haltCall) (any, error) {
	return nil, c.src.ReleaseHold(ctx, c.id, c.token)
}

func (s *Server) haltOutcome(ctx context.Context, c haltCall) (any, error) {
	tx, err := parseHaltTx(c.r.URL.Query())
	if err != nil {
		return nil, badCall{err}
	}
	out, err := c.src.HeldOutcome(ctx, c.id, c.token, tx)
	return haltOutcome{out.String()}, err
}

func (s *Server) haltCommit(ctx context.Context, c haltCall) (any, error) {
	tx, err := parseHaltTx(c.r.URL.Query())
	if err != nil {
		return nil, badCall{err}
	}
	if c.r.ContentLength <= 0 {
		return nil, badCall{errors.New("the size of the transaction must be known beforehand: send a Content-Length")}
	}
	body := &deadlineReader{r: c.r.Body, rc: http.NewResponseController(c.w), patience: s.limits.stall}
	news, err := c.src.CommitHeld(ctx, c.id, c.token, tx, body, c.r.ContentLength)
	return haltNews{news.Wanted}, err
}

func parseHaltTx(q url.Values) (tx litefs.HaltTx, err error) {
	if tx.Epoch, err = strconv.ParseUint(q.Get("epoch"), 10, 64); err != nil {
		return tx, fmt.Errorf("epoch %.32q is no number", q.Get("epoch"))
	}
	if tx.Pre, err = litefs.ParsePos(q.Get("pre")); err != nil {
		return tx, err
	}
	tx.Post, err = litefs.ParsePos(q.Get("post"))
	return tx, err
}

// handleHold borrows the lock for programs on this node, until the caller is gone.
func (s *Server) handleHold(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("name")
	if err := litefs.ValidateName(name); err != nil {
		s.refuse(w, r, http.StatusBadRequest, err.Error())
		return
	}
	wait, err := parseHaltWait(r, time.Hour)
	if err != nil {
		s.refuse(w, r, http.StatusBadRequest, err.Error())
		return
	}
	src, ok := s.src.(haltSource)
	if !ok {
		s.refuse(w, r, http.StatusNotImplemented, "this node borrows no write locks")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer context.AfterFunc(s.ctx, cancel)()
	h, err := src.Halt(ctx, name)
	cancel()
	if err != nil {
		s.refuse(w, r, haltStatus(err), err.Error())
		return
	}
	w.Header().Set("Content-Type", typeLines)
	out := newStreamWriter(w, http.NewResponseController(w), s.limits.stall)
	err = s.tellHold(r.Context(), h, out)
	ctx, cancel = context.WithTimeout(context.WithoutCancel(r.Context()), holdRelease)
	defer cancel()
	if err := errors.Join(err, h.Release(ctx)); err != nil {
		s.opt.Logger.Warn("a hold has ended", "database", name, "reason", err)
	}
}

// tellHold tells the caller that the lock is held, for as long as it is and the caller listens.
func (s *Server) tellHold(ctx context.Context, h *litefs.Halt, out *streamWriter) error {
	enc := json.NewEncoder(out)
	tick := time.NewTicker(holdHeartbeat)
	defer tick.Stop()
	line := HoldLine{Held: true}
	for {
		if err := errors.Join(enc.Encode(line), out.Flush()); err != nil {
			return err
		}
		line = HoldLine{}
		select {
		case <-ctx.Done():
			return nil
		case <-s.ctx.Done():
			return errStopping
		case <-tick.C:
		case <-h.Done():
			err := h.Err()
			return errors.Join(err, enc.Encode(HoldLine{Error: err.Error()}), out.Flush())
		}
	}
}

// haltLink is a litefs.HaltLink over one connection.
type haltLink struct {
	c    *Client
	url  string
	conn *connection
}

var _ litefs.HaltClient = (*Client)(nil)

// HaltLink returns a connection to the node at rawurl. The client needs an identity.
func (c *Client) HaltLink(rawurl string) litefs.HaltLink {
	return &haltLink{c, rawurl, c.newConnection()}
}

// Close implements litefs.HaltLink.
func (l *haltLink) Close() { l.conn.close() }

// call makes one request. body may be nil.
func (l *haltLink) call(ctx context.Context, path string, dbID uint32, token string, q url.Values, body io.Reader, size int64, answer any) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s at %s: %w", path, l.url, err)
		}
	}()
	u, err := endpoint(l.url, "halt/"+path)
	if err != nil {
		return err
	}
	if q == nil {
		q = url.Values{}
	}
	q.Set("db", litefs.FormatDBID(dbID))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u+"?"+q.Encode(), body)
	if err != nil {
		return err
	}
	req.ContentLength = size
	req.Header.Set(headerToken, token)
	req.Header.Set(headerHaltSum, haltSum(path, req.URL.RawQuery, token))
	l.c.identify(req)
	resp, err := l.c.do(l.conn, req)
	if err != nil {
		if status := (*StatusError)(nil); errors.As(err, &status) {
			for _, s := range haltStatuses {
				if s.status == status.Code {
					return fmt.Errorf("%w: %w", s.err, err)
				}
			}
		}
		return err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxPositionSize))
	if err == nil && resp.Header.Get(headerHaltSum) != haltSum(string(b)) {
		err = errCorrupt
	}
	if err == nil {
		err = json.Unmarshal(b, answer)
	}
	if err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return nil
}

// Acquire implements litefs.HaltLink. One call waits for a while only.
func (l *haltLink) Acquire(ctx context.Context, dbID uint32, token string) (g litefs.HaltGrant, err error) {
	wait := maxHaltWait
	if deadline, ok := ctx.Deadline(); ok {
		wait = max(0, min(wait, time.Until(deadline)))
	}
	ctx, cancel := context.WithTimeout(ctx, wait+l.c.timeouts.info)
	defer cancel()
	var answer haltGrant
	if err := l.call(ctx, "acquire", dbID, token, url.Values{"wait": {wait.String()}}, nil, 0, &answer); err != nil {
		return g, err
	}
	g = litefs.HaltGrant{
		Epoch: answer.Epoch,
		TTL:   time.Duration(answer.TTLMS) * time.Millisecond, First: time.Duration(answer.FirstMS) * time.Millisecond,
	}
	g.Pos, err = litefs.ParsePos(answer.Pos)
	return g, err
}

// Renew implements litefs.HaltLink.
func (l *haltLink) Renew(ctx context.Context, dbID uint32, token string) (litefs.HaltNews, error) {
	var answer haltNews
	err := l.call(ctx, "renew", dbID, token, nil, nil, 0, &answer)
	return litefs.HaltNews{Wanted: answer.Wanted}, err
}

// Release implements litefs.HaltLink.
func (l *haltLink) Release(ctx context.Context, dbID uint32, token string) error {
	return l.call(ctx, "release", dbID, token, nil, nil, 0, &struct{}{})
}

// Commit implements litefs.HaltLink.
func (l *haltLink) Commit(ctx context.Context, dbID uint32, token string, tx litefs.HaltTx, ltx io.Reader, size int64) (litefs.HaltNews, error) {
	var answer haltNews
	err := l.call(ctx, "commit", dbID, token, haltTxQuery(tx), ltx, size, &answer)
	return litefs.HaltNews{Wanted: answer.Wanted}, err
}

// Outcome implements litefs.HaltLink.
func (l *haltLink) Outcome(ctx context.Context, dbID uint32, token string, tx litefs.HaltTx) (litefs.HaltOutcome, error) {
	var answer haltOutcome
	if err := l.call(ctx, "outcome", dbID, token, haltTxQuery(tx), nil, 0, &answer); err != nil {
		return litefs.HaltUnknown, err
	}
	return litefs.ParseHaltOutcome(answer.Outcome)
}

func haltTxQuery(tx litefs.HaltTx) url.Values {
	return url.Values{"epoch": {strconv.FormatUint(tx.Epoch, 10)}, "pre": {tx.Pre.String()}, "post": {tx.Post.String()}}
}

// Held is the primary's write lock, for programs on the node that was asked for it.
type Held struct {
	conn *connection
	done chan struct{}
	err  error // when done is closed
}

// Done is closed when the lock is lost, or the node is gone; Err says why then.
func (h *Held) Done() <-chan struct{} { return h.done }

// Err waits for Done.
func (h *Held) Err() error {
	<-h.done
	return h.err
}

// Close gives the lock back.
func (h *Held) Close() {
	h.conn.close()
	<-h.done
}

// Hold asks the node at rawurl, a replica, to borrow the primary's write lock of a database, and waits for it.
func (c *Client) Hold(ctx context.Context, rawurl, name string, wait time.Duration) (_ *Held, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write lock of %s at %s: %w", name, rawurl, err)
		}
	}()
	u, err := endpoint(rawurl, "halt/hold")
	if err != nil {
		return nil, err
	}
	q := url.Values{"name": {name}, "wait": {wait.String()}}
	req, err := http.NewRequestWithContext(context.WithoutCancel(ctx), http.MethodPost, u+"?"+q.Encode(), nil)
	if err != nil {
		return nil, err
	}
	conn := c.newConnection()
	stop := context.AfterFunc(ctx, conn.close) // until the lock is held; then it is for who holds it
	resp, err := c.do(conn, req)
	if err == nil && !stop() {
		err = errors.Join(context.Cause(ctx), resp.Body.Close())
	}
	if err != nil {
		conn.close()
		return nil, err
	}
	lines := json.NewDecoder(resp.Body)
	var first HoldLine
	err = lines.Decode(&first)
	if err == nil && !first.Held {
		err = fmt.Errorf("it says %.128q", printable(first.Error))
	}
	if err != nil {
		conn.close()
		return nil, errors.Join(fmt.Errorf("the first line of the answer does not say that it is held: %w", err), resp.Body.Close())
	}
	h := &Held{conn: conn, done: make(chan struct{})}
	go func() {
		defer close(h.done)
		h.err = errors.Join(holdEnd(lines), resp.Body.Close())
	}()
	return h, nil
}

// holdEnd reads until the hold is over.
func holdEnd(lines *json.Decoder) error {
	for {
		var line HoldLine
		if err := lines.Decode(&line); err != nil {
			return fmt.Errorf("the node is gone: %w", err)
		}
		if line.Error != "" {
			return errors.New(printable(line.Error))
		}
	}
}
