// Package static is the Leaser of a cluster whose roles are written in its configuration: one node
// is the primary for as long as it runs, every other node is told where that one is.
//
// Nothing takes the lease from a primary and nothing gives it to another node: two nodes that are
// configured as the primary are two primaries.
package static

import (
	"context"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/litefs/litefs"
)

// leaseTTL stands for "never": far enough that no renewal and no expiry is ever due, near enough
// that adding it to a time does not overflow.
const leaseTTL = 100 * 365 * 24 * time.Hour

// Leaser is a litefs.Leaser with a fixed role. It is safe for concurrent use.
type Leaser struct {
	primary      bool
	advertiseURL string // this node's URL; may be empty
	primaryURL   string // the primary's URL; on the primary its own

	mu    sync.Mutex
	lease *Lease // held at the moment; nil on a follower
}

var _ litefs.Leaser = (*Leaser)(nil)

// NewPrimary returns the leaser of the node that is the primary. Other nodes reach it at advertiseURL,
// which may be empty when there are none.
func NewPrimary(advertiseURL string) (*Leaser, error) {
	if advertiseURL != "" {
		if err := validateURL(advertiseURL); err != nil {
			return nil, fmt.Errorf("advertise url: %w", err)
		}
	}
	return &Leaser{primary: true, advertiseURL: advertiseURL, primaryURL: advertiseURL}, nil
}

// NewFollower returns the leaser of a node that follows the primary at primaryURL and never becomes
// one itself. advertiseURL, where other nodes reach this one, may be empty.
func NewFollower(advertiseURL, primaryURL string) (*Leaser, error) {
	if err := validateURL(primaryURL); err != nil {
		return nil, fmt.Errorf("primary url: %w", err)
	}
	if advertiseURL != "" {
		if err := validateURL(advertiseURL); err != nil {
			return nil, fmt.Errorf("advertise url: %w", err)
		}
	}
	return &Leaser{advertiseURL: advertiseURL, primaryURL: primaryURL}, nil
}

func validateURL(s string) error {
	u, err := url.Parse(s)
	if err != nil {
		return err
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return fmt.Errorf("%q is no URL of a node, want one like http://10.0.0.1:20202", s)
	}
	return nil
}

// AdvertiseURL is the base URL at which other nodes reach this one.
func (l *Leaser) AdvertiseURL() string { return l.advertiseURL }

// Acquire returns the lease on the primary, once at a time. It returns litefs.ErrPrimaryExists on a
// follower, and on the primary while an earlier lease is not closed.
func (l *Leaser) Acquire(ctx context.Context) (litefs.Lease, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.primary || l.lease != nil {
		return nil, litefs.ErrPrimaryExists
	}
	l.lease = &Lease{leaser: l, renewedAt: time.Now()}
	return l.lease, nil
}

// PrimaryURL returns the primary's URL, as it is configured; whether that node runs is not known
// here. On the primary itself it returns litefs.ErrNoPrimary while no lease is held.
func (l *Leaser) PrimaryURL(ctx context.Context) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.primary && l.lease == nil {
		return "", litefs.ErrNoPrimary
	}
	return l.primaryURL, nil
}

// Close gives up the lease, if it is held.
func (l *Leaser) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lease = nil
	return nil
}

// Lease is the primary's lease. It does not expire by itself.
type Lease struct {
	leaser *Leaser

	renewedAt time.Time // guarded by leaser.mu
}

var _ litefs.Lease = (*Lease)(nil)

// RenewedAt returns the time of the last renewal.
func (l *Lease) RenewedAt() time.Time {
	l.leaser.mu.Lock()
	defer l.leaser.mu.Unlock()
	return l.renewedAt
}

// TTL returns a duration that no process outlives.
func (l *Lease) TTL() time.Duration { return leaseTTL }

// Renew notes the time. It returns litefs.ErrLeaseExpired after Close, of the lease or its leaser.
func (l *Lease) Renew(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	l.leaser.mu.Lock()
	defer l.leaser.mu.Unlock()
	if l.leaser.lease != l {
		return litefs.ErrLeaseExpired
	}
	l.renewedAt = time.Now()
	return nil
}

// Close ends the lease; the leaser can acquire another. A second Close does nothing: it does not end
// the lease of a successor.
func (l *Lease) Close() error {
	l.leaser.mu.Lock()
	defer l.leaser.mu.Unlock()
	if l.leaser.lease == l {
		l.leaser.lease = nil
	}
	return nil
}
