package litefs

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"time"
)

// Leaser represents an API for obtaining a lease for leader election.
type Leaser interface {
	io.Closer

	// AdvertiseURL is the base URL at which other nodes reach this one.
	AdvertiseURL() string

	// Acquire attempts to acquire the lease to become the primary.
	// Returns ErrPrimaryExists if another node has it or this one may not have it.
	Acquire(ctx context.Context) (Lease, error)

	// PrimaryURL attempts to read the current primary URL.
	// Returns ErrNoPrimary if no primary has the lease.
	PrimaryURL(ctx context.Context) (string, error)
}

// Lease represents an acquired lease from a Leaser.
type Lease interface {
	// RenewedAt is the time, by the local clock, from which TTL counts: the moment before the last
	// renewal that succeeded was sent, so that the holder's view is never the more hopeful one.
	RenewedAt() time.Time
	TTL() time.Duration

	// Renew attempts to reset the TTL on the lease.
	// Returns ErrLeaseExpired if the lease has expired or was deleted.
	Renew(ctx context.Context) error

	// Close attempts to remove the lease from the server.
	Close() error
}

// Registry is implemented by a Leaser whose service can keep a few small values beside the lease.
// All of them outlive the lease.
type Registry interface {
	// Record returns what the last primary wrote of itself, or ErrNoRecord.
	Record(ctx context.Context) (Record, error)

	// SetOnce stores value under name unless a value is there already, atomically, and returns the
	// one that is there now. Names are short words ("cluster-id", "secret"); values at most 4 KiB.
	SetOnce(ctx context.Context, name string, value []byte) ([]byte, error)

	// AwaitVacant returns nil once an Acquire by this node may succeed: nobody holds the lease, or
	// its holder has left it standing for so long that it has ended by the holder's own clock. It
	// looks at the service and notes how old the lease is only while it runs: a candidate keeps it
	// running, and a node that takes no part does not. Any other end is an error, ctx's or the
	// service's; the caller waits a little and calls again.
	AwaitVacant(ctx context.Context) error
}

// FencedLease is implemented by the leases of a Registry.
type FencedLease interface {
	Lease

	// Token is greater than the token of every lease that was acquired before this one, on any node.
	Token() uint64

	// Remaining is how much longer no other node can have the lease: TTL less the time since the
	// last successful renewal was sent, by a clock that setting the time does not move and that goes
	// on while the machine sleeps (time.Since stops there). Not positive once that is over. It asks
	// nobody and may be called for every write.
	Remaining() time.Duration

	// SetRecord replaces the record, atomically with the check that this lease still holds. The
	// record's Token is set to this lease's. Returns ErrLeaseExpired if it does not hold any more.
	SetRecord(ctx context.Context, r Record) error
}

// Record is what a primary keeps beside its lease for the nodes that come after it.
type Record struct {
	NodeID    string `json:"node-id"`
	Hostname  string `json:"hostname"`
	URL       string `json:"advertise-url"`
	ClusterID string `json:"cluster-id"`

	// Epoch is the history that this primary writes. The next primary's is greater.
	Epoch uint64 `json:"epoch"`

	// Token is that of the lease under which the record was written.
	Token uint64 `json:"token"`

	// Position says how full the primary was when it wrote the record.
	Position Fullness `json:"position"`

	// InSync names the nodes that have every acknowledged transaction. Only they may win while it
	// is not empty.
	InSync []string `json:"in-sync,omitempty"`

	// Successor is the node that a hand-over gives the lease to: others let it go first.
	Successor string `json:"successor,omitempty"`
}

// Fullness orders nodes by how much of the history they have: a later epoch first, then more
// transactions.
type Fullness struct {
	Epoch uint64 `json:"epoch"`

	// Txns is the sum of the databases' TXIDs.
	Txns uint64 `json:"txns"`
}

// Compare returns -1, 0 or +1 as a is less full than b, as full, or fuller.
func (a Fullness) Compare(b Fullness) int {
	if c := cmp.Compare(a.Epoch, b.Epoch); c != 0 {
		return c
	}
	return cmp.Compare(a.Txns, b.Txns)
}

// MaxRegistryValue is the longest value that a Registry keeps, in bytes.
const MaxRegistryValue = 4096

// ValidateRegistryValue returns an error unless value can be stored under name in a Registry. The
// names come from this program and become parts of keys; "record" is taken.
func ValidateRegistryValue(name string, value []byte) error {
	if name == "" || len(name) > 32 || name == "record" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz-") != "" {
		return fmt.Errorf("%q is no name of a value beside the lease: want 1 to 32 of a-z and -, and not record", name)
	}
	if len(value) == 0 || len(value) > MaxRegistryValue {
		return fmt.Errorf("the value of %s beside the lease has %d bytes, want 1 to %d", name, len(value), MaxRegistryValue)
	}
	return nil
}
