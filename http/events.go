package http

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
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

// txData is the data of a tx event. Transactions that were captured together are one event, minTXID to txID. What
// LiteFS 0.5 has comes first, under its names.
type txData struct {
	TXID              string    `json:"txID"` // the last
	PostApplyChecksum string    `json:"postApplyChecksum"`
	PageSize          uint32    `json:"pageSize"`
	Commit            uint32    `json:"commit"`
	Timestamp         time.Time `json:"timestamp"`

	MinTXID string `json:"minTXID"`
	DBID    string `json:"dbID"`
	Epoch   uint64 `json:"epoch"`
	Node    string `json:"node,omitempty"` // that wrote it; absent: unknown here
	Pages   uint32 `json:"pages"`          // that it changed
}

// gapData is the data of a gap event: what lies between the position that was told or asked for and the next event
// is not in the log any more.
type gapData struct {
	After string `json:"after"` // TXID
	Next  string `json:"next"`  // TXID of the first that follows
}

// eventStream tells one listener what happens from its beginning on.
type eventStream struct {
	src  Source
	out  *streamWriter
	enc  *json.Encoder
	role roleData
	seen map[uint32]uint64     // TXIDs told
	from map[string]litefs.Pos // by database, where the listener goes on from; taken when the database is there
}

// handleEvents answers GET /events. Each from=NAME@POS makes the events of that database begin after a position, a TXID
// or the whole of it, from zero on; the others begin now.
func (s *Server) handleEvents(w http.ResponseWriter, r *http.Request) {
	from, err := parseFrom(r.URL.Query()["from"])
	if err != nil {
		s.refuse(w, r, http.StatusBadRequest, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := newStreamWriter(w, http.NewResponseController(w), s.limits.stall)
	e := &eventStream{src: s.src, out: out, enc: json.NewEncoder(out), seen: make(map[uint32]uint64), from: from}
	err = s.runEvents(r, e)
	s.opt.Logger.Debug("listener for events has gone", "remote", r.RemoteAddr, "reason", err)
}

func (s *Server) runEvents(r *http.Request, e *eventStream) (err error) {
	sub := s.src.Subscribe()
	defer func() { err = errors.Join(err, sub.Close()) }()
	e.role = e.currentRole()
	if err := e.write(event{Type: "init", Data: e.role}); err != nil {
		return err
	}
	for _, db := range s.src.Databases() {
		if _, asked := e.from[db.Name()]; !asked {
			e.seen[db.ID()] = db.Pos().TXID
		} else if err := e.tellDatabase(db.ID()); err != nil {
			return err
		}
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
	if pos, asked := e.from[db.Name()]; asked {
		delete(e.from, db.Name())
		e.seen[id] = pos.TXID
		if err := e.onHistory(db, pos); err != nil {
			return err
		}
	}
	for {
		events := db.EventsAfter(e.seen[id])
		if len(events) == 0 {
			return nil
		}
		for _, tx := range events {
			if seen := e.seen[id]; tx.Min > seen+1 {
				if err := e.write(event{Type: "gap", DB: db.Name(), Data: gapData{hex16(seen), hex16(tx.Min)}}); err != nil {
					return err
				}
			}
			e.seen[id] = tx.Pos.TXID
			err := e.write(event{Type: "tx", DB: db.Name(), Data: txData{
				TXID: hex16(tx.Pos.TXID), PostApplyChecksum: hex16(tx.Pos.Chksum),
				PageSize: tx.PageSize, Commit: tx.Commit, Timestamp: tx.Timestamp.UTC(),
				MinTXID: hex16(tx.Min), DBID: litefs.FormatDBID(id), Epoch: tx.Epoch, Node: tx.Origin, Pages: tx.Pages,
			}})
			if err != nil {
				return err
			}
		}
	}
}

// forkData is the data of a fork event: the position that was asked for is not on this node's history, and the
// events that follow may not continue what the listener has.
type forkData struct {
	After string `json:"after"` // the position asked for
	Have  string `json:"have"`  // what is here
}

// onHistory tells when a position that was asked for is of another history, or is yet to come.
func (e *eventStream) onHistory(db Database, pos litefs.Pos) error {
	have := db.Pos()
	if pos.TXID > 0 && pos.TXID <= have.TXID && pos.Chksum != 0 {
		if have.TXID > pos.TXID {
			have = litefs.Pos{TXID: pos.TXID, Chksum: pos.Chksum}
			if events := db.EventsAfter(pos.TXID); len(events) > 0 && events[0].Min == pos.TXID+1 {
				have.Chksum = events[0].Before.Chksum
			}
		}
		if have.Chksum == pos.Chksum {
			return nil
		}
	} else if pos.TXID <= have.TXID {
		return nil
	}
	return e.write(event{Type: "fork", DB: db.Name(), Data: forkData{pos.String(), have.String()}})
}

// maxFrom bounds how many databases one listener goes on from.
const maxFrom = 1024

// parseFrom reads NAME@TXID and NAME@TXID/CHECKSUM, in hexadecimal.
func parseFrom(values []string) (map[string]litefs.Pos, error) {
	if len(values) > maxFrom {
		return nil, fmt.Errorf("from is given %d times, at most %d are allowed", len(values), maxFrom)
	}
	from := make(map[string]litefs.Pos, len(values))
	for _, v := range values {
		i := strings.LastIndexByte(v, '@')
		if i < 0 || litefs.ValidateName(v[:i]) != nil {
			return nil, fmt.Errorf("from %.64q is not of the form DB@TXID or DB@TXID/CHECKSUM", v)
		}
		text := v[i+1:]
		if !strings.Contains(text, "/") {
			text += "/0000000000000000"
		}
		pos, err := litefs.ParsePos(text)
		if err != nil {
			return nil, fmt.Errorf("from %.64q: %w", v, err)
		}
		from[v[:i]] = pos
	}
	return from, nil
}

// write writes one line; it is sent by Flush.
func (e *eventStream) write(ev event) error {
	if err := e.enc.Encode(ev); err != nil {
		return fmt.Errorf("%s event: %w", ev.Type, err)
	}
	return nil
}
