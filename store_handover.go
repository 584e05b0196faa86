package litefs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/litefs/litefs/internal/role"
)

// drainTimeout bounds a hand-over, from the first lock to the last
// acknowledgement: applications wait in their busy handlers meanwhile.
const drainTimeout = 3 * time.Second

// For how long, and how often, a node asks the primary to hand over.
const (
	askLong  = 25 * time.Second
	askPause = 300 * time.Millisecond // after a refusal
	tookLong = 3 * time.Second        // after a hand-over that has not made this node the primary
)

var (
	errNoSuccessor = errors.New("no candidate is connected and up to date")

	// ErrNotCandidate is returned for a node that cannot become the primary.
	ErrNotCandidate = errors.New("this node is no candidate")
)

// each runs fn for every database, several at a time, and waits for all. The
// error names the database.
func (s *Store) each(fn func(db *DB) error) error {
	var g errgroup.Group
	g.SetLimit(8)
	for _, db := range s.DBs() {
		g.Go(func() error {
			if err := fn(db); err != nil {
				return fmt.Errorf("%s: %w", db.Name(), err)
			}
			return nil
		})
	}
	return g.Wait()
}

// admitAll lets local writers in.
func (s *Store) admitAll(ctx context.Context) {
	s.withheld.Store(false)
	if err := s.each(func(db *DB) error { return db.admit(ctx) }); err != nil {
		s.Logger.Error("a database was not let go of cleanly", "error", err)
	}
	s.goRun(s.recordAll)
}

// drain holds local writers back, and waits until a successor has applied all
// that they have written. It returns the successor's node id.
func (s *Store) drain(ctx context.Context, to string) (string, error) {
	if to == "" && len(s.replicas.candidates("")) == 0 {
		return "", errNoSuccessor
	}
	for {
		changed := s.replicas.changed()
		if len(s.replicas.candidates(to)) > 0 {
			break
		}
		select { // it has asked for the role, so it is about to connect
		case <-changed:
		case <-ctx.Done():
			return "", errNoSuccessor
		}
	}
	began := time.Now()
	s.withheld.Store(true)
	if err := s.endHolds(ctx, handOverGrace); err != nil {
		return "", fmt.Errorf("take write locks back: %w", err)
	}
	if err := s.each(func(db *DB) error { return db.takePeer(ctx) }); err != nil {
		return "", fmt.Errorf("hold the writers back: %w", err)
	}
	held := time.Now()
	want := s.PosMap()
	for {
		changed := s.replicas.changed()
		for _, r := range s.replicas.candidates(to) {
			if r.has(want) {
				s.Logger.Info("the successor has everything", "writers-held", held.Sub(began), "sent", time.Since(held))
				return r.NodeID, nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return "", errNoSuccessor
		}
	}
}

// has reports whether the replica has applied all of want.
func (r ReplicaStatus) has(want map[uint32]Pos) bool {
	for id, pos := range want {
		if !pos.IsZero() && r.Databases[id].Applied != pos {
			return false
		}
	}
	return true
}

// handOver gives the lease to a successor that has everything. The locks are
// held already, and the role is the replica's; on disk it is when this node
// begins to follow.
func (l *roleLoop) handOver(ctx context.Context, to string) {
	s := l.s
	began := time.Now()
	if lease := l.held(); lease != nil {
		if err := s.writeRecord(ctx, lease, to); err != nil {
			s.Logger.Warn("the record does not name the successor", "to", to, "error", err)
		}
	}
	named := time.Now()
	l.release()
	s.Logger.Info("the lease was handed over", "to", to, "record", named.Sub(began), "release", time.Since(named))
	s.replicas.handOff(to)
	s.handing.Store(false)
}

// askPrimary asks the primary to hand over to this node, again and again until
// it does: a hand-over that fails, because a writer is long in its transaction or
// this node not connected yet, changes nothing.
func (l *roleLoop) askPrimary(url string) {
	s := l.s
	d, ok := s.Client.(interface {
		Demote(ctx context.Context, url, to string) error
	})
	if !ok || url == "" || l.asking.Swap(true) {
		return
	}
	defer l.asking.Store(false)
	ctx, cancel := context.WithTimeout(l.ctx, askLong)
	defer cancel()
	s.lighten(ctx)
	sub := s.Subscribe()
	defer sub.Close() //nolint:errcheck // forgets the subscription
	reign := s.reign.Load()
	for s.reign.Load() == reign && !s.IsPrimary() {
		pause := tookLong
		if err := l.ask(ctx, d.Demote, cmp.Or(s.PrimaryURL(), url)); err != nil {
			s.Logger.Warn("the primary does not hand over", "primary", url, "error", err)
			err = fmt.Errorf("the primary does not hand over: %w", err)
			s.notAsked.Store(&err)
			pause = askPause
		}
		// A primary that lost its lease meanwhile has not handed over, though it is none any more: it
		// may get the lease again.
		again := time.NewTimer(pause)
		for waiting := true; waiting && s.reign.Load() == reign; {
			select {
			case <-sub.NotifyCh():
				sub.DirtySet()
			case <-again.C:
				waiting = false
			case <-ctx.Done():
				again.Stop()
				return
			}
		}
		again.Stop()
	}
}

func (l *roleLoop) ask(ctx context.Context, demote func(ctx context.Context, url, to string) error, url string) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	return demote(ctx, url, l.s.nodeID)
}

