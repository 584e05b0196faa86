package litefs

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// What is shown together leaves the files as what is shown one by one.
func TestApplyTogether(t *testing.T) {
	r := newReader(t)
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := &reader{t: t, app: r.app}
			rnd := rand.New(rand.NewPCG(seed, 1))
			p := openNode(t, filepath.Join(t.TempDir(), "primary"))
			c := sqlitetest.Open(t, p.path("app.db"))
			c.MustExec("PRAGMA auto_vacuum=full")
			c.MustExec("PRAGMA journal_mode=wal")
			c.MustExec(createT)
			p.adopt("app.db")
			n := openNode(t, filepath.Join(t.TempDir(), "replica"), asReplica)
			n.follow(p, "app.db")
			to := n.db("app.db")
			shown := 0
			for range 12 {
				var heads []uint64
				for range 1 + rnd.IntN(12) {
					c.MustExec(randomChange(rnd))
					p.capture("app.db")
					if head := p.db("app.db").TXID(); len(heads) == 0 || heads[len(heads)-1] < head {
						heads = append(heads, head)
					}
				}
				n.receiveAll(p, "app.db")
				before := to.TXID()
				for _, hold := range []uint64{heads[rnd.IntN(len(heads))], AllDecided} {
					to.hold.Store(hold)
					n.mustMerge("app.db")
					if _, err := to.catchUp(t.Context()); err != nil {
						t.Fatal(err)
					}
					if want := min(hold, heads[len(heads)-1]); to.TXID() != want {
						t.Fatalf("at %d, want %d", to.TXID(), want)
					}
					if got := r.value(n.path("app.db"), "PRAGMA integrity_check"); got != "ok" {
						t.Fatalf("at %d: %s", to.TXID(), got)
					}
				}
				n.mustAgree(r, "app.db")
				shown += int(to.TXID() - before)
			}
			if got, want := to.Pos(), p.db("app.db").Pos(); got != want {
				t.Errorf("position %s, the primary has %s", got, want)
			}
			if applied := int(n.store.Stats().Applied.Load()); applied < shown {
				t.Errorf("%d entries were counted, want %d at least", applied, shown)
			}
		})
	}
}

// randomChange is one that grows the database, shrinks it, changes the same page again, or many pages.
func randomChange(rnd *rand.Rand) string {
	switch rnd.IntN(6) {
	case 0:
		return "DELETE FROM t WHERE id > (SELECT max(id) FROM t) - 40"
	case 1:
		return "UPDATE t SET b = randomblob(20) WHERE id = (SELECT max(id) FROM t)"
	case 2:
		return "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 100) INSERT INTO t(b) SELECT randomblob(3000) FROM n"
	default:
		return "INSERT INTO t(b) VALUES (randomblob(500))"
	}
}

// mustMerge fails the test if entries that are to be shown together cannot be: they would be shown one by one.
func (n *node) mustMerge(name string) {
	n.t.Helper()
	db := n.db(name)
	db.mu.Lock()
	defer db.mu.Unlock()
	entries, ok := db.unapplied()
	if !ok || len(entries) == 0 || entries[0].Max > db.hold.Load() {
		return
	}
	run := entries[:together(entries, db.hold.Load())]
	var kept pageCopies
	if _, ok, err := db.changesOf(run, &kept); err != nil || !ok && !kept.spilt {
		n.t.Errorf("%d entries from %d on do not lead where the last one does: %v", len(run), run[0].Min, err)
	}
}

// receiveAll takes everything that p has into the log, and shows nothing.
func (n *node) receiveAll(p *node, name string) {
	n.t.Helper()
	from := p.db(name)
	to := n.db(name)
	for {
		ltx, err := from.NextLTX(to.wantedPos())
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			n.t.Fatal(err)
		}
		if err := errors.Join(to.receive(ltx, ltx.Size), ltx.Close()); err != nil {
			n.t.Fatal(err)
		}
	}
}

func TestTogether(t *testing.T) {
	entry := func(txid uint64, change func(*ltxlog.Entry)) ltxlog.Entry {
		e := ltxlog.Entry{Min: txid, Max: txid, Size: 1000, Pre: txid * 11, Post: (txid + 1) * 11, Commit: 10, PageSize: 4096}
		if change != nil {
			change(&e)
		}
		return e
	}
	plain := func(e *ltxlog.Entry) {}
	for _, c := range []struct {
		name   string
		second func(*ltxlog.Entry)
		hold   uint64
		want   int
	}{
		{"three that follow each other", plain, AllDecided, 3},
		{"one that is not decided", plain, 6, 2},
		{"none behind the first is decided", plain, 5, 1},
		{"a snapshot", func(e *ltxlog.Entry) { e.Min, e.Pre = 1, 0 }, AllDecided, 1},
		{"another page size", func(e *ltxlog.Entry) { e.PageSize = 512 }, AllDecided, 1},
		{"a dropped database", func(e *ltxlog.Entry) { e.Commit = 0 }, AllDecided, 1},
		{"a large one", func(e *ltxlog.Entry) { e.Size = maxTogether - 999 }, AllDecided, 1},
		{"one that is taken back", func(e *ltxlog.Entry) { e.Pre = 8 * 11 }, AllDecided, 1},
	} {
		entries := []ltxlog.Entry{entry(5, nil), entry(6, c.second), entry(7, nil)}
		if got := together(entries, c.hold); got != c.want {
			t.Errorf("%s: %d are shown together, want %d", c.name, got, c.want)
		}
	}
}
