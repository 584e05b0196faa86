package ship

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/archive"
	"github.com/litefs/litefs/internal/catalog"
	"github.com/litefs/litefs/internal/objstore"
)

// badNode is a database whose log cannot be read.
type badNode struct{ *modelNode }

func (badNode) ID() uint32   { return 99 }
func (badNode) Name() string { return "bad.db" }
func (badNode) LogAfter(uint64) ([]litefs.LogPart, error) {
	return nil, errors.New("its log cannot be read")
}

// twoDatabases is a node with a good and a bad one.
type twoDatabases struct{ *modelNode }

func (n twoDatabases) Databases() []Database { return []Database{badNode(n), n.modelNode} }

// TestOneDatabaseFails: a database that cannot be archived holds up no other, and is told of.
func TestOneDatabaseFails(t *testing.T) {
	n := &modelNode{r: rand.New(rand.NewPCG(1, 2)), id: 1, primary: true, epoch: 1, states: map[place]*state{}}
	dir, err := objstore.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Options{Source: twoDatabases{n}, Targets: []Target{{Store: dir, Layout: archive.LayoutDir}}, Dir: t.TempDir(), Interval: time.Hour, Requests: 1e9})
	if err != nil {
		t.Fatal(err)
	}
	target := s.targets[0]
	for range 5 {
		n.write()
		for _, c := range target.due(time.Now()) {
			target.visit(t.Context(), c)
		}
		if needs := s.Needs(n.id)[0]; needs != n.head.txid+1 {
			t.Fatalf("the good one is archived up to %d, want %d", needs-1, n.head.txid)
		}
	}
	if st := s.Status()[0]; st.Err == "" || st.Databases != 1 || s.Needs(99)[0] != 1 {
		t.Errorf("%+v, the bad one needs %d", st, s.Needs(99))
	}
	if numbers, err := catalog.Histories(t.Context(), dir, "bad.db"); err != nil || len(numbers) != 0 {
		t.Errorf("%v, %v", numbers, err)
	}
}

// TestBucket: after a burst, no more than the rate, whoever asks.
func TestBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(5, 2)
		start := time.Now()
		for range 12 {
			if err := b.take(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(start); d < 2*time.Second || d > 2100*time.Millisecond {
			t.Errorf("12 requests at 5 a second after 2 at once took %v", d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.take(ctx, 100); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}
