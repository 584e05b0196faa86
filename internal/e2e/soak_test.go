package e2e

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"
)

// soakFor is how long the long tests run: a moment, so that they are known to work, unless
// LITEFS_SOAK says more.
func soakFor(t *testing.T) time.Duration {
	t.Helper()
	v := os.Getenv("LITEFS_SOAK")
	if v == "" {
		return 0
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		t.Fatalf("LITEFS_SOAK: %v", err)
	}
	return d
}

// soakSeed is where a long test begins: LITEFS_SEED, or a seed of its own.
func soakSeed(t *testing.T) uint64 {
	t.Helper()
	v := os.Getenv("LITEFS_SEED")
	if v == "" {
		return uint64(time.Now().UnixNano()) % 1e9
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		t.Fatalf("LITEFS_SEED: %v", err)
	}
	return n
}

// briefly lets a long test run beside others as long as it is not a long one: for most of the time it waits.
func briefly(t *testing.T) {
	t.Helper()
	if soakFor(t) == 0 {
		t.Parallel()
	}
}

func TestSoakCrashes(t *testing.T) {
	t.Run("passthrough", func(t *testing.T) { crashRounds(t, 1, soakFor(t)/6) })
	t.Run("cached", func(t *testing.T) {
		// Without passthrough the daemon opens the wal-index through its own mount. A kill in that very
		// moment leaves a thread that waits for an answer of its own process, and with it the mount.
		if d := soakFor(t); d > 0 {
			crashRounds(t, 1, d/6, cached)
		}
	})
}

func TestSoakStops(t *testing.T) {
	t.Run("passthrough", func(t *testing.T) { stopped(t, 50*time.Millisecond+soakFor(t)/6) })
	t.Run("cached", func(t *testing.T) { stopped(t, 50*time.Millisecond+soakFor(t)/6, cached) })
}

func TestSoakContention(t *testing.T) {
	t.Run("passthrough", func(t *testing.T) { contention(t, 50*time.Millisecond+soakFor(t)/6) })
	t.Run("cached", func(t *testing.T) { contention(t, 50*time.Millisecond+soakFor(t)/6, cached) })
}

func TestSoakReaders(t *testing.T) {
	if soakFor(t) == 0 {
		return
	}
	each := soakFor(t) / 6 / time.Duration(len(allModes))
	t.Run("passthrough", func(t *testing.T) { versionsRun(t, 0, each) })
	t.Run("cached", func(t *testing.T) { versionsRun(t, 0, each, cached) })
}

func TestSoakNetwork(t *testing.T) {
	if soakFor(t) == 0 {
		return
	}
	seed := uint64(time.Now().UnixNano()) % 1e9
	for start := time.Now(); time.Since(start) < soakFor(t)/3; seed++ {
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) { stormRun(t, seed, 20, 4*time.Second) }) {
			return
		}
	}
}
