package litefs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/internal/role"
)

// roleLoop carries out what the state machine of package role decides. One
// goroutine owns the machine; what takes time runs beside it and comes back as
// an event.
type roleLoop struct {
	s   *Store
	reg Registry
	m   *role.Machine

	events chan role.Event
	work   chan func() // changes of the databases' roles, one at a time, in order

	ctx    context.Context // ends with the store
	cancel context.CancelFunc
	wg     sync.WaitGroup

	settled chan struct{} // closed when it is known for the first time what this node is
	stopped chan struct{} // closed when the machine says so

	// For the loop's goroutine.
	cutWork  context.CancelFunc // ends the change under way, for one that comes after it
	unfollow context.CancelFunc
	unawait  context.CancelFunc // ends AwaitVacant; nil when it is not running

	// retiring: a node without the lease takes its locks for the first time.
	retiring atomic.Bool
	watch    watchState

	// guarded is set once the lease service has said that the lease is this
	// cluster's. Nothing that it says of a primary counts before.
	guarded atomic.Bool

	vacant atomic.Bool  // AwaitVacant has returned nil since the last Acquire, and may do so again
	asking atomic.Bool  // askPrimary is running
	able   atomic.Int64 // bootNow at the last answer of the lease service

	mu    sync.Mutex
	lease FencedLease // nil when none is held
}

// Deadlines of what the loop starts.
const (
	lookTimeout    = 5 * time.Second
	vacantTimeout  = 500 * time.Millisecond // of a look at a lease that was free a moment ago
	acquireTimeout = 10 * time.Second
	prepareTimeout = 30 * time.Second
	fenceTimeout   = 10 * time.Second
	releaseTimeout = 3 * time.Second

	// ableFor is how long an answer of the lease service counts.
	ableFor = role.Time(5 * time.Second)
)

// bootNow is a clock that setting the time does not move, and that goes on
// while the machine sleeps.
func bootNow() role.Time {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		// Linux has it since 2.6.39: it fails for a bad pointer only.
		return role.Time(time.Now().UnixNano())
	}
	return role.Time(ts.Nano())
}

func newRoleLoop(s *Store, reg Registry) *roleLoop {
	l := &roleLoop{
		s: s, reg: reg,
		m: role.New(role.Config{
			NodeID: s.nodeID, Candidate: s.MayLead, Promote: s.Promote,
			Retry: role.Time(s.ReconnectDelay), DemoteDelay: role.Time(s.DemoteDelay),
		}),
		events:  make(chan role.Event),
		work:    make(chan func(), 16),
		settled: make(chan struct{}),
		stopped: make(chan struct{}),
	}
	l.ctx, l.cancel = context.WithCancel(s.ctx)
	return l
}

// run is the loop's goroutine.
func (l *roleLoop) run() {
	l.wg.Go(func() {
		for {
			select {
			case <-l.ctx.Done():
				return
			case fn := <-l.work:
				fn()
			}
		}
	})
	timer := time.NewTimer(0)
	defer l.wg.Wait()
	defer l.cancel()
	defer timer.Stop()
	var settle sync.Once
	ev := l.first()
	for {
		if _, ok := ev.(role.Vacant); ok {
			l.unawait = nil
		}
		before, why := l.m.State(), l.m.Why()
		actions := l.m.Step(bootNow(), ev)
		fenceAt := int64(l.m.FenceAt())
		if fenceAt != 0 {
			l.s.fenceAt.Store(fenceAt)
		}
		if st := l.m.State(); st != before {
			l.s.Logger.Info("role", "state", st.String(), "was", before.String())
		}
		if now := l.m.Why(); now != why && now != "" {
			l.s.Logger.Info("this node does not ask for the lease", "reason", now)
		}
		l.s.stateOf.Store(&roleState{state: l.m.State(), why: l.m.Why()})
		l.keepWatch()
		for _, a := range actions {
			l.act(a)
		}
		if fenceAt == 0 && Role(l.s.role.Load()) != RolePrimary {
			l.s.fenceAt.Store(0) // not before the role has changed: 0 is no limit
		}
		if l.m.Admits(bootNow()) || l.m.Why() != "" || l.m.Following() {
			settle.Do(func() { close(l.settled) })
		}
		const longest = time.Hour
		timer.Reset(min(max(0, time.Duration(l.m.Due()-bootNow())), longest))
		select {
		case <-l.ctx.Done():
			return
		case ev = <-l.events:
		case <-timer.C:
			ev = role.Tick{}
		}
	}
}

