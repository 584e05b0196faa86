package litefs

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/litefs/litefs/internal/durable"
	"github.com/litefs/litefs/internal/role"
	"github.com/litefs/litefs/internal/vfs"
)

// Role returns what this node may do now. A primary whose lease is not provably
// its own any more is none, from that moment on.
func (s *Store) Role() Role {
	r := Role(s.role.Load())
	if r == RolePrimary {
		if at := s.fenceAt.Load(); at != 0 && int64(bootNow()) >= at {
			return RoleReplica
		}
	}
	return r
}

// roleState is what a node says of its role.
type roleState struct {
	state role.State
	why   string // it does not ask for the lease
}

// RoleState names the state of the node's role ("follower", "candidate",
// "primary", "draining"; "" where the role does not move), and why a candidate
// does not ask for the lease.
func (s *Store) RoleState() (state, why string) {
	st := s.stateOf.Load()
	if st == nil {
		return "", ""
	}
	return st.state.String(), st.why
}

// IsPrimary returns true if store has a lease to be the primary.
func (s *Store) IsPrimary() bool { return s.Role() == RolePrimary }

// Serving reports whether followers are served: on the primary, and until a
// hand-over has come to its end.
func (s *Store) Serving() bool { return s.IsPrimary() || s.handing.Load() }

// Candidate reports whether this node may become the primary.
func (s *Store) Candidate() bool { return s.IsPrimary() || s.roles != nil && s.MayLead }

// PrimaryURL returns the advertising URL of the current primary.
func (s *Store) PrimaryURL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.primaryURL
}

// Synced is closed once a replica has had everything of its primary for the
// first time in this run, or has become the primary. On a primary whose role is
// written in its configuration it stays open.
func (s *Store) Synced() <-chan struct{} { return s.synced }

// PrimaryHost is the primary's host name, while one is known; else "".
func (s *Store) PrimaryHost() string {
	if s.PrimaryURL() != "" && s.PrimaryHostname != "" {
		return s.PrimaryHostname
	}
	u, err := url.Parse(s.PrimaryURL())
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// settleRole asks for the lease once and takes the role that follows. It comes
// before the first file can be opened.
func (s *Store) settleRole(ctx context.Context) error {
	if s.Leaser == nil {
		return s.becomePrimary(nil)
	}
	if reg, ok := s.Leaser.(Registry); ok {
		if s.live {
			return s.settleLive(ctx, reg)
		}
		err := s.guardCluster(ctx, reg)
		if err != nil && (errors.Is(err, ErrOtherCluster) || s.ClusterID() == "") {
			return err
		}
		if err != nil {
			s.Logger.Warn("the lease service does not answer: this node serves reads, and asks for no lease before it does", "lease", fmt.Sprint(reg), "error", err)
		}
		// Whether it becomes the primary is decided when the mount is there, and
		// others can be asked.
		s.roles = newRoleLoop(s, reg)
		s.roles.guarded.Store(err == nil)
		return s.becomeReplica()
	}
	lease, err := s.Leaser.Acquire(ctx)
	if err == nil {
		return s.becomePrimary(lease)
	}
	if !errors.Is(err, ErrPrimaryExists) {
		return fmt.Errorf("acquire the lease: %w", err)
	}
	return s.becomeReplica()
}

func (s *Store) becomePrimary(lease Lease) error {
	epoch, err := s.readEpoch()
	if err != nil {
		return err
	}
	if s.lastRole != RolePrimary {
		epoch++
	}
	if err := errors.Join(s.writeEpoch(epoch), s.reigns.note(epoch, s.nodeID)); err != nil {
		return err
	}
	if s.ClusterID() == "" {
		id, err := newClusterID()
		if err != nil {
			return err
		}
		if err := s.setClusterID(id); err != nil {
			return err
		}
	}
	if s.lastRole == RoleReplica {
		for _, db := range s.DBs() {
			if err := db.promote(); err != nil {
				return fmt.Errorf("take over %s: %w", db.Name(), err)
			}
		}
	}
	for _, db := range s.DBs() {
		if err := db.fenceLent(epoch); err != nil {
			return fmt.Errorf("take %s back: %w", db.Name(), err)
		}
	}
	if err := s.writeRole(RolePrimary); err != nil {
		return err
	}
	s.mu.Lock()
	s.lease = lease
	if s.Leaser != nil {
		s.primaryURL = s.Leaser.AdvertiseURL()
	}
	s.mu.Unlock()
	s.epoch.Store(epoch)
	s.reign.Store(epoch)
	s.role.Store(int32(RolePrimary))
	for _, db := range s.DBs() {
		db.local.Store(true)
	}
	s.roleChanged()
	s.Logger.Info("this node is the primary", "epoch", epoch, "url", s.PrimaryURL())
	return nil
}

func (s *Store) becomeReplica() error {
	// Who wrote last may still have something to be captured: see DB.captureLast.
	if s.lastRole != RolePrimary {
		if err := s.writeRole(RoleReplica); err != nil {
			return err
		}
	}
	epoch, err := s.readEpoch()
	if err != nil {
		return err
	}
	s.epoch.Store(epoch)
	s.setRole(RoleReplica, "")
	s.Logger.Info("this node is a replica: databases are read-only here")
	return nil
}

// setRole changes the role, for requests that come from here on.
func (s *Store) setRole(r Role, primaryURL string) {
	s.mu.Lock()
	s.primaryURL = primaryURL
	s.mu.Unlock()
	if r == RoleReplica && Role(s.role.Load()) == RolePrimary {
		s.noteCeased()
	}
	s.role.Store(int32(r))
	s.roleChanged()
	s.replicas.poke() // commits that wait for replicas look at the role
}

func (s *Store) readEpoch() (uint64, error) {
	b, err := os.ReadFile(filepath.Join(s.path, "epoch"))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("epoch: %w", err)
	}
	epoch, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("epoch on record: %w", err)
	}
	return epoch, nil
}

