package role

import "slices"

// Machine is the state of one node. It is for one goroutine.
type Machine struct {
	cfg   Config
	state State
	why   string // a candidate's reason not to ask for the lease
	out   []Action

	// lease is this node's own in Primary and Draining, and in no other state.
	lease struct{ from, ttl Time }
	reign uint64 // counts the leases

	// admitted is set from Admit to the next Fence, HandOver or Release. Writers may be in only while
	// it is set and the time is before fenceAt.
	admitted bool

	// What is under way: each is answered by an event.
	looking, following, acquiring, renewing, preparing, draining, fencing bool

	lookAt  Time // next Look; Never while something else leads on
	renewAt Time // next Renew; meaningless without a lease

	seen        Record // at the last Look
	primary     string // URL of the last primary that was seen, to be tried when the service is away
	unsure      bool   // it was followed without the service's word
	followAt    Time   // not to be followed again before this
	vacantSince Time   // since when nobody was seen to have the lease; Never: somebody has it
	notBefore   Time   // no candidate before this

	chosenUntil Time // the lease was handed over to this node
	forceUntil  Time // an operator wants this node, however full it is
	wished      bool // an operator wants this node, and no primary is known yet
	asked       bool // AskPrimary was emitted for Config.Promote

	stopping bool
	stopped  bool
}

// New returns the machine of a node that has just started. The first event makes it look around.
func New(cfg Config) *Machine {
	return &Machine{cfg: cfg, vacantSince: Never}
}

// State returns the role.
func (m *Machine) State() State { return m.state }

// Why returns why a candidate does not ask for the lease; "" if there is no reason.
func (m *Machine) Why() string { return m.why }

// Admits reports whether writers may be in at now.
func (m *Machine) Admits(now Time) bool { return m.admitted && now < m.fenceAt() }

// Following reports whether this node follows a primary, or tries to.
func (m *Machine) Following() bool { return m.following }

// Fencing reports whether writers are being shut out: Fence or HandOver has not been answered.
func (m *Machine) Fencing() bool { return m.fencing }

// FenceAt returns when writers must be out; 0 without a lease.
func (m *Machine) FenceAt() Time {
	if !m.holds() {
		return 0
	}
	return m.fenceAt()
}

func (m *Machine) holds() bool { return m.state == Primary || m.state == Draining }

func (m *Machine) fenceAt() Time { return m.lease.from + m.lease.ttl - Margin(m.lease.ttl) }

// Due returns when the next Tick must come; Never if only an event leads on.
func (m *Machine) Due() Time {
	switch {
	case m.stopped:
		return Never
	case m.holds() && m.renewing:
		return m.fenceAt()
	case m.holds():
		return min(m.fenceAt(), m.renewAt)
	case m.busy():
		return Never
	}
	return m.lookAt
}

// busy reports whether a node without the lease waits for an answer.
func (m *Machine) busy() bool {
	return m.looking || m.following || m.acquiring || m.fencing || m.preparing || m.draining
}

// Step takes an event that came at now and returns what is to be done, in this order. Time does not go
// back from one call to the next.
func (m *Machine) Step(now Time, ev Event) []Action {
	m.out = nil
	// The lease is over when its time is over, whatever has happened at that moment.
	if r, ok := ev.(Renewed); ok && m.holds() && r.Reign == m.reign {
		m.renewed(r)
	}
	if m.holds() && now >= m.fenceAt() {
		m.fence(now)
	}
	m.take(now, ev)
	m.tick(now)
	return m.out
}

func (m *Machine) emit(a Action) { m.out = append(m.out, a) }

func (m *Machine) take(now Time, ev Event) {
	switch ev := ev.(type) {
	case Seen:
		m.looking = false
		if !m.stopping && !m.holds() && !m.busy() {
			m.look(now, ev)
		}
	case StreamEnded:
		m.following, m.followAt = false, now+m.cfg.Retry
		if m.lookAt == Never {
			m.lookAt = now + min(Turn, m.cfg.Retry)
		}
	case Vacant:
		if !m.holds() {
			m.lookAt = now
		}
		if m.following {
			m.emit(Unfollow{})
		}
	case CaughtUp:
		if m.cfg.Promote && m.cfg.Candidate && !m.asked && m.following && now >= m.notBefore {
			m.asked = true
			m.emit(AskPrimary{URL: m.primary})
		}
	case Acquired:
		m.acquired(now, ev)
	case NotAcquired:
		m.acquiring = false
		m.lookAt = now + Turn
		if now < m.chosenUntil {
			m.lookAt = now + Turn/5
		}
	case NotRenewed:
		m.notRenewed(now, ev)
	case Resumed:
		m.resumed(now, ev)
	case Prepared:
		m.prepared(now, ev)
	case Fenced:
		m.fencing = false
		m.lookAt = now
	case Drained:
		m.drained(now, ev)
	case Handoff:
		m.choose(now)
	case Promote:
		m.promote(now, ev)
	case Demote:
		if m.state == Primary && m.admitted && ev.To != m.cfg.NodeID {
			m.drain(ev.To)
		}
	case Stop:
		m.stop()
	}
}

