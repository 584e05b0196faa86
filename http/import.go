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
	"time"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs"
)

// headerChecksum is the checksum of the pages of a request's database, as a
// position has it.
const headerChecksum = "Litefs-Checksum"

// ImportInfo is the answer to POST /import?name=NAME, whose body is a database
// file.
type ImportInfo struct {
	Name     string `json:"name"`
	Pos      string `json:"pos"`
	TXID     string `json:"txid"`
	Created  bool   `json:"created"` // there was no such database
	Pages    uint32 `json:"pages"`
	PageSize uint32 `json:"pageSize"`
	OldPages uint32 `json:"oldPages"` // of the database before
}

// importSource is what a Source also is that imports databases.
type importSource interface {
	Import(ctx context.Context, name string, r io.Reader, size int64, sum uint64) (litefs.Imported, error)
}

func (s *Server) handleImport(w http.ResponseWriter, r *http.Request) {
	src, ok := s.src.(importSource)
	if !ok {
		s.refuse(w, r, http.StatusNotImplemented, "this node imports nothing")
		return
	}
	if !s.src.IsPrimary() {
		s.refuseReplica(w, r)
		return
	}
	if r.ContentLength < 0 {
		s.refuse(w, r, http.StatusLengthRequired, "the size of the database must be known beforehand: send a Content-Length")
		return
	}
	var sum uint64
	if text := r.Header.Get(headerChecksum); text != "" {
		var err error
		if sum, err = strconv.ParseUint(text, 16, 64); err != nil {
			s.refuse(w, r, http.StatusBadRequest, headerChecksum+" is no number of 16 hexadecimal digits")
			return
		}
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer context.AfterFunc(s.ctx, func() { cancel(errStopping) })()
	defer cancel(nil)
	name := r.URL.Query().Get("name")
	body := &deadlineReader{r: r.Body, rc: http.NewResponseController(w), patience: s.limits.stall}
	got, err := src.Import(ctx, name, body, r.ContentLength, sum)
	switch {
	case err == nil:
		s.answerJSON(w, r, ImportInfo{
			Name: name, Pos: got.Pos.String(), TXID: hex16(got.Pos.TXID), Created: got.Created,
			Pages: got.Pages, PageSize: got.PageSize, OldPages: got.OldPages,
		})
	case errors.Is(err, litefs.ErrReadOnlyReplica):
		s.refuseReplica(w, r)
	default:
		s.refuse(w, r, importStatus(err), err.Error())
	}
}

func importStatus(err error) int {
	switch {
	case errors.Is(err, litefs.ErrNotImported):
		return http.StatusBadRequest
	case errors.Is(err, litefs.ErrBusy):
		return http.StatusConflict
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return http.StatusInsufficientStorage
	}
	return http.StatusInternalServerError
}

// refuseReplica says who the primary is.
func (s *Server) refuseReplica(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Retry-After", "1")
	line := "this node is not the primary and knows none"
	if u := s.src.PrimaryURL(); u != "" {
		w.Header().Set(headerPrimaryURL, u)
		line = "this node is not the primary, " + u + " is"
	}
	s.refuse(w, r, http.StatusServiceUnavailable, line)
}

// deadlineReader reads a body, each read for as long as its patience lasts.
type deadlineReader struct {
	r        io.Reader
	rc       *http.ResponseController
	patience time.Duration
}

func (d *deadlineReader) Read(p []byte) (int, error) {
	if err := d.rc.SetReadDeadline(time.Now().Add(d.patience)); err != nil {
		return 0, fmt.Errorf("set a deadline: %w", err)
	}
	n, err := d.r.Read(p)
	if err == io.EOF {
		// What HTTP/1 reads beyond it tells that the client is gone, which a deadline would do too.
		if derr := d.rc.SetReadDeadline(time.Time{}); derr != nil {
			return n, fmt.Errorf("clear a deadline: %w", derr)
		}
	}
	return n, err
}

// Import makes body, a database file of size bytes whose pages have the checksum
// sum (0: not known), the content of a database of the node at rawurl, which must
// be the primary: else the error is a *StatusError that may know it.
func (c *Client) Import(ctx context.Context, rawurl, name string, body io.Reader, size int64, sum uint64) (info ImportInfo, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("import of %s at %s: %w", name, rawurl, err)
		}
	}()
	u, err := endpoint(rawurl, "import")
	if err != nil {
		return info, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u+"?name="+url.QueryEscape(name), body)
	if err != nil {
		return info, err
	}
	req.ContentLength = size
	req.Header.Set("Content-Type", "application/vnd.sqlite3")
	if sum != 0 {
		req.Header.Set(headerChecksum, hex16(sum))
	}
	conn := c.newConnection()
	defer conn.close()
	resp, err := c.do(conn, req)
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	return info, json.NewDecoder(io.LimitReader(resp.Body, maxInfoSize)).Decode(&info)
}
