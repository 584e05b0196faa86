package http

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/litefs/litefs"
)

// event is one line of GET /events, in LiteFS 0.5's form.
type event struct {
	Type string `json:"type"` // "init", "tx" or "primaryChange"
	DB   string `json:"db,omitempty"`
	Data any    `json:"data"`
}

// roleData is the data of an init or primaryChange event.
type roleData struct {
	IsPrimary bool   `json:"isPrimary"`
	Hostname  string `json:"hostname,omitempty"` // of the primary
}

// txData is the data of a tx event. Transactions that were captured together are one event, of the last.
type txData struct {
	TXID              string    `json:"txID"`
	PostApplyChecksum string    `json:"postApplyChecksum"`
	PageSize          uint32    `json:"pageSize"`
	Commit            uint32    `json:"commit"`
	Timestamp         time.Time `json:"timestamp"`
}

// eventStream tells one listener what happens from its beginning on.
type eventStream struct {
	src  Source
	out  *streamWriter
	enc  *json.Encoder
	role roleData
	seen map[uint32]uint64 // TXIDs told
}

func (s *Server) handleEvents(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := newStreamWriter(w, http.NewResponseController(w), s.limits.stall)
	e := &eventStream{src: s.src, out: out, enc: json.NewEncoder(out), seen: make(map[uint32]uint64)}
	err := s.runEvents(r, e)
	s.opt.Logger.Debug("listener for events has gone", "remote", r.RemoteAddr, "reason", err)
}

func (s *Server) runEvents(r *http.Request, e *eventStream) (err error) {
	sub := s.src.Subscribe()
	defer func() { err = errors.Join(err, sub.Close()) }()
	for _, db := range s.src.Databases() {
		e.seen[db.ID()] = db.Pos().TXID
	}
	e.role = e.currentRole()
	if err := e.write(event{Type: "init", Data: e.role}); err != nil {
		return err
	}
	tick := time.NewTicker(s.limits.heartbeat) // roles do not wake anybody
	defer tick.Stop()
	for {
		if err := e.out.Flush(); err != nil {
			return err
		}
		select {
		case <-r.Context().Done():
			return r.Context().Err()
		case <-s.ctx.Done():
			return errStopping
		case <-tick.C:
		case <-sub.NotifyCh():
		}
		if err := e.tellRole(); err != nil {
			return err
		}
		for id := range sub.DirtySet() {
			if err := e.tellDatabase(id); err != nil {
				return err
			}
		}
	}
}

func (e *eventStream) currentRole() roleData {
	st := e.src.Status()
	return roleData{IsPrimary: st.Role == litefs.RolePrimary, Hostname: st.Hostname}
}

func (e *eventStream) tellRole() error {
	role := e.currentRole()
	if role == e.role {
		return nil
	}
	e.role = role
	return e.write(event{Type: "primaryChange", Data: role})
}

func (e *eventStream) tellDatabase(id uint32) error {
	db, ok := e.src.Database(id)
	if !ok {
		delete(e.seen, id)
		return nil
	}
	for {
		events := db.EventsAfter(e.seen[id])
		if len(events) == 0 {
			return nil
		}
		for _, tx := range events {
			e.seen[id] = tx.Pos.TXID
			err := e.write(event{Type: "tx", DB: db.Name(), Data: txData{
				TXID: hex16(tx.Pos.TXID), PostApplyChecksum: hex16(tx.Pos.Chksum),
				PageSize: tx.PageSize, Commit: tx.Commit, Timestamp: tx.Timestamp.UTC(),
			}})
			if err != nil {
				return err
			}
		}
	}
}

// write writes one line; it is sent by Flush.
func (e *eventStream) write(ev event) error {
	if err := e.enc.Encode(ev); err != nil {
		return fmt.Errorf("%s event: %w", ev.Type, err)
	}
	return nil
}
