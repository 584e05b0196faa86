package peer

import (
	"testing"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// A staged transaction is seen by nobody, is where it said it would be once it is published, and leaves no trace when it is
// dropped: not in what comes after it, and not for who recovers the WAL.
func TestStage(t *testing.T) {
	app := sqlitetest.Start(t)
	p := newPrimary(t, app, "wal", 4096)
	r := newReplica(t, Options{SoftWAL: 1 << 30, HardWAL: 1 << 31}) // it does not begin anew
	r.apply(p.tx("CREATE TABLE t(a INTEGER PRIMARY KEY, b)"))
	c := app.Open(r.path)
	stage := func(x txn) *Staged {
		s, err := r.Stage(patient(t), x.Count, x.PageSize, x.pages)
		must(t, err)
		return s
	}
	rows := int64(0)
	for range 3 {
		// Larger than one write, so that frames of it are in the file.
		x := p.tx("INSERT INTO t(b) VALUES (randomblob(3000000))")
		before := r.WALPos()
		stage(x).Drop()
		if got := r.WALPos(); got != before {
			t.Fatalf("a transaction that was dropped leads to %+v, before it was %+v", got, before)
		}
		s := stage(x)
		if n := c.MustInt("SELECT count(*) FROM t"); n != rows {
			t.Fatalf("%d rows while one is staged, want %d", n, rows)
		}
		must(t, s.Publish(patient(t)))
		rows++
		after := r.WALPos()
		after.Cksum = s.After.Cksum
		if after != s.After {
			t.Fatalf("it ends at %+v, and said %+v", after, s.After)
		}
		if n := c.MustInt("SELECT count(*) FROM t"); n != rows {
			t.Fatalf("%d rows, want %d", n, rows)
		}
	}
	x := p.tx("INSERT INTO t(b) VALUES (randomblob(3000000))")
	stage(x).Drop()
	s := stage(x)
	r.apply(p.tx("INSERT INTO t(b) VALUES (1)"))
	if err := s.Publish(patient(t)); err == nil {
		t.Error("a transaction was published behind another one")
	}
	c.Close()
}
