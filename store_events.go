package litefs

import (
	"time"

	"github.com/litefs/litefs/internal/ltxlog"
)

// TxEvent tells of transactions that have become visible: those of one entry of
// the log, which are at least one.
type TxEvent struct {
	Min       uint64 // the first of them; the last is Pos.TXID
	Pos       Pos    // after them
	Before    Pos    // before them
	Epoch     uint64 // of the primary that wrote them
	Origin    string // its node id; "" when this node has never heard of it
	PageSize  uint32
	Commit    uint32 // size of the database in pages
	Pages     uint32 // that they changed; 0 when the entry could not be read
	Timestamp time.Time
}

// maxTxEvents bounds what one call returns.
const maxTxEvents = 1000

// EventsAfter returns what became visible after txid, oldest first, not more
// than a thousand at once. What the log has no more is left out.
func (db *DB) EventsAfter(txid uint64) []TxEvent {
	var events []TxEvent
	visible := db.TXID()
	for txid < visible && len(events) < maxTxEvents {
		e, ok := db.txlog.Find(txid + 1)
		if !ok {
			if e, ok = db.txlog.Tail(); !ok || e.Max <= txid {
				break
			}
		}
		if e.Max > visible {
			break // in the log of a replica, and not applied
		}
		events = append(events, db.eventOf(e))
		txid = e.Max
	}
	return events
}

func (db *DB) eventOf(e ltxlog.Entry) TxEvent {
	ev := TxEvent{
		Min: e.Min, Pos: Pos{e.Max, e.Post}, Before: Pos{e.Min - 1, e.Pre}, Epoch: e.Epoch, Origin: db.store.reigns.origin(e.Epoch),
		PageSize: e.PageSize, Commit: e.Commit, Timestamp: e.Timestamp,
	}
	n, err := db.txlog.PageCount(e)
	if err != nil {
		db.log().Debug("an event does not tell how many pages changed", "txid", e.Min, "error", err) // merged meanwhile
	}
	ev.Pages = n
	return ev
}
