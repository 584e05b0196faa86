package ship

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/archive"
	"github.com/litefs/litefs/internal/catalog"
	"github.com/litefs/litefs/internal/objstore"
	"github.com/litefs/litefs/internal/restore"
)

// TestRandomHistories: whatever happens to the nodes (failovers that lose transactions, two primaries by
// force, logs that were merged and retired, restarts) and to the store (requests that fail before or after
// they were done), every moment of every history is a state that a node had, byte for byte, and the
// moments of one history descend from each other. After that, a primary that nothing disturbs has all of
// its newest state in the archive.
func TestRandomHistories(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { randomHistory(t, seed) })
	}
}

func randomHistory(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 7))
	dir, err := objstore.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	layout := archive.Layout(r.IntN(2))
	store := &faultyStore{Store: dir, r: r}
	states := map[place]*state{}
	nodes := []*modelNode{{r: r, id: 1, states: states}, {r: r, id: 1, states: states}}
	writer := nodes[0]
	writer.primary, writer.epoch = true, 1
	opt := Options{
		Dir: t.TempDir(), Interval: time.Millisecond, SnapshotInterval: time.Duration(1 + r.IntN(3)*int(time.Hour)),
		Requests: 1e9, levels: []time.Duration{1, 2, 3}, minMerge: 2 + r.IntN(3), keepRaw: time.Duration(1 + r.IntN(2)*int(time.Hour)),
		Retention: Retention{Count: r.IntN(3)},
	}
	shippers := make([]*Shipper, len(nodes))
	restart := func(i int) {
		o := opt
		o.Source, o.Targets = nodes[i], []Target{{Store: store, Layout: layout}}
		if shippers[i], err = New(o); err != nil {
			t.Fatal(err)
		}
	}
	for i := range nodes {
		restart(i)
	}
	// visit does what the loop of a target does at a tick.
	visit := func(i int) {
		target := shippers[i].targets[0]
		for _, c := range target.due(time.Now().Add(time.Hour)) {
			if target.begin(c) {
				target.visit(t.Context(), c)
			}
		}
	}
	// A commit waits for the archive, in vain perhaps.
	waits := func(i int) {
		n := nodes[i]
		n.write()
		n.waits = true
		_, stop := shippers[i].Want(n.id, n.head.txid)
		store.often = r.IntN(3) * 3
		for range r.IntN(3) {
			visit(i)
		}
		stop()
		if n.waits = false; shippers[i].Needs(n.id)[0] <= n.head.txid || r.IntN(3) == 0 {
			n.takeBack()
		}
	}
	at := 0
	store.meanwhile = func() {
		n := nodes[at]
		defer func(often int) { store.often = often }(store.often)
		if n.primary && n.head != nil && !n.waits {
			switch r.IntN(3) {
			case 0:
				n.write()
			case 1:
				waits(at)
			}
		}
		visit(at)
	}
	epoch := uint64(1)
	for range 150 {
		i := r.IntN(len(nodes))
		n := nodes[i]
		at = i
		switch op := r.IntN(20); {
		case op < 8:
			if n.primary {
				n.write()
			}
		case op < 14:
			store.often = r.IntN(2) * 8
			visit(i)
		case op == 14:
			n.compact()
		case op == 15 && n.primary:
			n.retire(shippers[i].Needs(n.id)[0])
		case op == 16:
			restart(i)
		case op == 17: // the other one takes over; this one may not have heard of it
			other := nodes[1-i]
			if n.primary && n.head != nil {
				epoch++
				other.follow(n)
				other.primary, other.epoch = true, epoch
				n.primary = r.IntN(3) == 0
				writer = other
			}
		case op == 19 && n.primary && n.head != nil:
			waits(i)
		case op == 18 && n == writer && r.IntN(4) == 0: // dropped, and made again
			n.id, n.head, n.log = n.id+1, nil, nil
		}
	}
	store.often, store.meanwhile = 0, nil
	if writer.head == nil {
		writer.write()
	}
	for i, n := range nodes {
		if n == writer {
			restart(i)
			for range 3 {
				visit(i)
			}
			if st := shippers[i].Status()[0]; st.Err != "" {
				t.Fatal(st.Err)
			}
		}
	}
	checkHistories(t, dir, layout, states, writer)
}

