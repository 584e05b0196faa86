package ship

import (
	"context"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/archive"
	"github.com/litefs/litefs/internal/objstore"
)

// shyStore fails its first puts.
type shyStore struct {
	objstore.Store
	fails atomic.Int32
}

func (s *shyStore) PutIfAbsent(ctx context.Context, key string, body io.ReadSeeker, a objstore.Attrs) (string, error) {
	if s.fails.Add(-1) >= 0 {
		return "", errFault
	}
	return s.Store.PutIfAbsent(ctx, key, body, a)
}

// shared is randomness of several goroutines.
type shared struct {
	mu  sync.Mutex
	src rand.Source
}

func (s *shared) Uint64() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.src.Uint64()
}

// TestWant: what a commit waits for is written at once, to every place, whatever the interval and the bound on
// requests, and again when a place has failed. A transaction that waits need not be decided.
func TestWant(t *testing.T) {
	n := &modelNode{r: rand.New(&shared{src: rand.NewPCG(3, 4)}), id: 1, primary: true, epoch: 1, states: map[place]*state{}}
	opt := Options{Source: n, Dir: t.TempDir(), Interval: time.Hour, SnapshotInterval: 1 << 62, Requests: 1e-6}
	shy := &shyStore{}
	for i := range 2 {
		dir, err := objstore.OpenDir(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		var store objstore.Store = dir
		if i == 1 {
			shy.Store = dir
			store = shy
		}
		opt.Targets = append(opt.Targets, Target{Store: store, Layout: archive.LayoutDir})
	}
	s, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	n.write()
	n.write()
	n.waits = true // nothing else touches the node from here on
	shy.fails.Store(2)
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	wait := func(txid uint64) {
		t.Helper()
		done, stop := s.Want(n.id, txid)
		defer stop()
		select {
		case <-done:
		case <-time.After(time.Minute):
			t.Fatalf("transaction %d is not archived: %+v", txid, s.Status())
		}
	}
	wait(2)
	for i, needs := range s.Needs(n.id) {
		if needs != 3 {
			t.Errorf("place %d needs transaction %d, want 3", i, needs)
		}
	}
	wait(2) // it is there
	done, stop := s.Want(n.id, 3)
	stop()
	select {
	case <-done:
		t.Error("a transaction that was never made is archived")
	default:
	}
}
