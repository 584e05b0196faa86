package peer

import (
	"testing"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// While reads are refused no transaction begins, on a connection that is open, idle or new; one that reads goes on with
// its snapshot. What was applied meanwhile is seen when they are allowed again.
func TestRefuseReads(t *testing.T) {
	app := sqlitetest.Start(t)
	for _, mode := range []string{"wal", "delete"} {
		t.Run(mode, func(t *testing.T) {
			p := newPrimary(t, app, mode, 4096)
			r := newReplica(t, Options{SoftWAL: 64 << 10})
			must(t, r.RefuseReads(patient(t), true)) // nothing to be read yet
			must(t, r.RefuseReads(patient(t), false))
			r.apply(p.tx("CREATE TABLE t(a INTEGER PRIMARY KEY, b)"))
			idle, reading := app.Open(r.path), app.Open(r.path)
			for round := range 3 {
				n := int64(20 * round)
				if got := idle.MustInt("SELECT count(*) FROM t"); got != n {
					t.Fatalf("reads %d rows, want %d", got, n)
				}
				reading.MustExec("BEGIN")
				reading.MustInt("SELECT count(*) FROM t")
				must(t, r.RefuseReads(patient(t), true))
				for range 20 { // past the soft limit
					r.apply(p.tx("INSERT INTO t(b) VALUES (randomblob(9000))"))
				}
				if got := reading.MustInt("SELECT count(*) FROM t"); got != n {
					t.Fatalf("a snapshot has %d rows, want %d", got, n)
				}
				reading.MustExec("COMMIT")
				if _, err := app.TryOpen(r.path); !busy(err) { // it reads the schema
					t.Fatalf("a new connection: %v, want busy", err)
				}
				for name, c := range map[string]*sqlitetest.Conn{"idle": idle, "after its snapshot": reading} {
					for _, sql := range []string{"SELECT count(*) FROM t", "PRAGMA integrity_check", "SELECT b FROM t"} {
						if rows, err := c.Query(sql); !busy(err) {
							t.Fatalf("%s: %s: %v, %v; want busy", name, sql, rows, err)
						}
					}
					if _, err := c.Exec("INSERT INTO t(b) VALUES (1)"); !busy(err) {
						t.Fatalf("%s: a write: %v, want busy", name, err)
					}
				}
				must(t, r.RefuseReads(patient(t), true))
				must(t, r.RefuseReads(patient(t), false))
				if got := idle.MustInt("SELECT count(*) FROM t"); got != n+20 {
					t.Fatalf("reads %d rows, want %d", got, n+20)
				}
				r.check(p.img)
			}
			// A Peer that is closed meanwhile lets them in, and so does the end of its process.
			must(t, r.RefuseReads(patient(t), true))
			r.close()
			if got := idle.MustInt("SELECT count(*) FROM t"); got != 60 {
				t.Fatalf("reads %d rows, want 60", got)
			}
			r.open()
			must(t, r.RefuseReads(patient(t), true))
			must(t, r.Peer.release()) // as a process that dies
			if got := idle.MustInt("SELECT count(*) FROM t"); got != 60 {
				t.Fatalf("reads %d rows, want 60", got)
			}
			r.open()
			r.apply(p.tx("INSERT INTO t(b) VALUES (1)"))
			r.check(p.img)
		})
	}
}
