package http

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/litefs/litefs"
)

// maxWait bounds how long one request waits for a position.
const maxWait = 5 * time.Minute

// Waited is the answer to a wait: where the database is now.
type Waited struct {
	Name  string `json:"name"`
	Pos   string `json:"pos"`
	Epoch uint64 `json:"epoch"`
}

// waitRequest is what GET /db/NAME/wait asks for.
type waitRequest struct {
	name    string
	pos     litefs.Pos // Chksum 0: any
	epoch   uint64     // 0: of any
	timeout time.Duration
}

// handleDB answers below /db/: a name may hold slashes, which patterns of the mux cannot say.
func (s *Server) handleDB(w http.ResponseWriter, r *http.Request) {
	name, ok := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/db/"), "/wait")
	if !ok || litefs.ValidateName(name) != nil {
		s.refuse(w, r, http.StatusNotFound, "want GET /db/NAME/wait?pos=TXID")
		return
	}
	req, err := parseWait(name, r.URL.Query())
	if err != nil {
		s.refuse(w, r, http.StatusBadRequest, err.Error())
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), req.timeout)
	defer cancel()
	stop := context.AfterFunc(s.ctx, cancel)
	defer stop()
	code, err := s.awaitPos(ctx, req)
	if err != nil {
		s.refuse(w, r, code, err.Error())
		return
	}
	db, ok := s.byName(name)
	if !ok {
		s.refuse(w, r, http.StatusNotFound, "the database was dropped")
		return
	}
	b, err := json.Marshal(Waited{name, db.Pos().String(), s.src.Epoch()})
	if err != nil {
		s.fault(w, err)
		return
	}
	s.answer(w, r, "application/json", append(b, '\n'))
}

// parseWait reads pos (TXID, or TXID/checksum, in hex), epoch (decimal) and timeout (a duration).
func parseWait(name string, q url.Values) (req waitRequest, err error) {
	req = waitRequest{name: name, timeout: 10 * time.Second}
	pos := q.Get("pos")
	if !strings.Contains(pos, "/") {
		pos += "/0000000000000000"
	}
	if req.pos, err = litefs.ParsePos(pos); err != nil {
		return req, fmt.Errorf("pos: %w", err)
	}
	if v := q.Get("epoch"); v != "" {
		if req.epoch, err = strconv.ParseUint(v, 10, 64); err != nil {
			return req, fmt.Errorf("epoch %q is no number", v)
		}
	}
	if v := q.Get("timeout"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 || d > maxWait {
			return req, fmt.Errorf("timeout %q is no duration up to %v, like 500ms", v, maxWait)
		}
		req.timeout = d
	}
	return req, nil
}

// awaitPos waits until a database has what a position names. What cannot come any more is not waited for.
func (s *Server) awaitPos(ctx context.Context, req waitRequest) (code int, err error) {
	sub := s.src.Subscribe()
	defer func() { err = errors.Join(err, sub.Close()) }()
	for {
		db, ok := s.byName(req.name)
		if ok {
			if err := db.Settle(); err != nil {
				return http.StatusServiceUnavailable, err
			}
			pos, epoch := db.Pos(), s.src.Epoch()
			switch {
			case req.epoch != 0 && epoch < req.epoch: // this node is yet to hear of it
			case pos.TXID == req.pos.TXID && req.pos.Chksum != 0 && pos.Chksum != req.pos.Chksum:
				return http.StatusConflict, fmt.Errorf("%s is at %s, which is another history than %s", req.name, pos, req.pos)
			case pos.TXID >= req.pos.TXID:
				return 0, nil
			case req.epoch != 0 && epoch > req.epoch:
				return http.StatusConflict, fmt.Errorf("%s is at %s in epoch %d: what came after it in epoch %d may be lost", req.name, pos, epoch, req.epoch)
			}
		}
		select {
		case <-sub.NotifyCh():
		case <-ctx.Done():
			at := "is not here"
			if ok {
				at = "is at " + db.Pos().String()
			}
			return http.StatusGatewayTimeout, fmt.Errorf("%s %s, not at %016x yet", req.name, at, req.pos.TXID)
		}
	}
}

// Wait waits until the node at rawurl has a position of a database; TXID alone counts when the checksum
// is 0, any epoch when it is 0. The error is a *StatusError when the node does not get there.
func (c *Client) Wait(ctx context.Context, rawurl, name string, pos litefs.Pos, epoch uint64, timeout time.Duration) (w Waited, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("wait for %s at %s: %w", name, rawurl, err)
		}
	}()
	u, err := endpoint(rawurl, "db/"+name+"/wait")
	if err != nil {
		return w, err
	}
	q := url.Values{"pos": {fmt.Sprintf("%016x", pos.TXID)}, "timeout": {timeout.String()}}
	if pos.Chksum != 0 {
		q.Set("pos", pos.String())
	}
	if epoch != 0 {
		q.Set("epoch", strconv.FormatUint(epoch, 10))
	}
	ctx, cancel := context.WithTimeout(ctx, timeout+c.timeouts.info)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u+"?"+q.Encode(), nil)
	if err != nil {
		return w, err
	}
	conn := c.newConnection()
	defer conn.close()
	conn.transport.ResponseHeaderTimeout = timeout + c.timeouts.info
	resp, err := c.do(conn, req)
	if err != nil {
		return w, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxInfoSize))
	if err != nil {
		return w, err
	}
	if err := json.Unmarshal(b, &w); err != nil {
		return w, fmt.Errorf("answer: %w", err)
	}
	return w, nil
}