// first is what the machine is told before anything else.
func (l *roleLoop) first() role.Event {
	if lease := l.held(); lease != nil {
		return role.Resumed{From: heldFrom(lease), TTL: role.Time(lease.TTL())}
	}
	// Nobody writes here until this node has the lease. To wait for a primary with that would leave those in who write
	// while there is none.
	l.retiring.Store(true)
	l.change(fenceTimeout, func(ctx context.Context) {
		l.retire(ctx)
		l.retiring.Store(false)
		l.send(role.Tick{})
	})
	return role.Tick{}
}

// send gives the loop an event. It waits until the loop takes it, or has ended.
func (l *roleLoop) send(ev role.Event) {
	select {
	case l.events <- ev:
	case <-l.ctx.Done():
	}
}

// start runs fn beside the loop.
func (l *roleLoop) start(fn func()) { l.wg.Go(fn) }

// change runs fn after the changes before it, with a context that the next
// change ends.
func (l *roleLoop) change(timeout time.Duration, fn func(ctx context.Context)) {
	if l.cutWork != nil {
		l.cutWork()
	}
	ctx, cancel := context.WithCancel(l.ctx)
	l.cutWork = cancel
	run := func() {
		defer cancel()
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		fn(ctx)
	}
	select {
	case l.work <- run:
	case <-l.ctx.Done():
		cancel()
	}
}

func (l *roleLoop) act(a role.Action) {
	s := l.s
	switch a := a.(type) {
	case role.Look:
		l.awaitVacant()
		l.start(func() { l.send(l.look()) })
	case role.Follow:
		l.awaitVacant()
		l.follow(a.URL)
	case role.Unfollow:
		l.unfollow()
	case role.Acquire:
		l.start(func() { l.send(l.acquire()) })
	case role.Renew:
		until := l.m.FenceAt()
		l.start(func() { l.send(l.renew(a.Reign, until)) })
	case role.Prepare:
		if l.unawait != nil {
			l.unawait()
			l.unawait = nil
		}
		l.change(prepareTimeout, func(ctx context.Context) {
			err := l.prepare(ctx, a.Epoch)
			if err != nil {
				s.Logger.Error("this node has the lease and cannot become the primary: it gives it back", "error", err)
			}
			l.send(role.Prepared{Failed: err != nil})
		})
	case role.Admit:
		s.setRole(RolePrimary, s.Leaser.AdvertiseURL())
		s.syncOnce.Do(func() { close(s.synced) })
		s.Logger.Info("this node is the primary", "epoch", s.Epoch(), "url", s.PrimaryURL())
		l.change(fenceTimeout, s.admitAll)
	case role.Fence:
		s.setRole(RoleReplica, "")
		s.Logger.Warn("this node is no primary any more: databases are read-only here")
		l.change(fenceTimeout, func(ctx context.Context) {
			l.retire(ctx)
			l.release()
			l.send(role.Fenced{})
		})
	case role.Release:
		l.start(l.release)
	case role.Drain:
		l.change(drainTimeout, func(ctx context.Context) {
			to, err := s.drain(ctx, a.To)
			if err != nil {
				s.Logger.Warn("not handed over", "to", a.To, "reason", err)
				s.notDrained.Store(&err)
				s.roleChanged()
			}
			l.send(role.Drained{To: to})
		})
	case role.Resume:
		l.change(fenceTimeout, s.admitAll)
	case role.HandOver:
		s.handing.Store(true)
		s.setRole(RoleReplica, "")
		l.change(fenceTimeout, func(ctx context.Context) {
			l.handOver(ctx, a.To)
			l.send(role.Fenced{})
		})
	case role.AskPrimary:
		l.start(func() { l.askPrimary(a.URL) })
	case role.Stopped:
		close(l.stopped)
	}
}

