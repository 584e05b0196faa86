package http

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/litefs/litefs"
)

// levelSource is what a Source also is whose databases have levels of durability.
type levelSource interface {
	SetLevel(ctx context.Context, name, level string) error
}

// handleDurability gives a database a level, and answers with the database as GET /info has it.
func (s *Server) handleDurability(w http.ResponseWriter, r *http.Request) {
	src, ok := s.src.(levelSource)
	if !ok {
		s.refuse(w, r, http.StatusNotImplemented, "this node has no levels of durability")
		return
	}
	q := r.URL.Query()
	name := q.Get("db")
	err := src.SetLevel(r.Context(), name, q.Get("level"))
	switch {
	case errors.Is(err, litefs.ErrDatabaseNotFound):
		s.refuse(w, r, http.StatusNotFound, err.Error())
	case errors.Is(err, litefs.ErrReadOnlyReplica):
		s.refuseReplica(w, r)
	case errors.Is(err, context.DeadlineExceeded):
		s.refuse(w, r, http.StatusConflict, err.Error())
	case err != nil:
		s.refuse(w, r, http.StatusBadRequest, err.Error())
	default:
		for _, db := range s.info().Databases {
			if db.Name == name {
				s.answerJSON(w, r, db)
				return
			}
		}
		s.refuse(w, r, http.StatusNotFound, fmt.Sprintf("%q was dropped meanwhile", name))
	}
}

// SetLevel gives a database of the node at rawurl a level: see litefs.ParseLevel, or litefs.LevelOfRule.
func (c *Client) SetLevel(ctx context.Context, rawurl, name, level string) (db DatabaseInfo, err error) {
	b, err := c.short(ctx, http.MethodPost, rawurl, "durability", url.Values{"db": {name}, "level": {level}})
	if err == nil {
		err = json.Unmarshal(b, &db)
	}
	if err != nil {
		return db, fmt.Errorf("level of %s: %w", name, err)
	}
	return db, nil
}
