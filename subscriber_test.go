package litefs

import (
	"maps"
	"sync"
	"testing"
)

func set(ids ...uint32) map[uint32]struct{} {
	m := make(map[uint32]struct{})
	for _, id := range ids {
		m[id] = struct{}{}
	}
	return m
}

func TestSubscriber_DirtySet(t *testing.T) {
	s := newSubscriber(nil)
	if got := s.DirtySet(); len(got) != 0 {
		t.Fatalf("DirtySet()=%v of a new subscriber, want none", got)
	}
	select {
	case <-s.NotifyCh():
		t.Fatal("notified without a mark")
	default:
	}

	for _, id := range []uint32{1, 2, 1} {
		s.MarkDirty(id)
	}
	<-s.NotifyCh()
	if got := s.DirtySet(); !maps.Equal(got, set(1, 2)) {
		t.Fatalf("DirtySet()=%v, want 1 and 2", got)
	}
	if got := s.DirtySet(); len(got) != 0 {
		t.Fatalf("DirtySet()=%v right after another, want none", got)
	}
}

// A mark between DirtySet and the next wait is never missed.
func TestSubscriber_NoLostMark(t *testing.T) {
	s := newSubscriber(nil)
	const n = 10000
	var wg sync.WaitGroup
	wg.Go(func() {
		for id := range uint32(n) {
			s.MarkDirty(id)
		}
	})
	got := make(map[uint32]struct{})
	for len(got) < n {
		<-s.NotifyCh()
		maps.Copy(got, s.DirtySet())
	}
	wg.Wait()
}