// tick does what is due.
func (m *Machine) tick(now Time) {
	switch {
	case m.stopped:
	case m.stopping:
		if m.holds() {
			m.renew(now)
		} else if !m.busy() {
			m.stopped = true
			m.emit(Stopped{})
		}
	case m.holds():
		m.renew(now)
	case m.busy() || now < m.lookAt:
	case now < m.chosenUntil:
		// Everything is here, and the lease is free or about to be: no time to look around.
		m.state = Candidate
		m.acquire()
	default:
		m.looking, m.lookAt = true, Never
		m.emit(Look{})
	}
}

func (m *Machine) acquire() {
	m.acquiring, m.lookAt = true, Never
	m.emit(Acquire{})
}

func (m *Machine) renew(now Time) {
	if !m.renewing && now >= m.renewAt {
		m.renewing = true
		m.emit(Renew{Reign: m.reign})
	}
}

func (m *Machine) renewed(ev Renewed) {
	m.renewing = false
	m.lease.from = max(m.lease.from, ev.From)
	m.renewAt = m.lease.from + m.lease.ttl/3
}

func (m *Machine) notRenewed(now Time, ev NotRenewed) {
	if !m.holds() || ev.Reign != m.reign {
		return
	}
	m.renewing, m.renewAt = false, now+min(m.lease.ttl/10, Second)
	if ev.Lost {
		m.fence(now)
	}
}

// look goes on from what was seen.
func (m *Machine) look(now Time, ev Seen) {
	m.why = ""
	m.unsure = m.unsure && ev.Failed
	switch {
	case ev.Failed && m.primary != "" && !m.unsure:
		m.follow(m.primary) // the service is away; the primary may be well
		m.unsure = true     // but the next time the service is waited for
	case ev.Failed:
		m.state, m.lookAt = Follower, now+m.cfg.Retry
		m.why = "the lease service does not answer"
	case ev.Primary != "" && ev.Primary == m.primary && now < m.followAt:
		// It was lost a moment ago: its lease is looked at more often than it is called.
		m.state, m.vacantSince, m.lookAt = Follower, Never, now+Turn
	case ev.Primary != "":
		m.vacantSince = Never
		m.follow(ev.Primary)
	case !m.cfg.Candidate:
		m.state, m.lookAt = Follower, now+m.cfg.Retry
		m.why = "there is no primary, and this node is no candidate"
	default:
		m.state, m.seen = Candidate, ev.Record
		m.vacantSince = min(m.vacantSince, now)
		wait, why := m.turn(now, ev)
		if wait > 0 {
			m.lookAt, m.why = now+wait, why
			return
		}
		m.acquire()
	}
}

func (m *Machine) follow(url string) {
	m.state, m.primary, m.following, m.lookAt = Follower, url, true, Never
	m.emit(Follow{URL: url})
	if m.wished {
		m.wished = false
		m.emit(AskPrimary{URL: m.primary})
	}
}

// turn returns how long this node waits before it looks again, and why; 0: the lease is its to ask for.
func (m *Machine) turn(now Time, ev Seen) (wait Time, why string) {
	r, waited := ev.Record, now-m.vacantSince
	switch {
	case now < m.forceUntil:
		return 0, ""
	case now < m.notBefore:
		// It looks again long before: whoever has the lease next is to be followed at once.
		return min(m.notBefore-now, Turn), "it has handed over a moment ago"
	case ev.Own.Epoch < r.Position.Epoch:
		return max(m.cfg.Retry, Turn), "it has nothing of the last primary's reign: `litefs promote -force` makes it the primary all the same"
	case len(r.InSync) > 0 && !slices.Contains(r.InSync, m.cfg.NodeID):
		return max(m.cfg.Retry, Turn), "it is not one of those that have every acknowledged transaction: " + "`litefs promote -force` makes it the primary all the same"
	case r.Successor == m.cfg.NodeID:
		return 0, ""
	case r.Successor != "" && waited < Yield:
		return Turn, "another node is the successor"
	}
	rank := Time(0)
	for _, p := range ev.Peers {
		if p.ID == m.cfg.NodeID || !p.Candidate && !p.Primary || len(r.InSync) > 0 && !slices.Contains(r.InSync, p.ID) {
			continue
		}
		switch c := p.Fullness.Compare(ev.Own); {
		case p.Primary && waited < Yield:
			return Turn, "node " + p.ID + " takes itself for the primary"
		case !p.Candidate:
		case c > 0 && (p.Able || waited < Yield):
			return Turn, "node " + p.ID + " has more transactions"
		case c == 0 && p.ID < m.cfg.NodeID:
			rank++
		}
	}
	if first := min(rank*Turn, Yield); waited < first {
		return first - waited, "equally full nodes come first"
	}
	return 0, ""
}

