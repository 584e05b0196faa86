package litefs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/litefs/litefs/internal/capture"
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
			p, c := recordedWAL(t, "auto_vacuum=full")
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

// recordedWAL is a primary that records a database in WAL mode.
func recordedWAL(t *testing.T, pragmas ...string) (*node, *sqlitetest.Conn) {
	t.Helper()
	p := openNode(t, filepath.Join(t.TempDir(), "primary"))
	c := sqlitetest.Open(t, p.path("app.db"), pragmas...)
	c.MustExec("PRAGMA journal_mode=wal")
	c.MustExec(createT)
	p.adopt("app.db")
	return p, c
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
	run := entries[:together(entries, db.hold.Load(), db.maybeSeen)]
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
		if got := together(entries, c.hold, 0); got != c.want {
			t.Errorf("%s: %d are shown together, want %d", c.name, got, c.want)
		}
	}
}

// A log that leads on from a base when that is whole is applied to its end.
func TestApplyBehindABase(t *testing.T) {
	r := newReader(t)
	p := openNode(t, filepath.Join(t.TempDir(), "primary"))
	c := sqlitetest.Open(t, p.path("app.db"))
	c.MustExec("PRAGMA journal_mode=wal")
	c.MustExec(createT)
	from := p.adopt("app.db")
	p.rows("app.db", c, 5)
	n := openNode(t, filepath.Join(t.TempDir(), "replica"), asReplica)
	to, err := n.store.ForceCreateDB(from.ID(), "app.db")
	if err != nil {
		t.Fatal(err)
	}
	head, _ := from.txlog.Head()
	start := BaseStreamFrame{
		DBID: from.ID(), Pos: from.Pos(), Epoch: head.Epoch, UnixMilli: head.Timestamp.UnixMilli(),
		PageSize: head.PageSize, Count: head.Commit, First: 1,
	}
	if err := to.beginLoad(t.Context(), start); err != nil {
		t.Fatal(err)
	}
	if err := to.loadPages(1, r.image(p.path("app.db"))); err != nil {
		t.Fatal(err)
	}
	if err := to.endLoad(t.Context(), head.Max+2); err != nil {
		t.Fatal(err)
	}
	p.rows("app.db", c, 5)
	n.receiveAll(p, "app.db")
	if _, err := to.catchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := to.Pos(), from.Pos(); got != want {
		t.Fatalf("readers are at %v, want %v", got, want)
	}
	n.mustAgree(r, "app.db")
}

