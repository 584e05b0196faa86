package litefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/role"
)

func TestPace(t *testing.T) {
	var p pace
	counted := make([]int64, 30)
	at := func(d time.Duration) role.Time { return role.Time(time.Hour + d) }
	pause := func(db int, d, want time.Duration) {
		t.Helper()
		if got := p.pause(&counted[db], at(d)); got != want {
			t.Errorf("database %d at %v waits for %v, want %v", db, d, got, want)
		}
	}
	for d := time.Duration(0); d < time.Second; d += time.Millisecond {
		pause(0, d, 0) // alone
	}
	second := time.Second
	pause(1, second, 0)
	pause(0, second+1, paceEach)
	pause(0, second+2, paceEach) // it counts once
	pause(1, second+paceMax, paceEach)
	pause(1, second+3*paceMax, 0) // and not for long
	for db := range counted {
		pause(db, 2*second, min(time.Duration(db)*paceEach, paceMax))
	}
	pause(0, 2*second+paceMax, paceMax)
	pause(0, 2*second+2*paceMax, 0)
}

// What is decided while other databases are written to is shown when its time has come, or when somebody waits for it.
func TestPostponed(t *testing.T) {
	ft := newFreshnessTest(t, 2)
	w := ft.workers[0]
	db := ft.f.store.DB(w.id)
	decide := func() {
		db.hold.Store(7)
		ft.f.pace.pause(&ft.workers[1].paced, bootNow())
		w.postpone(db)
	}
	take := func() time.Duration {
		began := time.Now()
		p, err := w.next(t.Context(), true)
		if err != nil || !p.due {
			t.Fatalf("%+v, %v", p, err)
		}
		return time.Since(began)
	}

	w.shown = time.Now()
	decide()
	if w.due.IsZero() || w.idle() != true {
		t.Fatalf("due at %v", w.due)
	}
	ft.beat(1000)
	if got := take(); got < paceEach/2 {
		t.Errorf("shown after %v, want %v", got, paceEach)
	}
	if w.idle() {
		t.Error("the worker has nothing to do while something is postponed")
	}

	for _, before := range []bool{false, true} {
		w.due, w.shown = time.Time{}, time.Now().Add(time.Hour)
		if before {
			w.hurried()
			decide()
			if !w.due.IsZero() {
				t.Error("postponed while somebody waits")
			}
			continue
		}
		decide()
		go w.hurried()
		take()
		if !w.due.IsZero() {
			t.Error("what somebody waits for is postponed again")
		}
	}

	w.shown = time.Now()
	decide()
	db.hold.Store(AllDecided)
	w.postpone(db)
	if !w.due.IsZero() {
		t.Error("postponed while everything is decided")
	}
}

// Entries that have come already are shown with the one before them, but not without end.
func TestShownWithWhatFollows(t *testing.T) {
	p, c := recordedWAL(t)
	from := p.db("app.db")
	ft := newFreshnessTest(t, 1)
	w := ft.workers[0]
	db := ft.f.store.DB(w.id)
	p.rows("app.db", c, maxUnshown+5)
	last := from.TXID()
	givePieces(t, w, from, Pos{})
	more := last - w.given + 1 + maxUnshown
	// The first one is a snapshot, which is shown at once.
	if got, want := takeAll(t, w, db), []uint64{1, more + 1, last}; !slices.Equal(got, want) {
		t.Errorf("readers saw %v, want %v", got, want)
	}
}