func (m *Machine) acquired(now Time, ev Acquired) {
	if !m.acquiring {
		return
	}
	m.acquiring = false
	// Somebody may have reigned since this node looked: then it may not be the fullest any more.
	known := ev.Record.Epoch == m.seen.Epoch || ev.Record.Successor == m.cfg.NodeID || now < m.forceUntil
	m.lease.from, m.lease.ttl = ev.From, ev.TTL
	if m.stopping || !known || now >= m.fenceAt() {
		m.lookAt, m.chosenUntil = now, 0
		m.emit(Release{})
		return
	}
	m.state, m.vacantSince, m.chosenUntil, m.forceUntil, m.wished = Primary, Never, 0, 0, false
	m.reign++
	m.admitted, m.renewing, m.preparing = false, false, true
	m.renewAt = ev.From + ev.TTL/3
	m.emit(Prepare{Epoch: ev.Record.Epoch + 1})
}

func (m *Machine) resumed(now Time, ev Resumed) {
	if m.holds() || m.busy() {
		return
	}
	m.state, m.admitted, m.vacantSince = Primary, true, Never
	m.lease.from, m.lease.ttl = ev.From, ev.TTL
	m.reign++
	m.renewAt = now
	if now >= m.fenceAt() {
		m.fence(now)
	}
}

func (m *Machine) prepared(now Time, ev Prepared) {
	if !m.preparing {
		return
	}
	m.preparing = false
	switch {
	case m.state != Primary || m.admitted:
	case ev.Failed:
		m.fence(now)
		m.notBefore = now + m.cfg.DemoteDelay // let another node have it
	case m.stopping:
		m.fence(now)
	default:
		m.admitted = true
		m.emit(Admit{})
	}
}

// fence ends a reign that has not been handed over.
func (m *Machine) fence(now Time) {
	m.admitted, m.fencing, m.renewing = false, true, false
	m.state, m.lookAt, m.vacantSince = Follower, now, Never
	m.primary = ""
	m.emit(Fence{})
}

func (m *Machine) drain(to string) {
	m.state, m.draining = Draining, true
	m.emit(Drain{To: to})
}

func (m *Machine) drained(now Time, ev Drained) {
	if !m.draining {
		return
	}
	m.draining = false
	switch {
	case m.state != Draining: // fenced meanwhile
	case ev.To != "":
		m.admitted, m.fencing, m.renewing = false, true, false
		m.state, m.lookAt, m.vacantSince = Follower, now, Never
		m.primary = ""
		m.notBefore = now + m.cfg.DemoteDelay
		m.asked = true // the operator has the last word, until the next start
		m.emit(HandOver(ev))
	case m.stopping:
		// The lease stays until the files are closed: writers may still be in.
		m.state, m.stopped = Follower, true
		m.emit(Stopped{})
	default:
		m.state = Primary
		m.emit(Resume{})
	}
}

// choose makes this node ask for the lease at once.
func (m *Machine) choose(now Time) {
	if m.holds() || m.stopping || !m.cfg.Candidate {
		return
	}
	m.chosenUntil, m.notBefore, m.lookAt = now+Yield, 0, now
	if m.following {
		m.emit(Unfollow{})
	}
}

func (m *Machine) promote(now Time, ev Promote) {
	if m.holds() || m.stopping || !m.cfg.Candidate {
		return
	}
	m.notBefore = 0
	if ev.Force {
		m.forceUntil = now + forceFor
	}
	if m.following {
		m.emit(AskPrimary{URL: m.primary})
		return
	}
	m.wished, m.lookAt = true, now
}

func (m *Machine) stop() {
	if m.stopping {
		return
	}
	m.stopping = true
	if m.following {
		m.emit(Unfollow{})
	}
	if m.state == Primary && m.admitted {
		m.drain("")
	}
}
