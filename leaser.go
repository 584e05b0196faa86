package litefs

import (
	"context"
	"io"
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
	// RenewedAt is the time, by the local clock, from which TTL counts.
	RenewedAt() time.Time
	TTL() time.Duration

	// Renew attempts to reset the TTL on the lease.
	// Returns ErrLeaseExpired if the lease has expired or was deleted.
	Renew(ctx context.Context) error

	// Close attempts to remove the lease from the server.
	Close() error
}
