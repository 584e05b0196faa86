package ship

import (
	"context"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/archive"
	"github.com/litefs/litefs/internal/catalog"
	"github.com/litefs/litefs/internal/objstore"
)

// shyStore fails its first puts, and counts those that a commit waits for.
type shyStore struct {
	objstore.Store
	fails   atomic.Int32
	early   atomic.Int32 // those that would be given up before the commit
	tooLate atomic.Int32 // those that would not
}

func (s *shyStore) PutIfAbsent(ctx context.Context, key string, body io.ReadSeeker, a objstore.Attrs) (string, error) {
	if end, ok := ctx.Deadline(); isUrgent(ctx) && ok && time.Until(end) < litefs.DefaultArchiveTimeout {
		s.early.Add(1)
	} else if isUrgent(ctx) {
		s.tooLate.Add(1)
	}
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
// requests, and again when a place has failed, or would be when one hung. A transaction that waits need not be decided.
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
	if early, tooLate := shy.early.Load(), shy.tooLate.Load(); early == 0 || tooLate > 0 {
		t.Errorf("of the puts that the commit waits for, %d leave time for another one, and %d do not", early, tooLate)
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

// slowUpkeep is a database whose snapshot takes as long as a test wants, and the store that its upload goes to.
type slowUpkeep struct {
	*oneOfMany
	objstore.Store
	copying, uploading chan struct{} // told when it begins; capacity 1
	copied, uploaded   chan struct{} // closed to let it end
}

func (s *slowUpkeep) IsPrimary() bool       { return true }
func (s *slowUpkeep) Epoch() uint64         { return 1 }
func (s *slowUpkeep) Databases() []Database { return []Database{s} }

func (s *slowUpkeep) DecidedSnapshot(ctx context.Context) (*litefs.LTXReader, error) {
	tell(s.copying)
	select {
	case <-s.copied:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.node.DecidedSnapshot(ctx)
}

func (s *slowUpkeep) PutIfAbsent(ctx context.Context, key string, body io.ReadSeeker, a objstore.Attrs) (string, error) {
	if strings.Contains(key, "/ltx/9/") {
		tell(s.uploading)
		select {
		case <-s.uploaded:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	return s.Store.PutIfAbsent(ctx, key, body, a)
}

func tell(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// TestCommitOvertakesSnapshot: commits that wait are written while the whole database is copied, and while it is uploaded;
// the snapshot is that of a moment.
func TestCommitOvertakesSnapshot(t *testing.T) {
	dir, err := objstore.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	states := map[place]*state{}
	d := &slowUpkeep{
		oneOfMany: &oneOfMany{name: "dir/app.db", times: map[uint64]time.Time{}, node: modelNode{r: rand.New(rand.NewPCG(8, 9)), id: 1, epoch: 1, states: states}},
		Store:     dir, copying: make(chan struct{}, 1), uploading: make(chan struct{}, 1), copied: make(chan struct{}), uploaded: make(chan struct{}),
	}
	s, err := New(Options{
		Source: d, Targets: []Target{{Store: d, Layout: archive.LayoutDir}}, Dir: t.TempDir(), Interval: time.Millisecond, SnapshotInterval: 1,
		Requests: 1e9, levels: []time.Duration{1, 1 << 62, 1 << 62}, minMerge: 1 << 30,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	within := func(what string, c <-chan struct{}) {
		t.Helper()
		select {
		case <-c:
		case <-time.After(time.Minute):
			t.Fatalf("%s: %+v", what, s.Status())
		}
	}
	commit := func() {
		t.Helper()
		d.write()
		done, stop := s.Want(1, d.Pos().TXID)
		defer stop()
		within("a commit is not archived", done)
	}
	commit()
	commit()
	within("no snapshot is made", d.copying)
	commit()
	commit()
	copied := d.Pos().TXID
	close(d.copied)
	within("no snapshot is uploaded", d.uploading)
	commit()
	commit()
	close(d.uploaded)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		objects, err := catalog.Objects(t.Context(), dir, archive.LayoutDir, catalog.Folder(d.Name(), 1), "")
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(objects, func(o archive.Object) bool { return o.Level == archive.LevelSnapshot && o.Max == copied }) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no snapshot of moment %d: %v", copied, objects)
		}
	}
	s.Close()
	checkHistories(t, dir, archive.LayoutDir, states, &d.node)
}
