package ship

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/archive"
	"github.com/litefs/litefs/internal/catalog"
	"github.com/litefs/litefs/internal/objstore"
)

// TestOldHistories: when a database was dropped and made again, its former history stays until its last moment is
// older than moments are kept for, and goes as a whole then. The one that is written stays however old it is, and so
// does one that another node has begun meanwhile.
func TestOldHistories(t *testing.T) {
	for _, tt := range []struct {
		age  time.Duration
		want []uint64
	}{
		{0, []uint64{1, 2, 3}},
		{time.Hour, []uint64{1, 2, 3}},
		{30 * time.Second, []uint64{2, 3}}, // the model's moments are a minute old
	} {
		n := &modelNode{r: rand.New(rand.NewPCG(5, 6)), id: 1, primary: true, epoch: 1, states: map[place]*state{}}
		dir, err := objstore.OpenDir(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		open := func(n *modelNode, age time.Duration) *Shipper {
			s, err := New(Options{
				Source: n, Targets: []Target{{Store: dir, Layout: archive.LayoutDir}}, Dir: t.TempDir(), Interval: time.Hour, Requests: 1e9,
				Retention: Retention{Age: age}, levels: []time.Duration{1, 2, 3},
			})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		visit := func(s *Shipper, n *modelNode) {
			n.write()
			for _, c := range s.targets[0].due(time.Now().Add(time.Hour)) {
				s.targets[0].visit(t.Context(), c)
			}
			if st := s.Status()[0]; st.Err != "" {
				t.Fatal(st.Err)
			}
		}
		s := open(n, tt.age)
		for range 3 {
			visit(s, n)
		}
		n.id, n.head, n.log = 2, nil, nil // dropped, and made again
		for range 3 {
			visit(s, n)
		}
		other := &modelNode{r: n.r, id: 3, primary: true, epoch: 1, states: n.states}
		visit(open(other, 0), other)
		s = open(n, tt.age) // goes on with the second of three
		visit(s, n)
		visit(s, n)
		var got []uint64
		numbers, err := catalog.Histories(t.Context(), dir, n.Name())
		if err != nil {
			t.Fatal(err)
		}
		for _, number := range numbers {
			if objects, err := catalog.Objects(t.Context(), dir, archive.LayoutDir, catalog.Folder(n.Name(), number), ""); err != nil || len(objects) > 0 {
				got = append(got, number)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("age %s: histories %v are left, want %v", tt.age, got, tt.want)
		}
		checkHistories(t, dir, archive.LayoutDir, n.states, n)
	}
}
