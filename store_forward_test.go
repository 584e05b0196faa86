package litefs

import (
	"math"
	"testing"

	"github.com/litefs/litefs/sqlitefile"
)

// Who holds no READ slot and asks for WRITE means to write if it asks for nothing else between, and is no checkpoint.
func TestInsists(t *testing.T) {
	f := newForwarding()
	asks := func(owner uint64, want ...bool) {
		t.Helper()
		for i, w := range want {
			if got := f.insists(owner); got != w {
				t.Errorf("owner %d, time %d: %v, want %v", owner, i, got, w)
			}
		}
	}
	byteOf := func(owner uint64, kind LockKind, at uint64) LockRequest {
		return LockRequest{Owner: owner, Kind: kind, Start: at, End: at}
	}
	asks(1, false, false)
	asks(2, false, false)
	asks(1, true, true)
	f.asksOther(2) // in vain
	asks(2, false, false, true)
	f.note(byteOf(1, LockShared, sqlitefile.WALDMSLock))
	asks(1, false)
	f.note(byteOf(1, LockExclusive, sqlitefile.WALCkptLock))
	asks(1, false, false, false, false)
	f.note(byteOf(2, LockNone, sqlitefile.WALCkptLock)) // not its
	asks(1, false)
	f.note(LockRequest{Owner: 1, End: math.MaxUint64}) // it is gone
	asks(1, false, false, true)
	if f.note(LockRequest{Owner: 2, End: math.MaxUint64}); len(f.bare) != 1 {
		t.Errorf("%d owners are remembered, want 1", len(f.bare))
	}
}
