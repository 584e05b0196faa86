package role

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

var (
	seeds    = flag.Int("role.seeds", 2000, "simulated clusters")
	oneSeed  = flag.Uint64("role.seed", 0, "run this one only, and print what happens")
	simStart = flag.Uint64("role.from", 1, "first seed")
)

// TestCluster lets many simulated clusters suffer and heal.
func TestCluster(t *testing.T) {
	if *oneSeed != 0 {
		s := newSim(*oneSeed, true)
		err := s.live()
		t.Log("\n" + strings.Join(s.trace, "\n"))
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	const shards = 4
	for shard := range uint64(shards) {
		t.Run(fmt.Sprint(shard), func(t *testing.T) {
			t.Parallel()
			var writes, reigns, lost, promised uint64
			for seed := *simStart + shard; seed < *simStart+uint64(*seeds); seed += shards {
				s := newSim(seed, false)
				if err := s.live(); err != nil {
					t.Fatalf("go test ./internal/role -run TestCluster -role.seed %d -v: %v", seed, err)
				}
				writes, reigns, lost = writes+s.writes, reigns+s.service.token, lost+uint64(len(s.lost))
				if s.quorum > 0 {
					promised += uint64(len(s.acked))
				}
			}
			if promised == 0 {
				t.Error("nothing was acknowledged by a quorum")
			}
			t.Logf("%d writes, %d leases, %d transactions in lost+found, %d acknowledged by a quorum", writes, reigns, lost, promised)
		})
	}
}

func newSim(seed uint64, tracing bool) *sim {
	rng := rand.New(rand.NewPCG(seed, 1))
	s := &sim{
		rng: rng, tracing: tracing, cut: make(map[[2]string]bool),
		inSync: rng.IntN(2) == 0, ttl: []Time{2 * Second, 10 * Second}[rng.IntN(2)],
		acked: make(map[entry]bool), lost: make(map[entry]bool),
	}
	for i := range 2 + rng.IntN(4) {
		s.nodes = append(s.nodes, &simNode{
			s: s, id: string(rune('a' + i)), learner: i >= 2 && rng.IntN(4) == 0,
			rate:   0.95 + 0.1*rng.Float64(),
			offset: Time(rng.Int64N(int64(1000 * Second))),
		})
	}
	if s.inSync {
		s.quorum = rng.IntN(min(3, len(s.nodes)))
	}
	return s
}

// live runs a minute of faults and then the time that it takes to heal.
func (s *sim) live() error {
	const faults = 40 * Second
	for _, n := range s.nodes {
		s.at(Time(s.rng.Int64N(int64(Second))), func() { n.start() })
	}
	for at := Time(0); at < faults; at += 10*Millisecond + Time(s.rng.Int64N(int64(60*Millisecond))) {
		n := s.nodes[s.rng.IntN(len(s.nodes))]
		s.at(at, n.write)
		s.at(at, func() {
			if n.up && !n.paused {
				n.shrink()
			}
		})
	}
	pace := Time(1+s.rng.Int64N(5)) * Second
	for at := 3 * Second; at < faults; at += Time(s.rng.Int64N(int64(pace))) {
		s.at(at, s.fault)
	}
	s.run(faults)
	s.heal()
	s.run(faults + 60*Second)
	if s.err != nil {
		return s.err
	}
	return s.converged()
}

// fault does one bad thing, or ends one.
func (s *sim) fault() {
	n := s.nodes[s.rng.IntN(len(s.nodes))]
	if s.rng.IntN(2) == 0 { // most of them should hit who matters
		for _, p := range s.nodes {
			if p.up && p.m.State() == Primary {
				n = p
			}
		}
	}
	others := append(s.names(), "lease")
	other := others[s.rng.IntN(len(others))]
	kind := s.rng.IntN(12)
	s.logf("fault %d: %s %s", kind, n.id, other)
	switch kind {
	case 0, 1:
		n.crash()
	case 2, 3:
		if !n.up {
			n.start()
		}
	case 4:
		if n.up && !n.paused {
			n.pause()
			s.at(s.now+Time(s.rng.Int64N(int64(20*Second))), func() {
				if n.paused {
					n.wake()
				}
			})
		}
	case 5:
		s.cut[[2]string{n.id, other}] = true
	case 6:
		s.cut[[2]string{n.id, other}], s.cut[[2]string{other, n.id}] = true, true
	case 7, 8:
		clear(s.cut)
	case 9:
		s.service.down = true
		s.at(s.now+Time(s.rng.Int64N(int64(15*Second))), func() { s.service.down = false })
	case 10:
		if n.up && !n.paused {
			if s.rng.IntN(2) == 0 {
				n.step(Demote{})
			} else {
				n.step(Promote{Force: !s.inSync && s.rng.IntN(4) == 0})
			}
		}
	case 11:
		if n.up && !n.paused {
			n.step(Stop{})
			s.at(s.now+5*Second, func() { n.crash(); n.start() })
		}
	}
	s.check()
}

func (s *sim) names() []string {
	var names []string
	for _, n := range s.nodes {
		names = append(names, n.id)
	}
	return names
}

func (s *sim) heal() {
	s.logf("heal")
	s.calm = true
	clear(s.cut)
	s.service.down = false
	for _, n := range s.nodes {
		if n.paused {
			n.wake()
		}
		if !n.up {
			n.start()
		}
	}
}

// converged holds the other invariants, of a cluster that has healed.
func (s *sim) converged() error {
	var primary *simNode
	for _, n := range s.nodes {
		if !n.up {
			return fmt.Errorf("%s is not up", n.id)
		}
		if n.m.Admits(n.local()) {
			primary = n
		}
	}
	if primary == nil {
		var why []string
		for _, n := range s.nodes {
			why = append(why, fmt.Sprintf("%s %v %v %q", n.id, n.m.State(), n.fullness(), n.m.Why()))
		}
		return fmt.Errorf("no primary after healing: record %+v; %s", s.service.record, strings.Join(why, "; "))
	}
	kept := make(map[entry]bool)
	for _, e := range primary.log {
		kept[e] = true
	}
	if !slices.IsSortedFunc(primary.log, func(a, b entry) int { return int(a.count) - int(b.count) }) {
		return fmt.Errorf("the history of %s is not in the order of its acknowledgements", primary.id)
	}
	for _, n := range s.nodes {
		if !slices.Equal(n.log, primary.log) {
			return fmt.Errorf("%s has %d transactions, the primary %s %d: they differ", n.id, len(n.log), primary.id, len(primary.log))
		}
	}
	for _, e := range s.admitted {
		if !kept[e] && !s.lost[e] {
			return fmt.Errorf("transaction %v is neither in the cluster nor in lost+found", e)
		}
		if s.inSync && s.acked[e] && !kept[e] {
			return fmt.Errorf("transaction %v was acknowledged by the in-sync set and is lost", e)
		}
	}
	return nil
}