// lighten does, while the primary still writes, what the first commit here would
// otherwise wait for: a replica's write-ahead log is long, so that the commit
// checkpoints it, and syncs the log of transactions before. What fails here is
// done then.
func (s *Store) lighten(ctx context.Context) {
	err := s.each(func(db *DB) error {
		if err := db.endBorrow(ctx, errors.New("this node asks for the role of the primary")); err != nil {
			return err
		}
		return errors.Join(db.makeDurable(), db.checkpointReplica(ctx))
	})
	if err != nil && ctx.Err() == nil {
		s.Logger.Warn("the first commit after the hand-over will take longer", "error", err)
	}
}

// errStatic is why a role cannot be moved.
var errStatic = errors.New("the roles of this cluster are written in its configuration (lease.type: static)")

// PromoteNow makes this node the primary, and returns when it is. A primary
// that lives hands over; with force this node takes the lease, once nobody has
// it, even if other nodes have more transactions.
func (s *Store) PromoteNow(ctx context.Context, force bool) error {
	switch {
	case s.roles == nil:
		return errStatic
	case s.IsPrimary():
		return nil
	case !s.MayLead:
		return ErrNotCandidate
	}
	return s.wish(ctx, role.Promote{Force: force}, RolePrimary)
}

// DemoteNow hands the primary role to another node: to, a node id, or "" for
// whoever is most up to date. It returns when this node is the primary no more.
func (s *Store) DemoteNow(ctx context.Context, to string) error {
	switch {
	case s.roles == nil:
		return errStatic
	case !s.IsPrimary():
		return errors.New("this node is not the primary")
	case to == s.nodeID:
		return nil
	}
	return s.wish(ctx, role.Demote{To: to}, RoleReplica)
}

// wish tells the loop, and waits until the role is the wanted one.
func (s *Store) wish(ctx context.Context, ev role.Event, want Role) error {
	sub := s.Subscribe()
	defer sub.Close() //nolint:errcheck // forgets the subscription
	before := s.notDrained.Load()
	s.notAsked.Store(nil)
	s.roles.send(ev)
	for s.Role() != want {
		select {
		case <-sub.NotifyCh():
			sub.DirtySet()
			if err := s.notDrained.Load(); err != before && want == RoleReplica {
				return *err
			}
		case <-ctx.Done():
			err := context.Cause(ctx)
			if why := s.notAsked.Load(); why != nil && want == RolePrimary {
				err = *why
			}
			return fmt.Errorf("not within the time for it: %w", err)
		case <-s.ctx.Done():
			return errors.New("this node is stopping")
		}
	}
	return nil
}

// AwaitRole waits until it is known for the first time what this node is: the
// primary, a follower, or a candidate that waits for others.
func (s *Store) AwaitRole(ctx context.Context) error {
	if s.roles == nil {
		return nil
	}
	select {
	case <-s.roles.settled:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Leave hands the lease over before the store closes, if this node has it and
// another one is up to date. It comes while the mount and the server for other
// nodes still serve.
func (s *Store) Leave(ctx context.Context) error {
	if s.roles == nil || s.ctx.Err() != nil || !s.running.Load() {
		return nil
	}
	s.roles.send(role.Stop{})
	select {
	case <-s.roles.stopped:
		return nil
	case <-s.roles.ctx.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("hand over before the stop: %w", context.Cause(ctx))
	}
}
