package http

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/litefs/litefs"
)

// RepairInfo is the answer to POST /repair?db=NAME, and to the same with dry=1.
type RepairInfo struct {
	Name    string `json:"name"`
	DryRun  bool   `json:"dryRun"`
	Pages   int    `json:"pages"`          // of the files
	Damaged int    `json:"damaged"`        // pages that are not what the record says
	First   uint32 `json:"first"`          // of them; 0: none
	Differ  int    `json:"differ"`         // pages that are not the primary's
	TXID    string `json:"txid"`           // of the primary, when it was asked
	Kept    string `json:"kept,omitempty"` // directory with the damaged pages, as they were
	Bytes   int64  `json:"bytes"`          // moved over the network

	Snapshot string `json:"snapshot,omitempty"` // why a whole snapshot is fetched instead
}

// repairSource is what a Source also is whose databases can be repaired.
type repairSource interface {
	Repair(ctx context.Context, name string, dry bool) (litefs.RepairReport, error)
}

func (s *Server) handleRepair(w http.ResponseWriter, r *http.Request) {
	src, ok := s.src.(repairSource)
	if !ok {
		s.refuse(w, r, http.StatusNotImplemented, "this node repairs nothing")
		return
	}
	q := r.URL.Query()
	report, err := src.Repair(r.Context(), q.Get("db"), q.Get("dry") != "")
	switch {
	case errors.Is(err, litefs.ErrDatabaseNotFound):
		s.refuse(w, r, http.StatusNotFound, err.Error())
		return
	case err != nil:
		s.refuse(w, r, http.StatusConflict, err.Error())
		return
	}
	s.answerJSON(w, r, repairInfo(report))
}

func repairInfo(r litefs.RepairReport) RepairInfo {
	info := RepairInfo{
		Name: r.Name, DryRun: r.DryRun, Pages: r.Pages, Damaged: len(r.Damaged), Differ: r.Differ,
		TXID: hex16(r.Pos.TXID), Kept: r.Kept, Bytes: r.Bytes,
	}
	if len(r.Damaged) > 0 {
		info.First = r.Damaged[0]
	}
	if r.Snapshot != nil {
		info.Snapshot = r.Snapshot.Error()
	}
	return info
}

func (s *Server) answerJSON(w http.ResponseWriter, r *http.Request, v any) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		s.refuse(w, r, http.StatusInternalServerError, fmt.Sprintf("encode: %v", err))
		return
	}
	s.answer(w, r, "application/json", append(b, '\n'))
}

// Repair asks the replica at rawurl to fetch what differs from its primary, or with dry to compare only.
// It waits for the end.
func (c *Client) Repair(ctx context.Context, rawurl, name string, dry bool) (info RepairInfo, err error) {
	q := url.Values{"db": {name}}
	if dry {
		q.Set("dry", "1")
	}
	if err := c.post(ctx, rawurl, "repair", q, &info); err != nil {
		return info, fmt.Errorf("repair %s at %s: %w", name, rawurl, err)
	}
	return info, nil
}

// post sends a request that may take its time, and reads a JSON answer.
func (c *Client) post(ctx context.Context, rawurl, path string, q url.Values, answer any) (err error) {
	u, err := endpoint(rawurl, path)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u+"?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	conn := c.newConnection()
	defer conn.close()
	resp, err := c.do(conn, req)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	return json.NewDecoder(io.LimitReader(resp.Body, maxInfoSize)).Decode(answer)
}