// Entries that readers may have seen, though the record does not know, are not passed over when a later one brings the
// pages back to what they were before: the files are not there.
func TestApplySeenAndTakenBack(t *testing.T) {
	r := newReader(t)
	for name, before := range map[string]string{
		"alone":   "",
		"company": "INSERT INTO t(b) VALUES (randomblob(9000))",
	} {
		t.Run(name, func(t *testing.T) {
			r := &reader{t: t, app: r.app}
			p := openNode(t, filepath.Join(t.TempDir(), "primary"))
			c := sqlitetest.Open(t, p.path("app.db"))
			c.MustExec("PRAGMA journal_mode=wal")
			c.MustExec(createT)
			c.MustExec("CREATE TABLE c(n)")
			c.MustExec("INSERT INTO c VALUES (0)")
			p.adopt("app.db")
			p.capture("app.db")
			n := openNode(t, filepath.Join(t.TempDir(), "replica"), asReplica)
			n.follow(p, "app.db")
			write := func(sql string) {
				c.MustExec(sql)
				p.capture("app.db")
			}
			if before != "" {
				write(before)
			}
			here := p.db("app.db").Pos()
			write("UPDATE c SET n = 1")
			n.receiveAll(p, "app.db")
			db := n.db("app.db")
			db.mu.Lock()
			run, _ := db.unapplied()
			var kept pageCopies
			changed, ok, err := db.changesOf(run, &kept)
			if err != nil || !ok {
				t.Fatalf("%t, %v", ok, err)
			}
			last := run[len(run)-1]
			db.maybeSeen = last.Max // what is left of a show whose record cannot be written
			if err := db.peer.Apply(t.Context(), last.Commit, last.PageSize, changed.pages); err != nil {
				t.Fatal(err)
			}
			db.mu.Unlock()
			write("UPDATE c SET n = 0")
			if got := p.db("app.db").Pos(); got.Chksum != here.Chksum {
				t.Fatalf("the pages are not what they were: %v, %v", here, got)
			}
			n.receiveAll(p, "app.db")
			if _, err := db.catchUp(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got, want := db.Pos(), p.db("app.db").Pos(); got != want {
				t.Errorf("readers are at %v, want %v", got, want)
			}
			n.mustAgree(r, "app.db")
		})
	}
}

// A replica that dies while it shows several entries at once finds its way, with its mount or with the mount alive: what it
// had received is shown, and it follows on.
func TestCrashWhileShownTogether(t *testing.T) {
	r := newReader(t)
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := &reader{t: t, app: r.app}
			rnd := rand.New(rand.NewPCG(seed, 2))
			p, c := recordedWAL(t, "auto_vacuum=full")
			n := openNode(t, filepath.Join(t.TempDir(), "replica"), asReplica)
			n.follow(p, "app.db")
			for range 8 {
				var heads []uint64
				for range 2 + rnd.IntN(8) {
					c.MustExec(randomChange(rnd))
					p.capture("app.db")
					heads = append(heads, p.db("app.db").TXID())
				}
				n.receiveAll(p, "app.db")
				early := n.crash()
				// What is shown ends somewhere in the log.
				n.db("app.db").hold.Store(heads[rnd.IntN(len(heads))])
				if _, err := n.db("app.db").catchUp(t.Context()); err != nil {
					t.Fatal(err)
				}
				later := n.crash()
				n.close()
				dir, how := later, "after it"
				switch rnd.IntN(4) {
				case 0:
					dir, how = early, "before it"
				case 1:
					dir, how = mix(t, later, early, checksums), "before the record is written"
				case 2:
					dir, how = mix(t, later, early, checksums), "while the record is written"
					blendSums(t, rnd, mustGlob(t, dir, checksums)[0], mustGlob(t, later, checksums)[0])
				}
				opts := []nodeOption{asReplica}
				if live := rnd.IntN(2) == 0; live {
					how += ", the mount lives"
					opts = append(opts, func(s *Store) { s.TakeOver(s.MountDir(), false, nil, nil) })
				}
				t.Log(how)
				n = openNode(t, dir, opts...)
				db := n.db("app.db")
				if db.isStale() {
					t.Fatalf("%s: a snapshot is needed", how)
				}
				before := commits(t, n.path("app.db-wal"))
				var runs, last int
				for redo := db.redo; len(redo) > 0; redo = redo[last:] {
					last = together(redo, AllDecided, AllDecided)
					runs++
				}
				n.follow(p, "app.db")
				if got, want := db.Pos(), p.db("app.db").Pos(); got != want {
					t.Fatalf("%s: position %s, the primary has %s", how, got, want)
				}
				// One by one, entries would take readers back.
				if after := commits(t, n.path("app.db-wal")); after > before+runs {
					t.Errorf("%s: readers have seen %d states on the way, want %d", how, after-before, runs)
				}
				n.mustAgree(r, "app.db")
				if got, want := r.image(n.path("app.db")), r.image(p.path("app.db")); !bytes.Equal(got, want) {
					t.Fatalf("%s: %s", how, firstDifference(got, want, 4096))
				}
			}
		})
	}
}

// commits counts the transactions in a write-ahead log.
func commits(t *testing.T, path string) int {
	t.Helper()
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // read only
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	all, err := capture.Scan(f, fi.Size(), capture.WALPos{}, capture.Limit{})
	if err != nil {
		t.Fatal(err)
	}
	return int(all.Commits)
}

// blendSums writes some of the checksums of the record at later into the one at path, and leaves its header.
func blendSums(t *testing.T, rnd *rand.Rand, path, later string) {
	t.Helper()
	const header, size = 4096, 8
	b, err := os.ReadFile(later)
	if err != nil {
		t.Fatal(err)
	}
	edit(t, path, func(old []byte) []byte {
		for i := header; i+size <= min(len(old), len(b)); i += size {
			if rnd.IntN(2) == 0 {
				copy(old[i:i+size], b[i:i+size])
			}
		}
		return old
	})
}