// awaitVacant lets the lease service tell when nobody has the lease any more.
func (l *roleLoop) awaitVacant() {
	if l.unawait != nil || !l.s.MayLead || l.vacant.Load() {
		return
	}
	ctx, cancel := context.WithCancel(l.ctx)
	l.unawait = cancel
	l.start(func() {
		defer cancel()
		for ctx.Err() == nil {
			err := l.reg.AwaitVacant(ctx)
			if err == nil {
				l.vacant.Store(true)
				l.send(role.Vacant{})
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(l.s.ReconnectDelay):
			}
		}
	})
}

// look asks who has the lease, and, if nobody has, everybody how full they are.
func (l *roleLoop) look() role.Event {
	ctx, cancel := context.WithTimeout(l.ctx, lookTimeout)
	defer cancel()
	s := l.s
	seen := role.Seen{Own: fullnessOf(s.Fullness())}
	url, err := "", l.guard(ctx)
	if err == nil {
		url, err = s.Leaser.PrimaryURL(ctx)
	}
	if errors.Is(err, ErrNoPrimary) || err == nil && (url == s.Leaser.AdvertiseURL() || l.stillVacant(ctx)) {
		url, err = "", nil
	}
	if err == nil && url == "" {
		seen.Record, err = l.record(ctx)
	}
	if err != nil {
		if l.ctx.Err() == nil {
			s.Logger.Warn("the lease service does not answer", "error", err)
		}
		seen.Failed = true
		return seen
	}
	l.able.Store(int64(bootNow()))
	if seen.Primary = url; url == "" {
		seen.Peers = s.askPeers(ctx)
		seen.Own = fullnessOf(s.Fullness())
	}
	return seen
}

// guard makes sure that the lease is this cluster's, if that could not be done at
// the start.
func (l *roleLoop) guard(ctx context.Context) error {
	if l.guarded.Load() {
		return nil
	}
	if err := l.s.guardCluster(ctx, l.reg); err != nil {
		return err
	}
	l.guarded.Store(true)
	return nil
}

// stillVacant reports whether the holder that the service names has lost the
// lease: it was so before, and is so now.
func (l *roleLoop) stillVacant(ctx context.Context) bool {
	if !l.vacant.Load() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, vacantTimeout)
	defer cancel()
	if l.reg.AwaitVacant(ctx) == nil {
		return true
	}
	l.vacant.Store(false) // somebody has it now
	return false
}

func (l *roleLoop) record(ctx context.Context) (role.Record, error) {
	r, err := l.reg.Record(ctx)
	if errors.Is(err, ErrNoRecord) {
		return role.Record{}, nil
	}
	if err != nil {
		return role.Record{}, err
	}
	l.s.noteNode(NodePosition{ID: r.NodeID, URL: r.URL})
	return role.Record{Epoch: r.Epoch, Position: fullnessOf(r.Position), InSync: r.InSync, Successor: r.Successor}, nil
}

func fullnessOf(f Fullness) role.Fullness { return role.Fullness{Epoch: f.Epoch, Txns: f.Txns} }

// acquire asks for the lease.
func (l *roleLoop) acquire() role.Event {
	ctx, cancel := context.WithTimeout(l.ctx, acquireTimeout)
	defer cancel()
	lease, err := l.s.Leaser.Acquire(ctx)
	l.vacant.Store(false)
	if err != nil {
		if !errors.Is(err, ErrPrimaryExists) && l.ctx.Err() == nil {
			l.s.Logger.Warn("cannot acquire the lease", "error", err)
		}
		return role.NotAcquired{}
	}
	fenced, ok := lease.(FencedLease)
	if !ok {
		l.s.Logger.Error("the lease has no fencing token", "lease", fmt.Sprint(l.s.Leaser))
		l.close(lease)
		return role.NotAcquired{}
	}
	r, err := l.record(ctx)
	if err != nil {
		l.s.Logger.Warn("the record beside the lease cannot be read: the lease is given back", "error", err)
		l.close(lease)
		return role.NotAcquired{}
	}
	l.mu.Lock()
	l.lease = fenced
	l.mu.Unlock()
	return role.Acquired{From: heldFrom(fenced), TTL: role.Time(fenced.TTL()), Record: r}
}

