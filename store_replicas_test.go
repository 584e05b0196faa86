package litefs

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// The log keeps what a replica lacks that was heard of lately, up to a bound.
func TestRetainForReplicas(t *testing.T) {
	n := openNode(t, filepath.Join(t.TempDir(), "data"))
	c := sqlitetest.Open(t, n.path("app.db"), "journal_mode=wal")
	c.MustExec(createT)
	db := n.adopt("app.db")
	n.rows("app.db", c, 10)
	conn := n.store.ReplicaRegistry().Connect("replica1", "127.0.0.1:1")
	e, ok := db.txlog.Find(4)
	if !ok {
		t.Fatal("transaction 4 is not in the log")
	}
	conn.Acked(AckStreamFrame{DBID: db.ID(), Received: Pos{TXID: e.Max, Chksum: e.Post}})
	retain := func(r Retention) (oldest uint64) {
		t.Helper()
		r.Interval = time.Hour // nothing is merged
		db.retain(r)
		tail, ok := db.txlog.Tail()
		if !ok {
			t.Fatal("the log is empty")
		}
		return tail.Min
	}
	old := Retention{Age: time.Nanosecond, Bytes: 1 << 30}
	if got := retain(old); got != e.Max+1 {
		t.Errorf("the log begins at %d, want %d: what the replica lacks", got, e.Max+1)
	}
	conn.Close()
	if got := retain(old); got != e.Max+1 {
		t.Errorf("the log begins at %d, want %d: the replica is away for a moment", got, e.Max+1)
	}
	if list := n.store.Replicas(); len(list) != 1 || list[0].Connected {
		t.Errorf("replicas: %+v", list)
	}
	if got := retain(Retention{Age: time.Nanosecond, Bytes: 1}); got <= e.Max+1 {
		t.Errorf("the log begins at %d, and is larger than it may be", got)
	}
	conn.r.contact = time.Now().Add(-2 * replicaMemory)
	if got := retain(old); got != db.TXID() {
		t.Errorf("the log begins at %d, want %d: the replica is forgotten", got, db.TXID())
	}
	if list := n.store.Replicas(); len(list) != 0 {
		t.Errorf("replicas: %+v", list)
	}
}

// Who waits for a database is woken by acknowledgements of it and by what concerns all, and by nothing else.
func TestReplicasWakeByDatabase(t *testing.T) {
	var g ReplicaRegistry
	c := g.Connect("n1", "addr")
	closed := func(ch <-chan struct{}) bool {
		select {
		case <-ch:
			return true
		default:
			return false
		}
	}
	one, two, any := g.changedFor(1), g.changedFor(2), g.changed()
	c.Acked(AckStreamFrame{DBID: 1})
	if !closed(one) || closed(two) || !closed(any) {
		t.Errorf("an acknowledgement of database 1: %v %v %v", closed(one), closed(two), closed(any))
	}
	one = g.changedFor(1)
	g.poke()
	if !closed(one) || !closed(two) {
		t.Errorf("a change of another kind: %v %v", closed(one), closed(two))
	}
}
