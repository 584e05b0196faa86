package litefs

import (
	"time"

	"github.com/litefs/litefs/internal/role"
)

// Watchdog is a process that outlives this one and its mount with it. Applications go on without this process then: a
// daemon that is stopped, or hangs, past its lease would leave writers in that nobody fences. So the watchdog ends it,
// and the next one, which has no lease, takes the locks.
type Watchdog interface {
	// SetDeadline has this process killed when d has passed and no other deadline was set meanwhile. d <= 0: there is none.
	SetDeadline(d time.Duration) error

	// DeadlineBefore is how much is left of the deadline of the process before this one, which has died. ok is false if
	// there was none.
	DeadlineBefore() (left time.Duration, ok bool)
}

// watchGrace is how long after the moment at which writers must be out the role may take to say that it has seen it.
const watchGrace = role.Time(100 * time.Millisecond)

// watchState is what the watchdog was told. It belongs to the role's loop.
type watchState struct {
	until    role.Time // 0: no deadline
	fencedBy role.Time // until when a fence that is under way may take; 0: none is
}

// keepWatch tells the watchdog until when this process is trusted to move by itself. It stands before what lets writers
// in.
func (l *roleLoop) keepWatch() {
	if l.s.Watchdog == nil {
		return
	}
	until := l.m.FenceAt()
	switch {
	case until != 0:
		until, l.watch.fencedBy = until+watchGrace, 0
	case !l.m.Fencing() && !l.retiring.Load():
		l.watch.fencedBy = 0
	default: // writers may be in until the locks are taken
		if l.watch.fencedBy == 0 {
			l.watch.fencedBy = bootNow() + role.Time(fenceTimeout+releaseTimeout)
		}
		until = l.watch.fencedBy
	}
	l.watchUntil(until)
}

func (l *roleLoop) watchUntil(until role.Time) {
	if l.s.Watchdog == nil || until == l.watch.until {
		return
	}
	var d time.Duration
	if until != 0 {
		d = max(1, time.Duration(until-bootNow()))
	}
	if err := l.s.Watchdog.SetDeadline(d); err != nil {
		l.s.Logger.Error("the guardian does not hear of the lease: it cannot end this process when that runs out", "error", err)
		return
	}
	l.watch.until = until
}
