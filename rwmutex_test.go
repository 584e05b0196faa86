package litefs_test

import (
	"sync"
	"testing"

	"github.com/litefs/litefs"
)

func assertState(tb testing.TB, rw *litefs.RWMutex, want litefs.RWMutexState) {
	tb.Helper()
	if got := rw.State(); got != want {
		tb.Fatalf("State()=%d, want %d", got, want)
	}
}

func TestRWMutex_TryLock(t *testing.T) {
	var rw litefs.RWMutex
	assertState(t, &rw, litefs.RWMutexStateUnlocked)
	if !rw.CanLock() || !rw.CanRLock() {
		t.Fatal("an unlocked mutex can be locked in both ways")
	}

	g := rw.TryLock()
	if g == nil {
		t.Fatal("TryLock of an unlocked mutex failed")
	}
	assertState(t, &rw, litefs.RWMutexStateExclusive)
	if rw.CanLock() || rw.CanRLock() || rw.TryLock() != nil || rw.TryRLock() != nil {
		t.Fatal("an exclusively locked mutex was locked again")
	}
	if !g.CanLock() || !g.TryLock() {
		t.Fatal("TryLock of the exclusive guard is a no-op that succeeds")
	}
	g.Unlock()
	assertState(t, &rw, litefs.RWMutexStateUnlocked)
}

func TestRWMutex_TryRLock(t *testing.T) {
	var rw litefs.RWMutex
	a, b := rw.TryRLock(), rw.TryRLock()
	if a == nil || b == nil {
		t.Fatal("two shared locks do not exclude each other")
	}
	assertState(t, &rw, litefs.RWMutexStateShared)
	if rw.CanLock() || rw.TryLock() != nil {
		t.Fatal("a shared mutex was locked exclusively")
	}
	if !rw.CanRLock() {
		t.Fatal("a shared mutex can be shared more")
	}
	a.Unlock()
	assertState(t, &rw, litefs.RWMutexStateShared)
	b.Unlock()
	assertState(t, &rw, litefs.RWMutexStateUnlocked)
}

func TestRWMutexGuard_Upgrade(t *testing.T) {
	var rw litefs.RWMutex
	a, b := rw.TryRLock(), rw.TryRLock()
	if a.CanLock() || a.TryLock() || b.TryLock() {
		t.Fatal("upgraded beside another shared lock")
	}
	assertState(t, &rw, litefs.RWMutexStateShared)

	b.Unlock()
	if !a.CanLock() || !a.TryLock() {
		t.Fatal("the only shared lock can be upgraded")
	}
	assertState(t, &rw, litefs.RWMutexStateExclusive)
	if rw.TryRLock() != nil {
		t.Fatal("shared beside an upgraded lock")
	}
	a.Unlock()
	assertState(t, &rw, litefs.RWMutexStateUnlocked)
}

func TestRWMutexGuard_Downgrade(t *testing.T) {
	var rw litefs.RWMutex
	a := rw.TryLock()
	a.RLock()
	assertState(t, &rw, litefs.RWMutexStateShared)
	a.RLock() // no-op
	assertState(t, &rw, litefs.RWMutexStateShared)
	b := rw.TryRLock()
	if b == nil {
		t.Fatal("a downgraded lock can be shared")
	}
	if a.TryLock() {
		t.Fatal("upgraded beside another shared lock")
	}
	a.Unlock()
	assertState(t, &rw, litefs.RWMutexStateShared)
	b.Unlock()
	assertState(t, &rw, litefs.RWMutexStateUnlocked)
}

// A guard that was unlocked must not touch what others hold since.
func TestRWMutexGuard_AfterUnlock(t *testing.T) {
	var rw litefs.RWMutex
	stale := rw.TryLock()
	stale.Unlock()

	shared := rw.TryRLock()
	stale.Unlock()
	stale.RLock()
	if stale.CanLock() || stale.TryLock() {
		t.Fatal("an unlocked guard gained the lock")
	}
	assertState(t, &rw, litefs.RWMutexStateShared)
	shared.Unlock()

	if stale.CanLock() || stale.TryLock() {
		t.Fatal("an unlocked guard gained the lock of an unlocked mutex")
	}
	assertState(t, &rw, litefs.RWMutexStateUnlocked)
}

func TestRWMutex_Concurrent(t *testing.T) {
	var rw litefs.RWMutex
	var n int // only touched under the exclusive lock: the race detector and the sum both tell
	var want [8]int
	var wg sync.WaitGroup
	for i := range want {
		wg.Go(func() {
			for range 2000 {
				g := rw.TryRLock()
				if g == nil {
					continue
				}
				if g.TryLock() {
					n++
					want[i]++
					g.RLock()
				}
				g.Unlock()
			}
		})
	}
	wg.Wait()
	assertState(t, &rw, litefs.RWMutexStateUnlocked)
	sum := 0
	for _, x := range want {
		sum += x
	}
	if n != sum {
		t.Fatalf("%d increments under the lock, want %d", n, sum)
	}
}