func (s *Store) writeEpoch(epoch uint64) error {
	if err := durable.Replace(vfs.OS(), filepath.Join(s.path, "epoch"), []byte(strconv.FormatUint(epoch, 10)+"\n")); err != nil {
		return fmt.Errorf("epoch: %w", err)
	}
	return nil
}

// startRole begins to follow the primary, on a replica, or to find out who it
// is.
func (s *Store) startRole() {
	switch {
	case s.roles != nil:
		s.running.Store(true)
		s.goRun(s.roles.run)
	case s.Role() == RoleReplica:
		s.goRun(s.followLoop)
	}
}

// followLoop takes the replica's locks on every database, then keeps a
// connection to the primary until the store closes.
func (s *Store) followLoop() {
	last, begun := "", false
	for s.ctx.Err() == nil {
		var err error
		if !begun {
			err = s.beginToFollow(s.ctx)
			begun = err == nil
		}
		if err == nil {
			err = s.followPrimary(s.ctx)
		}
		if s.ctx.Err() != nil {
			return
		}
		if err != nil && err.Error() != last {
			last = err.Error()
			s.Logger.Warn("not connected to the primary; trying again", "error", err, "every", s.ReconnectDelay)
		}
		select {
		case <-s.ctx.Done():
		case <-time.After(s.ReconnectDelay):
		}
	}
}

// beginToFollow takes the replica's locks on all databases. What a primary sent
// must not be applied while recovery would take it for local writes: a node that
// wrote last follows nobody before all its writers have ended, and what they
// wrote is in the log, durably.
func (s *Store) beginToFollow(ctx context.Context) error {
	if err := s.endHolds(ctx, 0); err != nil {
		return err
	}
	err := s.takePeers(ctx)
	switch {
	case Role(s.recorded.Load()) != RolePrimary:
		return nil // what could not be locked is tried again with its next transaction
	case err != nil:
		return fmt.Errorf("a database is still written here: %w", err)
	}
	if err := s.each((*DB).makeDurable); err != nil {
		return err
	}
	return s.writeRole(RoleReplica)
}

// takePeers takes the replica's locks on all databases. One that a local
// program is writing to holds the others up for a while only.
func (s *Store) takePeers(ctx context.Context) error {
	const patience = 5 * time.Second
	return s.each(func(db *DB) error {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		err := db.takePeer(ctx)
		if err != nil && !errors.Is(ctx.Err(), context.Canceled) {
			db.log().Error("cannot take the replica's locks; tried again", "error", err)
		}
		return err
	})
}

// followPrimary runs one connection to the primary that the leaser names.
func (s *Store) followPrimary(ctx context.Context) error {
	primary, err := s.Leaser.PrimaryURL(ctx)
	if err != nil {
		return err
	}
	return s.followFrom(ctx, primary)
}

// followFrom runs one connection to the primary to its end.
func (s *Store) followFrom(ctx context.Context, primary string) error {
	if s.Client == nil {
		return errors.New("the store has no client to follow a primary with")
	}
	stream, err := s.Client.Stream(ctx, primary, s.wantedPos())
	if err != nil {
		return err
	}
	return s.consume(ctx, primary, stream)
}

// wantedPos is where this replica wants each database to be continued.
func (s *Store) wantedPos() map[uint32]Pos {
	m := make(map[uint32]Pos)
	for _, db := range s.DBs() {
		m[db.ID()] = db.wantedPos()
	}
	return m
}

// joinCluster checks that the primary is of this node's cluster. A node that
// belongs to none yet joins.
func (s *Store) joinCluster(id string, epoch uint64) error {
	mine := s.ClusterID()
	switch {
	case id == "":
		return errors.New("the primary does not say which cluster it belongs to")
	case mine == "":
		if err := s.setClusterID(id); err != nil {
			return err
		}
	case mine != id:
		return fmt.Errorf("the primary is of cluster %s, this node of %s: give this node an empty data directory to join the other cluster", id, mine)
	}
	if epoch > s.Epoch() {
		if err := s.writeEpoch(epoch); err != nil {
			return err
		}
		s.epoch.Store(epoch)
	}
	return nil
}

// introduce returns the database that the primary names, made or renamed here
// as needed.
func (s *Store) introduce(ctx context.Context, id uint32, name string) (*DB, error) {
	if err := ValidateName(name); err != nil {
		return nil, fmt.Errorf("name from the primary: %w", err)
	}
	if db := s.DB(id); db != nil {
		if db.Name() != name {
			return db, s.renameReplica(ctx, db, name)
		}
		return db, nil
	}
	if old := s.DBByName(name); old != nil {
		// Dropped and created again while we were away.
		if err := s.dropReplica(ctx, old.ID()); err != nil {
			return nil, err
		}
	}
	return s.ForceCreateDB(id, name)
}
