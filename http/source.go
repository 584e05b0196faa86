package http

import (
	"context"
	"time"

	"github.com/litefs/litefs"
)

// Source is what a Server serves: the store of its node, in the words that the network needs.
type Source interface {
	ClusterID() string
	NodeID() string
	Epoch() uint64
	IsPrimary() bool
	PrimaryURL() string // "" when no primary is known

	// Serving reports whether replicas are served: on the primary, and until a hand-over has ended.
	Serving() bool

	// Position is what this node tells of itself to one that may become the primary.
	Position() litefs.NodePosition

	// RoleState names the state of the role, and why a candidate does not ask for the lease.
	RoleState() (state, why string)

	// PromoteNow and DemoteNow move the primary role here, or to another node.
	PromoteNow(ctx context.Context, force bool) error
	DemoteNow(ctx context.Context, to string) error

	Databases() []Database
	Database(id uint32) (Database, bool)

	// Dropped tells a database that was dropped from one that is merely not to be had at the moment.
	// Only the former may be taken from the replicas.
	Dropped(id uint32) bool

	Subscribe() Subscription

	MountDir() string // "" before the mount serves

	// Lag is how old the node's copies are; false: it never had all that its primary had.
	Lag() (time.Duration, bool)

	Status() litefs.Status
	Stats() *litefs.Stats

	// ReplicaRegistry is where the server notes what replicas acknowledge.
	ReplicaRegistry() *litefs.ReplicaRegistry
}

// Database is one database of a Source.
type Database interface {
	ID() uint32
	Name() string
	Pos() litefs.Pos

	// Settle makes Pos count what applications have committed before the call.
	Settle() error

	// NextLTX returns the log entry that joins pos. Returns io.EOF if nothing comes after pos,
	// litefs.ErrSnapshotNeeded if only a snapshot leads on. It does not wait for anything long.
	NextLTX(pos litefs.Pos) (*litefs.LTXReader, error)

	// Decided returns up to which transaction a replica may apply that was sent all up to sent.
	Decided(sent uint64) uint64

	// LevelNoted is the level that was set while the node ran, or litefs.LevelOfRule. What was committed under it is in
	// the log later.
	LevelNoted() string

	// EventsAfter returns what became visible after txid, oldest first.
	EventsAfter(txid uint64) []litefs.TxEvent

	// Base begins, or continues, a base for a replica that has nothing; nil: the log is to be sent.
	// notify is called when there is something new in it.
	Base(ctx context.Context, pos litefs.Pos, next uint32, notify func()) (litefs.BaseReader, error)

	// SnapshotLTX returns the whole database as one LTX file. It may take its time.
	SnapshotLTX(ctx context.Context) (*litefs.LTXReader, error)
}

// Subscription tells which databases have changed.
type Subscription interface {
	NotifyCh() <-chan struct{}
	DirtySet() map[uint32]struct{}
	Close() error
}

// storeSource is a Source that is a litefs.Store: only the types that Go does not convert by itself
// differ.
type storeSource struct{ *litefs.Store }

func (s storeSource) Databases() []Database {
	dbs := s.DBs()
	a := make([]Database, len(dbs))
	for i, db := range dbs {
		a[i] = db
	}
	return a
}

func (s storeSource) Database(id uint32) (Database, bool) {
	db := s.DB(id)
	return db, db != nil // the flag, for a nil *litefs.DB in an interface is not nil
}

func (s storeSource) Subscribe() Subscription { return s.Store.Subscribe() }
