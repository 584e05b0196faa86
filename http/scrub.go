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
	"sync"
	"time"

	"github.com/litefs/litefs"
)

// ScrubLine is one line of the answer to POST /scrub?db=NAME&rate=BYTES: how far it is, and in the last
// one what was found or why it ended.
type ScrubLine struct {
	Done   int64      `json:"done"` // bytes
	Total  int64      `json:"total"`
	Report *ScrubInfo `json:"report,omitempty"`
	Error  string     `json:"error,omitempty"`
}

// ScrubInfo is what a scrub found.
type ScrubInfo struct {
	Name    string   `json:"name"`
	TXID    string   `json:"txid"`
	Pages   int      `json:"pages"`
	Entries int      `json:"entries"` // of the log
	Bytes   int64    `json:"bytes"`   // that were read
	Damaged []uint32 `json:"damaged,omitempty"`
	Writing int      `json:"writing,omitempty"` // pages that could not be looked at: a transaction was changing them
	Faults  []string `json:"faults,omitempty"`
	Primary string   `json:"primary,omitempty"` // what the comparison with the primary said
}

// scrubSource is what a Source also is whose databases can be scrubbed.
type scrubSource interface {
	Scrub(ctx context.Context, name string, o litefs.ScrubOptions) (litefs.ScrubReport, error)
}

// maxDamagedListed bounds the pages in an answer.
const maxDamagedListed = 1000

func (s *Server) handleScrub(w http.ResponseWriter, r *http.Request) {
	src, ok := s.src.(scrubSource)
	if !ok {
		s.refuse(w, r, http.StatusNotImplemented, "this node scrubs nothing")
		return
	}
	q := r.URL.Query()
	rate, err := strconv.ParseInt(q.Get("rate"), 10, 64)
	if err != nil || rate < 0 {
		s.refuse(w, r, http.StatusBadRequest, "rate: want bytes a second, 0 for no bound")
		return
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer context.AfterFunc(s.ctx, func() { cancel(errStopping) })()
	defer cancel(nil)
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := &lineWriter{s: s, rc: http.NewResponseController(w), enc: json.NewEncoder(w), failed: cancel}
	var last ScrubLine
	report, err := src.Scrub(ctx, q.Get("db"), litefs.ScrubOptions{Rate: rate, Progress: func(done, total int64) {
		last.Done, last.Total = done, total
		out.write(last)
	}})
	if err != nil {
		last.Error = err.Error()
	} else {
		info := scrubInfo(report)
		last.Done, last.Report = report.Bytes, &info
	}
	out.write(last)
}

// lineWriter writes lines of JSON, each at once.
type lineWriter struct {
	s      *Server
	rc     *http.ResponseController
	failed context.CancelCauseFunc

	mu  sync.Mutex
	enc *json.Encoder
}

func (w *lineWriter) write(v any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.rc.SetWriteDeadline(time.Now().Add(w.s.limits.body))
	if err == nil {
		err = w.enc.Encode(v)
	}
	if err == nil {
		err = w.rc.Flush()
	}
	if err != nil {
		w.failed(fmt.Errorf("whoever asked has gone: %w", err))
	}
}

func scrubInfo(r litefs.ScrubReport) ScrubInfo {
	return ScrubInfo{
		Name: r.Name, TXID: hex16(r.Pos.TXID), Pages: r.Pages, Entries: r.Entries, Bytes: r.Bytes,
		Damaged: r.Damaged[:min(len(r.Damaged), maxDamagedListed)], Writing: r.Writing, Faults: r.Faults, Primary: r.Primary,
	}
}

// Scrub asks the node at rawurl to scrub a database, at most rate bytes a second (0: no bound), and tells
// progress, if that is not nil, how far it is.
func (c *Client) Scrub(ctx context.Context, rawurl, name string, rate int64, progress func(done, total int64)) (ScrubInfo, error) {
	info, err := c.scrub(ctx, rawurl, name, rate, progress)
	if err != nil {
		return info, fmt.Errorf("scrub %s at %s: %w", name, rawurl, err)
	}
	return info, nil
}

func (c *Client) scrub(ctx context.Context, rawurl, name string, rate int64, progress func(done, total int64)) (info ScrubInfo, err error) {
	u, err := endpoint(rawurl, "scrub")
	if err != nil {
		return info, err
	}
	q := url.Values{"db": {name}, "rate": {strconv.FormatInt(rate, 10)}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u+"?"+q.Encode(), nil)
	if err != nil {
		return info, err
	}
	conn := c.newConnection()
	defer conn.close()
	resp, err := c.do(conn, req)
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	lines := json.NewDecoder(io.LimitReader(resp.Body, maxInfoSize))
	for {
		var line ScrubLine
		if err := lines.Decode(&line); err != nil {
			return info, fmt.Errorf("answer: %w", err)
		}
		switch {
		case line.Error != "":
			return info, errors.New(printable(line.Error))
		case line.Report != nil:
			return *line.Report, nil
		case progress != nil:
			progress(line.Done, line.Total)
		}
	}
}
