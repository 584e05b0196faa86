package role

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// This file is a cluster in one goroutine: real machines, simulated clocks, network, lease service and
// disks, all from one seed. What a node's program does around its machine is done here in the
// simplest way that has the same order of events.

// entry is one transaction: the count-th of the cluster, under an epoch.
type entry struct{ epoch, count uint64 }

// sim is the cluster. Its time is the true one.
type sim struct {
	rng   *rand.Rand
	now   Time
	queue queue
	order int

	nodes   []*simNode
	service simService
	cut     map[[2]string]bool // from, to: nothing gets through

	inSync bool // acknowledged only by the whole in-sync set, and nobody is forced
	quorum int  // with inSync: so many followers that the record names must have a transaction; 0: the set may be empty
	ttl    Time
	calm   bool // nothing takes long any more

	writes   uint64
	admitted []entry        // all that was ever written, in true order
	acked    map[entry]bool // what clients were told
	lost     map[entry]bool // what went to lost+found anywhere
	trace    []string       // for a failure
	tracing  bool
	err      error
}

// simService is the lease service, with true clock.
type simService struct {
	holder  string
	token   uint64
	expires Time
	record  Record
	wrote   int // number of the record's last write under this token
	down    bool
}

func (v *simService) held(now Time) bool { return v.holder != "" && now < v.expires }

// simNode is one node. What is above the line survives a crash.
type simNode struct {
	s       *sim
	id      string
	learner bool
	rate    float64 // of its clock
	offset  Time
	log     []entry
	epoch   uint64 // the highest that it knows

	life    int // counts the starts; what an earlier life began is void
	up      bool
	paused  bool
	waiting []func() // what came while it was paused
	m       *Machine
	able    bool // it reached the service lately
	token   uint64
	number  int  // counts the writes of the record
	held    bool // writers wait
	sending bool // serves followers
	follow  int  // counts the streams it began
	leader  *simNode
	joined  bool // the stream has begun with a comparison of logs
	tick    Time // of the Tick that is scheduled

	acks   map[string]int  // followers: how long their logs are, known to this primary
	sync   map[string]bool // those whose acknowledgement is waited for
	named  map[string]bool // of sync: those that the record names, whatever became of the writes that were not answered
	ackedN int
}

type simEvent struct {
	at    Time
	order int
	fn    func()
}

type queue []simEvent

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].order < q[j].order
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(simEvent)) }
func (q *queue) Pop() any {
	old := *q
	x := old[len(old)-1]
	*q = old[:len(old)-1]
	return x
}

func (s *sim) at(t Time, fn func()) {
	s.order++
	heap.Push(&s.queue, simEvent{max(t, s.now), s.order, fn})
}

// delay is a time that something takes: short, and now and then long.
func (s *sim) delay() Time {
	d := Time(s.rng.Int64N(int64(20 * Millisecond)))
	if !s.calm && s.rng.IntN(50) == 0 {
		d += Time(s.rng.Int64N(int64(2 * Second)))
	}
	return d
}

func (s *sim) logf(format string, args ...any) {
	if s.tracing {
		s.trace = append(s.trace, fmt.Sprintf("%9.3f ", float64(s.now)/1e9)+fmt.Sprintf(format, args...))
	}
}

func (s *sim) fail(format string, args ...any) {
	if s.err == nil {
		s.err = fmt.Errorf("at %.3f s: %s", float64(s.now)/1e9, fmt.Sprintf(format, args...))
	}
}

// open reports whether a message gets through now.
func (s *sim) open(from, to string) bool {
	return !s.cut[[2]string{from, to}] && (to != "lease" && from != "lease" || !s.service.down)
}

func (n *simNode) local() Time { return n.offset + Time(float64(n.s.now)*n.rate) }

// on runs fn on the node, later if it is paused, and never in another life.
func (n *simNode) on(fn func()) func() {
	life := n.life
	var run func()
	run = func() {
		switch {
		case !n.up || n.life != life:
		case n.paused:
			n.waiting = append(n.waiting, run)
		default:
			fn()
		}
	}
	return run
}

// step gives the machine an event and does what it says.
func (n *simNode) step(ev Event) {
	before := n.m.State()
	for _, a := range n.m.Step(n.local(), ev) {
		n.s.logf("%s: %T %+v -> %T %+v", n.id, ev, ev, a, a)
		n.act(a)
	}
	if n.m.State() != before {
		n.s.logf("%s: %T: %v -> %v", n.id, ev, before, n.m.State())
	}
	n.s.check()
	if due := n.m.Due(); due != Never && due != n.tick {
		n.tick = due
		at := Time(float64(due-n.offset)/n.rate) + 1
		n.s.at(at, n.on(func() {
			if n.tick == due {
				n.tick = 0
				n.step(Tick{})
			}
		}))
	}
}

