package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/faultnet"
	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// behind makes the node a follower that reaches its primary through a bad network, and tries again soon.
func behind(p *faultnet.Proxy) option {
	return func(c *childnode.Config) {
		c.PrimaryURL = "http://" + p.Addr()
		c.LeaseKeys = []string{"reconnect-delay: 20ms"}
	}
}

// startProxy puts a bad network in front of a node.
func startProxy(t testing.TB, n *node, seed uint64) *faultnet.Proxy {
	t.Helper()
	p, err := faultnet.Listen(n.cfg.Addr, seed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// storm is a primary and its replica with bad weather between them, writers on the one and readers on
// both, and a hand that kills either.
type storm struct {
	t                 *testing.T
	rng               *rand.Rand
	primary, follower *node
	names             []string
	versions          map[string]int64 // committed, as its writer was told
	readers           map[*node][]*readers
	reads, kills      int64
}

// stormRun is the run of one seed: rounds of writing, each followed by a kill of one side or none, each
// weather lasting about interval. At the end the network is good, and the nodes must be the same.
func stormRun(t *testing.T, seed uint64, rounds int, interval time.Duration) {
	var options []option
	if seed%2 == 0 {
		options = append(options, cached)
	}
	s := &storm{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), names: []string{"wal.db", "delete.db"},
		versions: make(map[string]int64), readers: make(map[*node][]*readers),
	}
	s.primary = startNode(t, options...)
	proxy := startProxy(t, s.primary, seed)
	s.follower = startNode(t, append(options, behind(proxy))...)
	app := sqlitetest.Start(t)
	createVersions(app, s.primary.path("wal.db"), "wal")
	createVersions(app, s.primary.path("delete.db"), "delete")
	app.Exit()
	for _, n := range []*node{s.primary, s.follower} {
		s.startReaders(n)
	}

	ctx, calm := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() {
		defer close(over)
		proxy.Storm(ctx, rand.New(rand.NewPCG(seed, 2)), interval, func(w string) { t.Log(time.Now().Format("05.000"), w) })
	}()
	for range rounds {
		s.write(interval)
		switch s.rng.IntN(4) {
		case 0:
			s.crash(s.primary)
		case 1:
			s.crash(s.follower)
		}
		if t.Failed() {
			break
		}
	}
	calm()
	<-over
	for _, name := range s.names {
		caughtUp(s.primary, s.follower, name)
	}
	for _, all := range s.readers {
		for _, r := range all {
			s.reads += r.end()
		}
	}
	t.Logf("versions %v, %d reads, %d kills, %+v", s.versions, s.reads, s.kills, proxy.Counts())
	sameOnAll(t, []*node{s.primary, s.follower}, s.names...)
}

// startReaders starts readers of every database on a node, once the node has it.
func (s *storm) startReaders(n *node) {
	s.t.Helper()
	s.readers[n] = nil
	for _, name := range s.names {
		eventually(s.t, name+" is there", func() (bool, string) {
			pos, err := n.pos(name)
			return err == nil && pos != "none", fmt.Sprintf("%s, %v", pos, err)
		})
		s.readers[n] = append(s.readers[n], startReaders(s.t, n, name))
	}
}

// write commits transactions to each database for a part of d, and checks that the primary has lost none.
func (s *storm) write(d time.Duration) {
	s.t.Helper()
	for _, name := range s.names {
		app := sqlitetest.Start(s.t)
		c := openPatient(app, s.primary.path(name), "synchronous=normal")
		if got := c.MustInt("SELECT n FROM total"); got != s.versions[name] {
			s.t.Fatalf("%s is at version %d on the primary, want %d", name, got, s.versions[name])
		}
		done, err := c.Repeat(versionUp, 0, d/4+time.Duration(s.rng.Int64N(int64(d/2))))
		if err != nil {
			s.t.Fatalf("%s: %v", name, err)
		}
		s.versions[name] += int64(done.Rounds)
		app.Exit()
	}
}

// crash kills a node with its applications reading, and brings both back.
func (s *storm) crash(n *node) {
	s.t.Helper()
	s.kills++
	n.kill()
	for _, r := range s.readers[n] {
		s.reads += r.crash()
	}
	n.start()
	s.startReaders(n)
}

// Whatever the network does and whoever is killed: readers see whole transactions only, and in the end
// the replica is the primary, byte for byte.
func TestBadNetworkAndKills(t *testing.T) {
	for _, seed := range []uint64{1, 2} {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { stormRun(t, seed, 4, 400*time.Millisecond) })
	}
}

// A connection that is silent in one direction, or in both, is given up by the replica in seconds; what
// was written meanwhile comes when the network is back.
func TestHalfOpenConnectionIsGivenUp(t *testing.T) {
	primary := startNode(t)
	proxy := startProxy(t, primary, 1)
	follower := startNode(t, behind(proxy))
	c := sqlitetest.Open(t, primary.path("app.db"), "journal_mode=wal", "synchronous=normal")
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
	settle(c)
	caughtUp(primary, follower, "app.db")
	before := proxy.Counts().Connections
	proxy.Set(faultnet.Faults{Down: faultnet.Direction{Stall: true}})
	if _, err := c.Repeat([]sqlapp.Step{insert(1000)}, 200, 0); err != nil {
		t.Fatal(err)
	}
	settle(c)
	// Each attempt is silent too: the replica goes on trying.
	eventually(t, "the replica has given the connection up", func() (bool, string) {
		n := proxy.Counts().Connections
		return n > before, fmt.Sprintf("%d connections", n)
	})
	proxy.Set(faultnet.Faults{})
	proxy.Cut()
	caughtUp(primary, follower, "app.db")
	sqlitetest.CheckIntegrity(t, follower.path("app.db"))
	c.Close()
	sameEverywhere(t, primary, follower, "app.db")
}