func checkHistories(t *testing.T, s objstore.Store, layout archive.Layout, states map[place]*state, writer *modelNode) {
	numbers, err := catalog.Histories(t.Context(), s, writer.Name())
	if err != nil {
		t.Fatal(err)
	}
	complete := false
	for _, number := range numbers {
		h, err := restore.Open(t.Context(), s, layout, writer.Name(), number)
		if errors.Is(err, restore.ErrNoHistory) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		var last *state
		for _, n := range h.Moments() {
			m, err := h.Moment(t.Context(), n)
			if errors.Is(err, restore.ErrNoMoment) && strings.Contains(err.Error(), "takes it back") {
				if at, err := h.At(t.Context(), m.Time); err != nil || at.N == n {
					t.Fatalf("history %d, %s was refused, and is the one at its time (%v)", number, m, err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			want := states[place{m.State.TXID, m.State.Sum, m.State.Epoch}]
			if want == nil {
				t.Fatalf("history %d, %s: no node was ever at %016x", number, m, m.State.Sum)
			}
			if last != nil && last.refused != nil && !last.adopted && want.descends(last.refused) {
				t.Fatalf("history %d, the moment before %s was refused", number, m)
			}
			if last != nil && !want.descends(last) {
				t.Fatalf("history %d, %s does not descend from the moment before: two histories are mixed", number, m)
			}
			last = want
			file := filepath.Join(t.TempDir(), "restored")
			got, err := h.Restore(t.Context(), m, file, nil)
			if err != nil || len(got.Skipped) > 0 {
				t.Fatalf("history %d, %s: %v %v", number, m, got.Skipped, err)
			}
			if b, err := os.ReadFile(file); err != nil || !bytes.Equal(b, want.bytes()) {
				t.Fatalf("history %d, %s: other bytes, %v", number, m, err)
			}
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
		complete = complete || last == writer.head
	}
	if !complete {
		t.Fatalf("no history has the primary's state %s", writer.Pos())
	}
}

// TestDamagedObjectIsLeftBehind: an object that is gone cannot be put together with others; new moments,
// snapshots and retention go on, and when retention has come past it nothing is wrong any more.
func TestDamagedObjectIsLeftBehind(t *testing.T) {
	n := &modelNode{r: rand.New(rand.NewPCG(3, 4)), id: 1, primary: true, epoch: 1, states: map[place]*state{}}
	dir, err := objstore.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Options{
		Source: n, Targets: []Target{{Store: dir, Layout: archive.LayoutDir}}, Dir: t.TempDir(), Interval: time.Hour, Requests: 1e9,
		SnapshotInterval: 1, Retention: Retention{Count: 1}, levels: []time.Duration{1, 2, 3}, minMerge: 4, keepRaw: 30 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	target := s.targets[0]
	visit := func() {
		n.write()
		for _, c := range target.due(time.Now().Add(time.Hour)) {
			target.visit(t.Context(), c)
		}
	}
	visit()
	target.opt.SnapshotInterval = time.Hour
	visit()
	folder := catalog.Folder(n.Name(), 1)
	target.cache = cache{}
	if err := dir.Delete(t.Context(), folder+archive.LayoutDir.Key(archive.Object{Min: 2, Max: 2})); err != nil {
		t.Fatal(err)
	}
	for range 6 {
		visit()
	}
	if st := s.Status()[0]; st.Err == "" || s.Needs(n.id)[0] < n.head.txid-1 {
		t.Fatalf("%+v, needs %d at %d", st, s.Needs(n.id)[0], n.head.txid)
	}
	target.opt.SnapshotInterval = 1
	for range 4 {
		target.mu.Lock()
		target.mu.chains[n.id].upkeep = time.Time{}
		target.mu.Unlock()
		visit()
	}
	if st := s.Status()[0]; st.Err != "" {
		t.Fatalf("%+v", st)
	}
	checkHistories(t, dir, archive.LayoutDir, n.states, n)
}