// givePieces gives a worker what the primary's database has behind pos, as the stream does.
func givePieces(t *testing.T, w *worker, from *DB, pos Pos) {
	t.Helper()
	for pos != from.Pos() {
		ltx, err := from.NextLTX(pos)
		if errors.Is(err, ErrSnapshotNeeded) {
			ltx, err = from.SnapshotLTX(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(ltx)
		if err := errors.Join(err, ltx.Close()); err != nil {
			t.Fatal(err)
		}
		pos = ltx.Pos()
		if err := w.push(piece{size: int64(len(data)), data: data}); err != nil {
			t.Fatal(err)
		}
	}
}

// takeAll has a worker take what it was given, and returns the transactions that readers saw.
func takeAll(t *testing.T, w *worker, db *DB) (shown []uint64) {
	t.Helper()
	before := db.TXID()
	for len(w.pieces) > 0 {
		first, err := w.next(t.Context(), true)
		if err == nil {
			err = w.take(t.Context(), first)
		}
		if err != nil {
			t.Fatal(err)
		}
		if txid := db.TXID(); txid != before {
			before = txid
			shown = append(shown, txid)
		}
	}
	return shown
}

// A snapshot in the middle of a stream is shown at once, also when other entries have come already, or what is decided is
// postponed: together with what follows it nothing would say that it leads on from what is shown.
func TestSnapshotIsShownAtOnce(t *testing.T) {
	for _, postponed := range []bool{false, true} {
		t.Run(fmt.Sprintf("postponed=%t", postponed), func(t *testing.T) {
			p, c := recordedWAL(t, "page_size=512")
			from := p.db("app.db")
			ft := newFreshnessTest(t, 1)
			w := ft.workers[0]
			db := ft.f.store.DB(w.id)
			givePieces(t, w, from, Pos{})
			takeAll(t, w, db)
			p.rows("app.db", c, 3)
			snapshot, err := from.SnapshotLTX(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(snapshot)
			if err := errors.Join(err, snapshot.Close()); err != nil {
				t.Fatal(err)
			}
			if err := w.push(piece{size: int64(len(data)), data: data}); err != nil {
				t.Fatal(err)
			}
			pos := from.Pos()
			p.rows("app.db", c, 3)
			givePieces(t, w, from, pos)
			if postponed {
				w.due = time.Now().Add(time.Hour)
			}
			if got := takeAll(t, w, db); len(got) < 2 || got[0] != pos.TXID || got[len(got)-1] != from.TXID() {
				t.Errorf("readers saw %v, want %d first and %d at the end", got, pos.TXID, from.TXID())
			}
			n := &node{t, ft.f.store}
			n.mustAgree(newReader(t), db.Name())
		})
	}
}

// A database that does not follow does so again when an entry has come, and not when there was nothing to show.
func TestTroubleStaysUntilAnEntryHasCome(t *testing.T) {
	p, c := recordedWAL(t)
	from := p.db("app.db")
	ft := newFreshnessTest(t, 1)
	w := ft.workers[0]
	db := ft.f.store.DB(w.id)
	givePieces(t, w, from, Pos{})
	takeAll(t, w, db)
	db.setTrouble(errGivenUp, 0)
	w.unshown = 1
	if err := w.take(t.Context(), piece{due: true}); err != nil {
		t.Fatal(err)
	}
	w.off = true // so that the rest of it does not come
	for _, waits := range []int{0, 1} {
		w.unshown = waits
		if err := w.take(t.Context(), piece{size: 1 << 20, data: []byte("LTX1")}); err == nil {
			t.Fatal("half a file was taken")
		}
	}
	if db.trouble.Load() == nil {
		t.Error("the trouble is over, and nothing has come")
	}
	w.off = false
	pos := from.Pos()
	p.rows("app.db", c, 1)
	givePieces(t, w, from, pos)
	takeAll(t, w, db)
	if db.trouble.Load() != nil {
		t.Error("an entry has come, and the trouble is not over")
	}
}

// What is in the log when the connection ends is shown then, even if it was to wait for what comes next.
func TestShownAtTheEnd(t *testing.T) {
	p, c := recordedWAL(t)
	for name, wait := range map[string]func(w *worker){
		"postponed":            func(w *worker) { w.due = time.Now().Add(time.Hour) },
		"before another entry": func(w *worker) { w.unshown = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			ft := newFreshnessTest(t, 0)
			n := &node{t, ft.f.store}
			n.follow(p, "app.db")
			p.rows("app.db", c, 2)
			n.receiveAll(p, "app.db")
			ended, end := context.WithCancel(t.Context())
			end()
			ft.f.ctx = ended
			ft.f.structure <- struct{}{}
			w := newWorker(ft.f, n.db("app.db").ID())
			w.name = "app.db"
			wait(w)
			w.run()
			if got, want := n.db("app.db").Pos(), p.db("app.db").Pos(); got != want {
				t.Errorf("readers are at %v, want %v", got, want)
			}
		})
	}
}
