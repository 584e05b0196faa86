package litefs

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// freshnessTest is a replica whose workers the test plays.
type freshnessTest struct {
	*testing.T
	f       *upstream
	workers []*worker
	behind  uint32 // the primary's
}

func newFreshnessTest(t *testing.T, workers int) *freshnessTest {
	n := openNode(t, filepath.Join(t.TempDir(), "replica"), asReplica)
	f := &upstream{
		store: n.store, ctx: t.Context(), workers: make(map[uint32]*worker), pending: make(map[uint32]*worker),
		structure: newSemaphore(), notify: make(chan struct{}, 1), urgent: make(chan struct{}, 1),
	}
	ft := &freshnessTest{T: t, f: f}
	for i := range workers {
		w := newWorker(f, uint32(i+1))
		w.name = fmt.Sprintf("%d.db", i)
		if _, err := n.store.ForceCreateDB(w.id, w.name); err != nil {
			t.Fatal(err)
		}
		w.busy = false
		f.workers[w.id] = w
		ft.workers = append(ft.workers, w)
	}
	return ft
}

func (t *freshnessTest) give(workers ...int) {
	t.Helper()
	for _, i := range workers {
		if err := t.workers[i].push(piece{size: 1, data: []byte{0}}); err != nil {
			t.Fatal(err)
		}
	}
}

// next has workers end the piece at hand and take another one.
func (t *freshnessTest) next(workers ...int) {
	t.Helper()
	for _, i := range workers {
		if _, err := t.workers[i].next(t.Context(), true); err != nil {
			t.Fatal(err)
		}
	}
}

func (t *freshnessTest) beat(at int64) {
	t.f.heartbeat(&HeartbeatStreamFrame{UnixMilli: at, Behind: t.behind})
}

func (t *freshnessTest) want(at int64) {
	t.Helper()
	if got := t.f.store.syncedAt.Load(); got != at {
		t.Errorf("the copy is of %d, want %d", got, at)
	}
}

// A replica that is given transactions without end is as fresh as the heartbeat whose transactions it has.
func TestFreshUnderLoad(t *testing.T) {
	ft := newFreshnessTest(t, 2)
	ft.beat(1000)
	ft.want(1000) // there is nothing to do

	ft.give(0, 1)
	ft.next(0, 1) // both are at their first piece, and are never without one from here on
	for at := int64(2000); at < 9000; at += 1000 {
		ft.beat(at)
		ft.want(at - 1000)
		ft.give(0, 1)
		ft.next(1)
		ft.want(at - 1000)
		ft.beat(at + 500) // that one comes after the first, which is not known to be here
		ft.next(0)
		ft.want(at)
		if ft.workers[0].idle() || ft.workers[1].idle() {
			t.Fatal("a worker is idle")
		}
	}
}

// What a worker throws away has not made the copy fresh, and the next heartbeat is waited for in place of that one.
func TestFreshIsLostWithWhatWasGiven(t *testing.T) {
	ft := newFreshnessTest(t, 2)
	ft.beat(1000)
	ft.give(0, 1)
	ft.beat(2000)
	ft.next(0)
	ft.workers[1].fail(errGivenUp, 0)
	ft.give(0)
	ft.next(0)
	ft.want(1000)

	ft.beat(3000) // worker 1 lacks something
	ft.give(0)
	ft.next(0)
	ft.want(1000)

	ft.workers[1].resumed(0)
	ft.give(1)
	ft.beat(4000)
	ft.give(0, 1)
	ft.next(0, 1, 1)
	ft.want(4000)
}

// A heartbeat that tells of a backlog makes nothing fresh.
func TestFreshNotWhileBehind(t *testing.T) {
	ft := newFreshnessTest(t, 1)
	ft.beat(1000)
	ft.behind = 1
	ft.beat(2000)
	ft.want(1000)
}

// What is in the log and not shown yet has not made the copy fresh.
func TestFreshWhenShown(t *testing.T) {
	ft := newFreshnessTest(t, 1)
	w := ft.workers[0]
	ft.beat(1000)
	ft.give(0)
	ft.beat(2000)
	ft.give(0)
	ft.next(0)
	w.unshown++ // it waits for the one that has come already
	ft.next(0)
	ft.want(1000)
	w.unshown = 0
	ft.give(0)
	ft.next(0)
	ft.want(2000)
}

// A worker whose database is dropped is not waited for any more, whatever it waited for itself: a heartbeat that comes
// meanwhile counts when that is done, and so do those after it.
func TestFreshAfterDrop(t *testing.T) {
	for name, before := range map[string]func(w *worker){
		"that follows":            func(*worker) {},
		"that has failed":         func(w *worker) { w.fail(errGivenUp, 0) },
		"that is off the log":     func(w *worker) { w.offLog() },
		"whose name is another's": func(w *worker) { w.discard, w.lost, w.name = true, true, "" },
	} {
		t.Run("database "+name, func(t *testing.T) {
			ft := newFreshnessTest(t, 2)
			w := ft.workers[0]
			ft.beat(1000)
			before(w)
			busy := ft.f.structure
			busy <- struct{}{} // a worker changes the tree
			w.drop()
			ctx, end := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() { _ = w.await(ctx) })
			defer wg.Wait()
			defer end()
			for gone := true; gone; {
				w.mu.Lock()
				gone = w.gone
				w.mu.Unlock()
			}
			ft.beat(2000)
			ft.want(1000)
			<-busy
			for at := int64(3000); ft.f.store.syncedAt.Load() < 3000; at++ {
				if at == 13000 {
					t.Fatalf("the copy is of %d after %d heartbeats", ft.f.store.syncedAt.Load(), at-3000)
				}
				time.Sleep(time.Millisecond)
				ft.beat(at)
			}
		})
	}
}
