//go:build setlk

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// SQLite built with SQLITE_ENABLE_SETLK_TIMEOUT asks for WRITE before it reads. Its programs write on a replica as others
// do, and a checkpoint of theirs borrows nothing. make setlk builds it.
func TestForwardSetlk(t *testing.T) {
	amalgamation := os.Getenv("LITEFS_SQLITE_C")
	if amalgamation == "" {
		t.Fatal("LITEFS_SQLITE_C does not name an amalgamation: make setlk")
	}
	program := filepath.Join(t.TempDir(), "counter")
	out, err := exec.Command("gcc", "-O1", "-w", "-DSQLITE_ENABLE_SETLK_TIMEOUT=1", "-DPAUSE=500000", "-o", program,
		"-x", "c", filepath.Join("testdata", "counter.c"), amalgamation, "-lpthread", "-ldl", "-lm").CombinedOutput()
	if err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	primary, k := forwardCounting(t)
	replica := startNode(t, follows(primary), daemonLocks)
	caughtUp(primary, replica, "app.db")
	for i := range 3 {
		out, err := unlocked(replica, program, replica.path("app.db"), fmt.Sprint(i), "5", "3000").Output()
		if err != nil {
			t.Errorf("%v: %s", err, out)
		}
		for line := range strings.Lines(string(out)) {
			if key, ok := strings.CutPrefix(strings.TrimSpace(line), "ok "); ok {
				k.oks[key] = true
			}
		}
	}
	k.settled(primary, replica)
	if len(k.oks) != 15 {
		t.Errorf("%d increments, want 15", len(k.oks))
	}
}