// heldFrom is the moment from which the lease's TTL counts.
func heldFrom(lease FencedLease) role.Time {
	return bootNow() + role.Time(lease.Remaining()-lease.TTL())
}

func (l *roleLoop) held() FencedLease {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lease
}

// renew renews the lease, and says in the record how full this node is.
func (l *roleLoop) renew(reign uint64, until role.Time) role.Event {
	ctx, cancel := context.WithTimeout(l.ctx, time.Duration(until-bootNow()))
	defer cancel()
	lease := l.held()
	if lease == nil {
		return role.NotRenewed{Reign: reign, Lost: true}
	}
	err := lease.Renew(ctx)
	if err == nil {
		err = l.s.writeRecord(ctx, lease, "")
	}
	if err != nil {
		if l.ctx.Err() == nil {
			l.s.Logger.Warn("the lease was not renewed", "left", lease.Remaining(), "error", err)
		}
		return role.NotRenewed{Reign: reign, Lost: errors.Is(err, ErrLeaseExpired)}
	}
	l.able.Store(int64(bootNow()))
	return role.Renewed{Reign: reign, From: heldFrom(lease)}
}

// release gives the lease back.
func (l *roleLoop) release() {
	l.mu.Lock()
	lease := l.lease
	l.lease = nil
	l.mu.Unlock()
	if lease != nil {
		l.close(lease)
	}
}

func (l *roleLoop) close(lease Lease) {
	if err := lease.Close(); err != nil {
		l.s.Logger.Warn("the lease was not given back: it ends by itself", "error", err)
	}
}

// follow runs one connection to the primary.
func (l *roleLoop) follow(url string) {
	ctx, cancel := context.WithCancel(l.ctx)
	l.unfollow = cancel
	l.start(func() {
		defer cancel()
		err := l.s.beginToFollow(ctx)
		if err == nil {
			err = l.s.followFrom(ctx, url)
		}
		if ctx.Err() == nil && err != nil {
			l.s.Logger.Warn("not connected to the primary; trying again", "error", err)
		}
		l.send(role.StreamEnded{})
	})
}

// prepare makes this node able to write, under a new epoch.
func (l *roleLoop) prepare(ctx context.Context, epoch uint64) error {
	s := l.s
	mine, err := s.readEpoch()
	if err != nil {
		return err
	}
	epoch = max(epoch, mine+1)
	// Applications wait: what need not wait for each other does not.
	var g errgroup.Group
	g.Go(func() error { return s.writeEpoch(epoch) })
	g.Go(func() error { return s.each(func(db *DB) error { return db.readyToWrite(ctx) }) })
	if err := g.Wait(); err != nil {
		return err
	}
	s.epoch.Store(epoch)
	s.reign.Store(epoch)
	s.replicas.newReign()
	s.insync.begin()
	lease := l.held()
	if lease == nil {
		return ErrLeaseExpired
	}
	g = errgroup.Group{}
	g.Go(func() error {
		if err := s.writeRecord(ctx, lease, ""); err != nil {
			return fmt.Errorf("record of this reign: %w", err)
		}
		return nil
	})
	g.Go(func() error { return errors.Join(s.writeRole(RolePrimary), s.reigns.note(epoch, s.nodeID)) })
	return g.Wait()
}

// retire takes the replica's locks on every database. What cannot be had is
// tried again by who follows.
func (l *roleLoop) retire(ctx context.Context) {
	if err := l.s.beginToFollow(ctx); err != nil {
		l.s.Logger.Error("a local program still writes: what it commits goes to lost+found", "error", err)
	}
}
