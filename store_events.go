package litefs

import "time"

// TxEvent tells of transactions that have become visible: those of one entry of
// the log, which are at least one.
type TxEvent struct {
	Pos       Pos // after them
	PageSize  uint32
	Commit    uint32 // size of the database in pages
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
		events = append(events, TxEvent{Pos{e.Max, e.Post}, e.PageSize, e.Commit, e.Timestamp})
		txid = e.Max
	}
	return events
}