// call asks the lease service: fn runs there, done runs here, with ok false if nothing came back.
func (n *simNode) call(fn func() bool, done func(ok bool)) {
	s := n.s
	answered := false
	back := n.on(func() {
		if !answered {
			answered = true
			n.able = true
			done(true)
		}
	})
	s.at(s.now+2*Second, n.on(func() {
		if !answered {
			answered = true
			n.able = false
			done(false)
		}
	}))
	s.at(s.now+s.delay(), func() {
		if s.open(n.id, "lease") && fn() && s.open("lease", n.id) {
			s.at(s.now+s.delay(), back)
		}
	})
}

func (n *simNode) fullness() Fullness {
	if len(n.log) == 0 {
		return Fullness{}
	}
	return Fullness{Epoch: n.log[len(n.log)-1].epoch, Txns: uint64(len(n.log))}
}

// setRecord writes the record if the lease holds.
func (n *simNode) setRecord(r Record, done func(ok bool)) {
	n.number++
	token, number, set := n.token, n.number, false
	for id := range n.named {
		if !slices.Contains(r.InSync, id) {
			delete(n.named, id) // it may be so from now on
		}
	}
	n.call(func() bool {
		v := &n.s.service
		// One that was overtaken by a later one is void, as with a compare-and-set.
		if v.token == token && v.held(n.s.now) && number > v.wrote {
			v.record, v.wrote, set = r, number, true
		}
		return true
	}, func(ok bool) {
		if ok && set && number == n.number && token == n.token {
			for _, id := range r.InSync {
				n.named[id] = true
			}
			n.ack()
		}
		done(ok && set)
	})
}

func (n *simNode) recordNow() Record {
	r := Record{Epoch: n.epoch, Position: n.fullness()}
	if n.s.inSync {
		for id := range n.sync {
			r.InSync = append(r.InSync, id)
		}
		slices.Sort(r.InSync)
	}
	return r
}

func (n *simNode) act(a Action) {
	s := n.s
	switch a := a.(type) {
	case Look:
		n.look()
	case Follow:
		n.startFollow(a.URL)
	case Unfollow:
		n.follow++
		s.at(s.now+s.delay(), n.on(func() { n.leader = nil; n.step(StreamEnded{}) }))
	case Acquire:
		n.acquire()
	case Renew:
		n.renew(a.Reign)
	case Prepare:
		n.epoch = max(n.epoch+1, a.Epoch)
		n.acks, n.sync, n.held, n.ackedN = make(map[string]int), map[string]bool{n.id: true}, false, len(n.log)
		n.named = make(map[string]bool)
		s.at(s.now+s.delay(), n.on(func() {
			n.setRecord(n.recordNow(), func(ok bool) { n.step(Prepared{Failed: !ok}) })
		}))
	case Admit:
		n.sending = true
	case Fence:
		n.sending = false
		s.at(s.now+s.delay(), n.on(func() { n.release(func() { n.step(Fenced{}) }) }))
	case Release:
		n.release(func() {})
	case Drain:
		n.held = true
		n.drain(a.To, s.now+3*Second)
	case Resume:
		n.held = false
	case HandOver:
		n.sending = false
		r := n.recordNow()
		r.Successor = a.To
		n.setRecord(r, func(bool) {
			n.release(func() {
				to := s.node(a.To)
				s.at(s.now+s.delay(), to.on(func() {
					if to.leader == n && s.open(n.id, to.id) {
						to.step(Handoff{})
					}
				}))
				n.step(Fenced{})
			})
		})
	case AskPrimary:
		if p := n.leader; p != nil && s.open(n.id, p.id) {
			s.at(s.now+s.delay(), p.on(func() { p.step(Demote{To: n.id}) }))
		}
	case Stopped:
		n.release(func() { n.crash() })
	}
}

func (n *simNode) release(done func()) {
	token := n.token
	n.call(func() bool {
		if v := &n.s.service; v.token == token {
			v.holder = ""
		}
		return true
	}, func(bool) { done() })
}

func (n *simNode) look() {
	s := n.s
	var seen Seen
	n.call(func() bool {
		seen = Seen{Record: s.service.record}
		if s.service.held(s.now) && s.service.holder != n.id {
			seen.Primary = s.service.holder
		}
		return true
	}, func(ok bool) {
		seen.Failed = !ok
		if !ok || seen.Primary != "" {
			seen.Own = n.fullness()
			n.step(seen)
			return
		}
		for _, p := range s.nodes {
			if p != n && s.open(n.id, p.id) && p.up && !p.paused && s.open(p.id, n.id) {
				seen.Peers = append(seen.Peers, Peer{
					ID: p.id, Candidate: !p.learner, Able: p.able, Primary: p.m.Admits(p.local()), Fullness: p.fullness(),
				})
			}
		}
		s.at(s.now+s.delay(), n.on(func() {
			seen.Own = n.fullness()
			n.step(seen)
		}))
	})
}

