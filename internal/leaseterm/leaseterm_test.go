package leaseterm

import (
	"testing"
	"time"
)

// A term counts from the mark of the renewal, not from its answer, and not past its end.
func TestTerm(t *testing.T) {
	var now time.Duration
	term := Begin(10*time.Second, func() time.Duration { return now })
	want := func(remaining time.Duration) {
		t.Helper()
		if got := term.Remaining(); got != remaining {
			t.Fatalf("%v remain after %v, want %v", got, now, remaining)
		}
	}
	now = 4 * time.Second
	want(6 * time.Second)
	mark := term.Mark()
	now = 7 * time.Second
	want(3 * time.Second)
	term.Renewed(mark)
	want(7 * time.Second)
	if since := time.Since(term.RenewedAt()); since < 0 || since > time.Minute {
		t.Errorf("renewed %v ago", since)
	}
	now = time.Hour // the machine has slept
	want(14*time.Second - time.Hour)
	term.Renewed(term.Mark())
	if !term.End() || term.End() || !term.Ended() {
		t.Error("a term ends once")
	}
	want(0)
}

func TestSlot(t *testing.T) {
	var s Slot[string, int]
	one, two := new(string), new(string)
	if s.IsFormer(0) {
		t.Error("no lease is a former one")
	}
	s.Had(7)
	if !s.IsFormer(7) || s.Lease() != nil || !s.Adopt(one) || s.Adopt(two) || s.Lease() != one {
		t.Error("a slot holds one lease")
	}
	s.Leave(two, 9) // not the one that is held
	if s.Lease() != one || s.IsFormer(9) {
		t.Error("another lease has ended")
	}
	s.Leave(one, 8)
	if s.Lease() != nil || !s.IsFormer(8) || s.IsFormer(7) {
		t.Error("the lease has ended")
	}
}
