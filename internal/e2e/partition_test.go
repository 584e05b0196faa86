package e2e

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/netns"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// startIn starts a node in a namespace of its own; its mount is seen everywhere.
func startIn(t *testing.T, nw *netns.Network, i int, options ...option) *node {
	t.Helper()
	n := newNode(t, append(options, func(c *childnode.Config) { c.Addr = nw.Addr(i) + ":20202" })...)
	n.token = "partition"
	n.inside = func(args ...string) []string { return nw.Command(i, args...) }
	n.start()
	return n
}

// TestSoakPartitions cuts real connections between a primary and two replicas, in one direction or both, at
// random, while the primary is written to and the replicas are read.
func TestSoakPartitions(t *testing.T) {
	if soakFor(t) == 0 {
		return
	}
	seed := uint64(time.Now().UnixNano()) % 1e9
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	nw, err := netns.New(3)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := nw.Close(); err != nil {
			t.Error(err)
		}
	})
	nodes := []*node{startIn(t, nw, 0)}
	for i := 1; i < 3; i++ {
		nodes = append(nodes, startIn(t, nw, i, follows(nodes[0])))
	}
	app := sqlitetest.Start(t)
	createVersions(app, nodes[0].path("app.db"), "wal")
	var all []*readers
	for _, n := range nodes {
		caughtUp(nodes[0], n, "app.db")
		all = append(all, startReaders(t, n, "app.db"))
	}
	c := openPatient(app, nodes[0].path("app.db"), "synchronous=normal")
	written, cuts, healed := 0, 0, 0
	for start := time.Now(); time.Since(start) < soakFor(t)/6; {
		a, b := rng.IntN(3), rng.IntN(3)
		var err error
		switch rng.IntN(4) {
		case 0:
			err = nw.Cut(a, b)
			cuts++
		case 1:
			err = nw.Part(a)
			cuts++
		default:
			err = nw.Heal()
			healed++
		}
		if err != nil {
			t.Fatal(err)
		}
		// Long enough, now and then, for a silent connection to be given up.
		done, err := c.Repeat(versionUp, 0, 500*time.Millisecond+time.Duration(rng.IntN(8000))*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		written += done.Rounds
	}
	if err := nw.Heal(); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes[1:] {
		caughtUp(nodes[0], n, "app.db")
	}
	reads := int64(0)
	for _, r := range all {
		reads += r.end()
	}
	t.Logf("%d transactions, %d reads, %d cuts, healed %d times", written, reads, cuts, healed)
	app.Exit()
	sameOnAll(t, nodes, "app.db")
}