func (n *simNode) acquire() {
	s := n.s
	from, token := n.local(), uint64(0)
	var r Record
	n.call(func() bool {
		if v := &s.service; !v.held(s.now) {
			v.token++
			v.wrote = 0
			v.holder, v.expires, token, r = n.id, s.now+s.ttl, v.token, v.record
		}
		return true
	}, func(ok bool) {
		if !ok || token == 0 {
			n.step(NotAcquired{})
			return
		}
		n.token = token
		n.step(Acquired{From: from, TTL: s.ttl, Record: r})
	})
}

func (n *simNode) renew(reign uint64) {
	s := n.s
	from, token, held, r := n.local(), n.token, false, n.recordNow()
	n.call(func() bool {
		if v := &s.service; v.token == token && v.held(s.now) {
			v.expires, held = s.now+s.ttl, true
			if v.record.Epoch == r.Epoch {
				v.record.Position = r.Position
			}
		}
		return true
	}, func(ok bool) {
		if ok && held {
			n.step(Renewed{Reign: reign, From: from})
		} else {
			n.step(NotRenewed{Reign: reign, Lost: ok})
		}
	})
}

// drain waits until the successor has everything.
func (n *simNode) drain(to string, until Time) {
	s := n.s
	best := ""
	for _, f := range s.nodes {
		if f.leader == n && f.joined && !f.learner && (to == "" || to == f.id) && n.acks[f.id] == len(n.log) && (!s.inSync || n.sync[f.id]) {
			best = f.id
		}
	}
	if best != "" || s.now >= until {
		n.step(Drained{To: best})
		return
	}
	s.at(s.now+20*Millisecond, n.on(func() { n.drain(to, until) }))
}

// startFollow begins a stream; it runs until it breaks or the primary is none any more.
func (n *simNode) startFollow(id string) {
	n.follow++
	n.leader, n.joined = n.s.node(id), false
	n.stream(n.follow, n.s.now)
}

func (n *simNode) stream(number int, heard Time) {
	s, p := n.s, n.leader
	end := func() {
		n.follow++
		n.leader = nil
		n.step(StreamEnded{})
	}
	again := func(heard Time) {
		s.at(s.now+40*Millisecond+s.delay(), n.on(func() {
			if n.follow == number {
				n.stream(number, heard)
			}
		}))
	}
	if !s.open(n.id, p.id) || !p.up || p.paused || !s.open(p.id, n.id) {
		if p.paused || p.up {
			if s.now-heard < 5*Second {
				again(heard)
				return
			}
		}
		end()
		return
	}
	if !p.sending || p.epoch < n.epoch {
		end()
		return
	}
	// What the primary has now arrives later; it is void if the stream has ended by then.
	log, epoch, life := p.log, p.epoch, p.life
	s.at(s.now+s.delay(), n.on(func() {
		if n.follow != number || !s.open(p.id, n.id) {
			again(heard)
			return
		}
		n.epoch = max(n.epoch, epoch)
		n.receive(log)
		size := len(n.log)
		s.at(s.now+s.delay(), p.on(func() {
			if p.life == life && p.sending && p.epoch == epoch && n.follow == number && s.open(n.id, p.id) {
				p.acknowledged(n.id, size)
			}
		}))
		if s.rng.IntN(20) == 0 {
			n.step(CaughtUp{})
		}
		again(s.now)
	}))
}

// receive takes the primary's log. What is here and not there was never the cluster's.
func (n *simNode) receive(log []entry) {
	same := 0
	if last := len(n.log) - 1; last >= 0 && last < len(log) && log[last] == n.log[last] {
		same = last + 1 // what is before one and the same transaction is the same
	}
	for same < min(len(log), len(n.log)) && log[same] == n.log[same] {
		same++
	}
	if same < len(n.log) && (!n.joined || same < len(log)) {
		for _, e := range n.log[same:] {
			n.s.logf("%s: lost %v", n.id, e)
			n.s.lost[e] = true
		}
		n.log = slices.Clone(n.log[:same]) // others may still look at what was there
	}
	n.joined = true
	if len(log) > len(n.log) {
		n.log = append(n.log, log[len(n.log):]...)
	}
}

