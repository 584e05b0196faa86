package http

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/litefs/litefs"
)

// This file is how nodes and operators move the primary role: GET /position, POST /promote, POST
// /demote.

// moveTimeout bounds a request that moves the role.
const moveTimeout = 30 * time.Second

// maxPositionSize bounds the answer to GET /position, in bytes.
const maxPositionSize = 64 << 10

// tellNodes tells the replica which nodes there are, when that has changed.
func (s *session) tellNodes() error {
	version := s.src.ReplicaRegistry().Version() + 1
	if state, _ := s.src.RoleState(); state == "" || version == s.nodes {
		return nil // nobody here can become the primary, or nothing is new
	}
	nodes := []litefs.NodePosition{s.src.Position()}
	for _, r := range s.src.ReplicaRegistry().List() {
		if r.URL != "" && len(nodes) < 64 {
			nodes = append(nodes, litefs.NodePosition{ID: r.NodeID, URL: r.URL, Candidate: r.Candidate})
		}
	}
	if err := litefs.WriteStreamFrame(s.out, &litefs.NodesStreamFrame{Nodes: nodes}); err != nil {
		return fmt.Errorf("list of nodes: %w", err)
	}
	s.nodes = version
	return nil
}

// handOff tells the replica to take the lease. The stream ends with it.
func (s *session) handOff() error {
	f := &litefs.HandoffStreamFrame{NodeID: s.replica}
	if err := litefs.WriteStreamFrame(s.out, f); err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	if err := s.out.Flush(); err != nil {
		return fmt.Errorf("hand over: flush: %w", err)
	}
	s.handoff = nil
	return nil
}

func (s *Server) handlePosition(w http.ResponseWriter, r *http.Request) {
	b, err := json.Marshal(s.src.Position())
	if err != nil {
		s.refuse(w, r, http.StatusInternalServerError, fmt.Sprintf("encode: %v", err))
		return
	}
	s.answer(w, r, "application/json", append(b, '\n'))
}

// handlePromote makes this node the primary. With ?force=ID, which must be this node's id, it does so
// even if other nodes have more transactions.
func (s *Server) handlePromote(w http.ResponseWriter, r *http.Request) {
	force := r.FormValue("force")
	if force != "" && force != s.src.NodeID() {
		s.refuse(w, r, http.StatusBadRequest, fmt.Sprintf("force names node %.64q, this is node %s", force, s.src.NodeID()))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), moveTimeout)
	defer cancel()
	err := s.src.PromoteNow(ctx, force != "")
	if _, why := s.src.RoleState(); err != nil && why != "" {
		err = fmt.Errorf("%w: %s", err, why)
	}
	s.moved(w, r, err)
}

// handleDemote hands the primary role to the node ?to=ID, or to whoever is most up to date.
func (s *Server) handleDemote(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), moveTimeout)
	defer cancel()
	s.moved(w, r, s.src.DemoteNow(ctx, r.FormValue("to")))
}

func (s *Server) moved(w http.ResponseWriter, r *http.Request, err error) {
	if err != nil {
		s.refuse(w, r, http.StatusConflict, err.Error())
		return
	}
	s.answer(w, r, "text/plain; charset=utf-8", []byte("ok\n"))
}

// Position asks the node at rawurl how full it is.
func (c *Client) Position(ctx context.Context, rawurl string) (p litefs.NodePosition, err error) {
	b, err := c.short(ctx, http.MethodGet, rawurl, "position", nil)
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil {
		return p, fmt.Errorf("position of %s: %w", rawurl, err)
	}
	return p, nil
}

// Promote makes the node at rawurl the primary. force is "", or the node's id: then it takes the lease
// even if others have more transactions.
func (c *Client) Promote(ctx context.Context, rawurl, force string) error {
	q := url.Values{}
	if force != "" {
		q.Set("force", force)
	}
	if _, err := c.short(ctx, http.MethodPost, rawurl, "promote", q); err != nil {
		return fmt.Errorf("promote %s: %w", rawurl, err)
	}
	return nil
}

// Demote makes the primary at rawurl hand over to the node with the id to, or, if that is empty, to
// whoever is most up to date.
func (c *Client) Demote(ctx context.Context, rawurl, to string) error {
	q := url.Values{}
	if to != "" {
		q.Set("to", to)
	}
	if _, err := c.short(ctx, http.MethodPost, rawurl, "demote", q); err != nil {
		return fmt.Errorf("demote %s: %w", rawurl, err)
	}
	return nil
}

// short is a request with a short answer.
func (c *Client) short(ctx context.Context, method, rawurl, path string, q url.Values) (b []byte, err error) {
	u, err := endpoint(rawurl, path)
	if err != nil {
		return nil, err
	}
	if len(q) > 0 {
		u += "?" + q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, nil)
	if err != nil {
		return nil, err
	}
	conn := c.newConnection()
	defer conn.close()
	resp, err := c.do(conn, req)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	b, err = io.ReadAll(io.LimitReader(resp.Body, maxPositionSize+1))
	if err == nil && len(b) > maxPositionSize {
		err = fmt.Errorf("answer of more than %d bytes", maxPositionSize)
	}
	return b, err
}
