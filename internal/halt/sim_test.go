package halt

import (
	"container/heap"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

var (
	seeds   = flag.Int("halt.seeds", 300, "simulated clusters")
	oneSeed = flag.Uint64("halt.seed", 0, "run this one only, and print what happens")
)

// TestCluster lets nodes increment one counter under the lock while messages are lost, late and doubled, and nodes die.
// A transaction's pages are the counter, so that two increments of one value look the same.
func TestCluster(t *testing.T) {
	first, last := uint64(1), uint64(*seeds)
	if *oneSeed != 0 {
		first, last = *oneSeed, *oneSeed
	}
	var acked, void, unknown, tails, fences, backs, promised int
	for seed := first; seed <= last; seed++ {
		s := newSim(seed, *oneSeed != 0)
		err := s.live()
		if *oneSeed != 0 {
			t.Log("\n" + strings.Join(s.trace, "\n"))
		}
		if err != nil {
			t.Fatalf("go test ./internal/halt -run TestCluster -halt.seed %d -v: %v", seed, err)
		}
		acked, void, unknown, tails, fences = acked+s.count(Committed), void+s.count(Void), unknown+s.count(Unknown), tails+len(s.tails), fences+s.fences
		if backs += s.backs; s.quorum {
			promised += s.count(Committed)
		}
	}
	t.Logf("%d increments acknowledged, %d of them at level quorum, %d refused, %d unknown; %d in tails; %d fences, %d taken back", acked, promised, void, unknown, tails, fences, backs)
	if acked == 0 || void == 0 || fences == 0 || tails == 0 || backs == 0 || promised == 0 {
		t.Error("the simulation does not meet what it is for")
	}
}

// simEntry is an entry of a node's log. op names the increment, 0 for a fence: no node looks at it.
type simEntry struct {
	epoch, value uint64
	op           int
	back         bool // it takes the one before it back
}

// simNode is a node. Its log is durable; everything else dies with it.
type simNode struct {
	id    int
	up    bool
	log   []simEntry
	noted string // durable: the token of a hold that has not ended
	epoch uint64 // of the reign that it was lent in

	lock Lock // of the primary
	hold *simHold

	undecided bool // the newest entry waits for another node: whoever else has to do with the lock waits too
}

// simHold is a node's hold, on its own side.
type simHold struct {
	lease *Lease
	token string
	asked Time
}

// simOp is an increment that was tried.
type simOp struct {
	tx      Tx
	outcome Outcome
	done    bool
}

type event struct {
	at  Time
	seq int
	fn  func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

type sim struct {
	rng     *rand.Rand
	tracing bool
	trace   []string
	now     Time
	queue   events
	seq     int

	nodes   []*simNode
	primary int
	epoch   uint64
	healthy bool // no more faults
	ops     []*simOp
	tails   map[int]bool // increments that were on an old primary alone
	fences  int
	tokens  int

	quorum bool // a commit is acknowledged when another node has it
	acked  int  // the last entry that was, at level quorum
	backs  int  // entries that take another back

	waitingSince Time // a local writer of the primary waits; 0: none does
	err          error
}

func newSim(seed uint64, tracing bool) *sim {
	s := &sim{rng: rand.New(rand.NewPCG(seed, 7)), tracing: tracing, epoch: 1, tails: make(map[int]bool), ops: []*simOp{nil}}
	s.quorum = seed%2 == 0
	for id := range 2 + s.rng.IntN(3) {
		s.nodes = append(s.nodes, &simNode{id: id, up: true, log: []simEntry{{epoch: 1}}})
	}
	s.reign()
	return s
}

func (s *sim) logf(format string, args ...any) {
	if s.tracing {
		s.trace = append(s.trace, fmt.Sprintf("%6d ms  ", s.now/Millisecond)+fmt.Sprintf(format, args...))
	}
}

func (s *sim) failf(format string, args ...any) {
	if s.err == nil {
		s.err = fmt.Errorf("at %d ms: "+format, append([]any{s.now / Millisecond}, args...)...)
	}
}

func (s *sim) after(d Time, fn func()) {
	s.seq++
	heap.Push(&s.queue, event{s.now + d, s.seq, fn})
}

func (s *sim) random(most Time) Time { return Time(s.rng.Int64N(int64(most))) }

// send delivers a message, or not, or twice, or late.
func (s *sim) send(fn func()) {
	n := 1
	if !s.healthy {
		switch s.rng.IntN(12) {
		case 0:
			n = 0
		case 1:
			n = 2
		}
	}
	for range n {
		d := s.random(40 * Millisecond)
		if !s.healthy && s.rng.IntN(20) == 0 {
			d += s.random(8 * Second)
		}
		s.after(d, fn)
	}
}

// ask sends a request to the primary of the moment at which it arrives at node to, and the answer back.
func (s *sim) ask(from *simNode, to int, request func(p *simNode) func()) {
	s.send(func() {
		p := s.nodes[to]
		if !p.up || to != s.primary {
			return
		}
		s.answer(from, request(p))
	})
}

// answer sends an answer, if there is one.
func (s *sim) answer(to *simNode, fn func()) {
	if fn == nil {
		return
	}
	s.send(func() {
		if to.up {
			fn()
		}
	})
}

// commit logs an increment on the primary, and calls done when it is decided: at once, or when another node has it; one
// that nobody has for long is taken back. Not called: the primary is one no more.
func (s *sim) commit(p *simNode, number int, done func(ok bool)) {
	before := p.head().Sum
	p.log = append(p.log, simEntry{epoch: s.epoch, value: before + 1, op: number})
	at, epoch, until := len(p.log)-1, s.epoch, s.now+Second
	s.logf("node %d has %d at %d", p.id, number, at)
	if !s.quorum {
		done(true)
		return
	}
	p.undecided = true
	var look func()
	look = func() {
		if !p.up || s.primary != p.id || s.epoch != epoch || !p.undecided {
			return
		}
		for _, n := range s.nodes {
			if n != p && len(n.log) > at && n.log[at] == p.log[at] {
				p.undecided, s.acked = false, at
				done(true)
				return
			}
		}
		if s.now < until {
			s.after(10*Millisecond, look)
			return
		}
		p.undecided = false
		s.backs++
		p.log = append(p.log, simEntry{epoch: epoch, value: before, back: true})
		s.logf("node %d takes %d back", p.id, number)
		done(false)
	}
	look()
}

// mayWin reports whether a node has all that was acknowledged at level quorum, as those in the lease record have.
func (s *sim) mayWin(n *simNode) bool {
	p := s.nodes[s.primary]
	return !s.quorum || len(n.log) > s.acked && n.log[s.acked] == p.log[s.acked]
}

func (n *simNode) head() Pos {
	return Pos{TXID: uint64(len(n.log)) - 1, Sum: n.log[len(n.log)-1].value}
}

// reign begins a reign of the primary of today in the epoch of today.
func (s *sim) reign() {
	p := s.nodes[s.primary]
	p.lock, p.undecided = Lock{Config: bounds}, false
	if p.noted != "" {
		if p.epoch == s.epoch {
			s.fence(p)
		}
		p.noted = ""
	}
}

func (s *sim) fence(p *simNode) {
	s.fences++
	p.log = append(p.log, simEntry{epoch: s.epoch, value: p.head().Sum})
	s.logf("node %d fences %d", p.id, p.head().TXID)
}

// endHold ends the hold of the primary.
func (s *sim) endHold(p *simNode, clean bool) {
	h, ok := p.lock.Holder()
	if !ok || p.undecided {
		return
	}
	if !clean {
		s.fence(p)
	}
	p.noted = ""
	p.lock.End(s.now, h.Token)
	s.logf("hold %s ends, clean %v", h.Token, clean)
}

func (s *sim) tick() {
	if p := s.nodes[s.primary]; p.up && p.lock.Expired(s.now) {
		s.endHold(p, false)
	}
	s.after(50*Millisecond, s.tick)
}

// replicate copies the primary's log to a node, up to some entry. What the node has beyond is a tail.
func (s *sim) replicate(n *simNode) {
	p := s.nodes[s.primary]
	if n == p || !n.up || !p.up {
		return
	}
	same := 0
	for same < len(n.log) && same < len(p.log) && n.log[same] == p.log[same] {
		same++
	}
	for _, e := range n.log[same:] {
		s.tails[e.op] = true
	}
	upto := len(p.log)
	if !s.healthy && same < upto {
		upto = same + s.rng.IntN(upto-same+1)
	}
	n.log = append([]simEntry(nil), p.log[:max(same, upto)]...)
}

// local is a writer of the primary itself: it looks whether the lock is free every 100 ms at most.
func (s *sim) local() {
	p := s.nodes[s.primary]
	wait := s.random(300 * Millisecond)
	defer func() { s.after(wait, s.local) }()
	if !p.up {
		s.waitingSince = 0
		return
	}
	if _, held := p.lock.Holder(); held {
		if s.waitingSince == 0 {
			s.waitingSince = s.now
		}
		wait = 1 + s.random(100*Millisecond)
		return
	}
	if s.waitingSince != 0 && s.now-s.waitingSince > bounds.Longest+Second {
		s.failf("the primary's own writer waited since %d ms", s.waitingSince/Millisecond)
	}
	s.waitingSince = 0
	if p.undecided {
		return
	}
	op := &simOp{outcome: Committed}
	s.ops = append(s.ops, op)
	s.commit(p, len(s.ops)-1, func(ok bool) { op.done = ok })
}

// borrow makes a node ask for the lock until it has it, or gives up.
func (s *sim) borrow(n *simNode) {
	if !n.up || n.hold != nil || n.id == s.primary {
		return
	}
	s.tokens++
	h := &simHold{token: fmt.Sprintf("%d.%d", n.id, s.tokens), asked: s.now}
	n.hold = h
	s.logf("node %d asks as %s", n.id, h.token)
	var again func()
	again = func() {
		if n.hold != h || h.lease != nil || !n.up {
			return
		}
		if s.now-h.asked > 5*Second {
			n.hold = nil
			s.ask(n, s.primary, func(p *simNode) func() { p.lock.Leave(h.token); return func() {} })
			return
		}
		sent := s.now
		s.ask(n, s.primary, func(p *simNode) func() {
			if p.undecided {
				return nil
			}
			p.lock.Enter(h.token)
			ok, _ := p.lock.Grant(s.now, h.token, s.epoch)
			if !ok {
				return func() {}
			}
			p.noted, p.epoch = h.token, s.epoch
			epoch, at := s.epoch, p.head()
			return func() {
				if n.hold == h && h.lease == nil {
					h.lease = NewLease(h.token, epoch, sent, bounds.TTL, bounds.First)
					s.logf("node %d has %s at %d", n.id, h.token, at.TXID)
					s.renew(n, h)
					s.work(n, h, at)
				}
			}
		})
		s.after(20*Millisecond+s.random(200*Millisecond), again)
	}
	again()
}

func (s *sim) renew(n *simNode, h *simHold) {
	if n.hold != h || !n.up {
		return
	}
	sent := s.now
	s.ask(n, s.primary, func(p *simNode) func() {
		err := p.lock.Renew(s.now, h.token)
		return func() {
			if err == nil {
				h.lease.Renewed(sent)
			} else {
				h.lease.Lose()
			}
		}
	})
	s.after(bounds.TTL/3, func() { s.renew(n, h) })
}

// work increments the counter, once or more often, and gives the lock back.
func (s *sim) work(n *simNode, h *simHold, at Pos) {
	if n.hold != h || !n.up {
		return
	}
	if n.head() != at && h.lease.Usable(s.now) {
		s.replicate(n)
		s.after(20*Millisecond, func() { s.work(n, h, at) })
		return
	}
	if !h.lease.Usable(s.now) || s.rng.IntN(4) == 0 {
		s.giveBack(n, h)
		return
	}
	op := &simOp{tx: Tx{Epoch: h.lease.Epoch, Pre: at, Post: Pos{at.TXID + 1, at.Sum + 1}}}
	s.ops = append(s.ops, op)
	number := len(s.ops) - 1
	s.logf("node %d sends %d of %s: %d -> %d at %d", n.id, number, h.token, at.Sum, at.Sum+1, op.tx.Post.TXID)
	s.ask(n, s.primary, func(p *simNode) func() {
		if err := p.lock.Check(s.now, h.token, s.epoch, p.head(), op.tx); p.undecided || err != nil {
			return nil // it may have come twice: only the log tells what became of it
		}
		s.commit(p, number, func(ok bool) {
			if ok {
				s.answer(n, func() { s.end(n, h, op, Committed) })
				return
			}
			if hold, held := p.lock.Holder(); held && hold.Token == h.token {
				s.endHold(p, true)
			}
			// As every refusal after others were told: who wins with it in its log has not heard of that.
			s.answer(n, func() { s.end(n, h, op, Unknown) })
		})
		return nil
	})
	s.after(300*Millisecond, func() { s.resolve(n, h, op, s.now) })
}

// resolve asks what became of an increment until somebody knows.
func (s *sim) resolve(n *simNode, h *simHold, op *simOp, since Time) {
	if op.done || n.hold != h || !n.up {
		return
	}
	if s.now-since > 30*Second {
		s.end(n, h, op, Unknown)
		return
	}
	s.ask(n, s.primary, func(p *simNode) func() {
		if p.undecided {
			return nil
		}
		head, i := p.head(), op.tx.Post.TXID
		var e Entry
		if i <= head.TXID {
			e = Entry{Min: i, Max: i, Post: p.log[i].value, Epoch: p.log[i].epoch, TakenBack: i < head.TXID && p.log[i+1].back}
		}
		out := Resolve(op.tx, head, e, i <= head.TXID)
		if hold, ok := p.lock.Holder(); ok && hold.Token == h.token && out == Void {
			s.endHold(p, false)
		}
		if out == Void && e.TakenBack {
			out = Unknown
		}
		return func() { s.end(n, h, op, out) }
	})
	s.after(200*Millisecond, func() { s.resolve(n, h, op, since) })
}

func (s *sim) end(n *simNode, h *simHold, op *simOp, out Outcome) {
	if op.done || n.hold != h {
		return
	}
	op.done, op.outcome = true, out
	s.logf("node %d: %v at %d", n.id, out, op.tx.Post.TXID)
	if out == Committed {
		s.replicate(n)
		s.after(s.random(20*Millisecond), func() { s.work(n, h, op.tx.Post) })
		return
	}
	h.lease.Lose()
	s.giveBack(n, h)
}

func (s *sim) giveBack(n *simNode, h *simHold) {
	n.hold = nil
	if h.lease.Usable(s.now) {
		s.ask(n, s.primary, func(p *simNode) func() {
			if hold, ok := p.lock.Holder(); ok && hold.Token == h.token {
				s.endHold(p, true)
			}
			return func() {}
		})
	}
}

func (s *sim) fault() {
	if s.healthy {
		return
	}
	n := s.nodes[s.rng.IntN(len(s.nodes))]
	switch s.rng.IntN(6) {
	case 0: // the primary is killed and started anew, in its epoch
		p := s.nodes[s.primary]
		p.up, p.hold = false, nil
		id := s.primary
		s.logf("primary %d is killed", id)
		s.after(s.random(3*Second), func() {
			if s.nodes[id].up = true; s.primary == id {
				s.reign()
			}
		})
	case 1: // another node takes over
		if n.up && n.id != s.primary && s.mayWin(n) {
			s.logf("node %d takes over from %d with %d of %d", n.id, s.primary, n.head().TXID, s.nodes[s.primary].head().TXID)
			s.nodes[s.primary].hold, n.hold = nil, nil
			s.primary = n.id
			s.epoch++
			s.waitingSince = 0
			s.reign()
		}
	case 2: // a holder is killed
		if n.id != s.primary {
			n.up, n.hold = false, nil
			s.logf("node %d is killed", n.id)
			s.after(s.random(5*Second), func() { n.up = true })
		}
	case 3: // a hand-over, or a disk that is full: a hold ends
		if p := s.nodes[s.primary]; p.up {
			s.endHold(p, false)
		}
	}
	s.after(s.random(4*Second), s.fault)
}

func (s *sim) live() error {
	s.tick()
	s.local()
	s.after(s.random(2*Second), s.fault)
	for _, n := range s.nodes {
		var again func()
		again = func() {
			s.borrow(n)
			s.replicate(n)
			s.after(1+s.random(400*Millisecond), again)
		}
		again()
	}
	const faults = 30 * Second
	s.after(faults, func() { s.healthy = true })
	for len(s.queue) > 0 && s.queue[0].at < faults+45*Second && s.err == nil {
		e := heap.Pop(&s.queue).(event)
		s.now = e.at
		e.fn()
		if s.now > faults {
			s.healthy = true
		}
	}
	if s.err != nil {
		return s.err
	}
	return s.check()
}

// check compares what nodes were told with the history.
func (s *sim) check() error {
	p := s.nodes[s.primary]
	if !p.up {
		return errors.New("no primary at the end")
	}
	at := make(map[int]int)
	for i, e := range p.log[1:] {
		before := p.log[i].value
		if e.back {
			if e.value != p.log[i-1].value {
				return fmt.Errorf("what takes %d back makes %d, before it was %d", i, e.value, p.log[i-1].value)
			}
			continue
		}
		if e.op == 0 {
			if e.value != before {
				return fmt.Errorf("a fence at %d changes %d to %d", i+1, before, e.value)
			}
			continue
		}
		if e.value != before+1 {
			return fmt.Errorf("increment %d at %d makes %d of %d", e.op, i+1, e.value, before)
		}
		if was, twice := at[e.op]; twice {
			return fmt.Errorf("increment %d is at %d and at %d", e.op, was, i+1)
		}
		if i+2 < len(p.log) && p.log[i+2].back {
			continue
		}
		at[e.op] = i + 1
	}
	for number, op := range s.ops {
		if op == nil || !op.done {
			continue
		}
		_, there := at[number]
		switch {
		case op.outcome == Committed && !there && (s.quorum || !s.tails[number]):
			return fmt.Errorf("increment %d was acknowledged at %d and is nowhere", number, op.tx.Post.TXID)
		case op.outcome == Void && there:
			return fmt.Errorf("increment %d was refused and is at %d", number, at[number])
		}
	}
	return nil
}

func (s *sim) count(out Outcome) int {
	n := 0
	for _, op := range s.ops {
		if op != nil && op.done && op.outcome == out {
			n++
		}
	}
	return n
}