// acknowledged notes what a follower has. One that has all joins the in-sync set.
func (n *simNode) acknowledged(id string, size int) {
	n.acks[id] = size
	if f := n.s.node(id); n.s.inSync && !n.sync[id] && size == len(n.log) && !f.learner && n.m.Admits(n.local()) {
		n.sync[id] = true // waited for from now on, whether the record comes to name it or not
		n.setRecord(n.recordNow(), func(bool) {})
	}
	n.ack()
}

// ack tells clients what everybody who is waited for has.
func (n *simNode) ack() {
	size := len(n.log)
	if n.s.inSync {
		for id := range n.sync {
			if id != n.id {
				size = min(size, n.acks[id])
			}
		}
		size = min(size, n.onQuorum())
	}
	for ; n.ackedN < size; n.ackedN++ {
		e := n.log[n.ackedN]
		n.s.acked[e] = true
		if have := n.s.having(e, n.ackedN); n.s.inSync && have < n.s.quorum+1 {
			n.s.fail("%s acknowledges %v, which %d nodes have, want %d", n.id, e, have, n.s.quorum+1)
		}
	}
}

// onQuorum is how much of the log as many followers have as the level asks for, of those that the record names.
func (n *simNode) onQuorum() int {
	if n.s.quorum == 0 {
		return len(n.log)
	}
	var sizes []int
	for id := range n.named {
		if id != n.id {
			sizes = append(sizes, n.acks[id])
		}
	}
	if len(sizes) < n.s.quorum {
		return 0
	}
	slices.Sort(sizes)
	return sizes[len(sizes)-n.s.quorum]
}

// having counts the nodes that have a transaction, which is in logs at the index at.
func (s *sim) having(e entry, at int) (have int) {
	for _, n := range s.nodes {
		if len(n.log) > at && n.log[at] == e {
			have++
		}
	}
	return have
}

// shrink takes followers that are away out of the in-sync set, once the record does not name them.
func (n *simNode) shrink() {
	if !n.s.inSync || !n.m.Admits(n.local()) || n.held {
		return
	}
	old := n.sync
	kept := map[string]bool{n.id: true}
	for id := range old {
		if n.s.node(id).leader == n {
			kept[id] = true
		}
	}
	if len(kept) == len(old) || len(kept)-1 < n.s.quorum {
		return
	}
	r := n.recordNow()
	r.InSync = nil
	for id := range kept {
		r.InSync = append(r.InSync, id)
	}
	slices.Sort(r.InSync)
	n.setRecord(r, func(ok bool) {
		if ok && len(n.sync) == len(old) && n.m.Admits(n.local()) {
			n.sync = kept
			n.ack()
		}
	})
}

// write is a client's attempt at a node.
func (n *simNode) write() {
	if !n.up || n.paused || n.held || !n.m.Admits(n.local()) {
		return
	}
	n.s.writes++
	e := entry{n.epoch, n.s.writes}
	n.log = append(n.log, e)
	n.s.admitted = append(n.s.admitted, e)
	if last := len(n.s.admitted) - 2; last >= 0 && n.s.admitted[last].epoch > e.epoch {
		n.s.fail("%s writes in epoch %d after a write in epoch %d", n.id, e.epoch, n.s.admitted[last].epoch)
	}
	n.ack()
}

func (n *simNode) start() {
	n.life++
	n.up, n.paused, n.waiting = true, false, nil
	n.m = New(Config{NodeID: n.id, Candidate: !n.learner, Retry: Second, DemoteDelay: 3 * Second, Promote: n.s.rng.IntN(8) == 0})
	n.able, n.held, n.sending, n.leader, n.tick = false, false, false, nil, 0
	n.follow++
	n.step(Tick{})
}

func (n *simNode) crash() { n.up, n.sending, n.leader = false, false, nil }

func (n *simNode) pause() { n.paused = true }

func (n *simNode) wake() {
	waiting := n.waiting
	n.paused, n.waiting = false, nil
	for _, fn := range waiting {
		fn()
	}
}

func (s *sim) node(id string) *simNode {
	for _, n := range s.nodes {
		if n.id == id {
			return n
		}
	}
	return nil
}

// check holds the first invariant: at no time do two nodes admit writes.
func (s *sim) check() {
	var who []string
	for _, n := range s.nodes {
		if n.up && !n.paused && n.m.Admits(n.local()) {
			who = append(who, n.id)
		}
	}
	if len(who) > 1 {
		s.fail("%s admit writes at once", strings.Join(who, " and "))
	}
}

func (s *sim) run(until Time) {
	for len(s.queue) > 0 && s.err == nil && s.queue[0].at <= until {
		e := heap.Pop(&s.queue).(simEvent)
		s.now = e.at
		e.fn()
	}
	s.now = max(s.now, until)
}
