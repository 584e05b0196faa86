package litefs

import (
	"context"
	"errors"
	"time"
)

// LeaseLost is closed when the lease that this node was the primary under has ended, or can no longer
// be proved to hold. The node must stop then: another one may be the primary.
func (s *Store) LeaseLost() <-chan struct{} { return s.leaseLost }

// leaseMargin is the part of the TTL before whose end a lease counts as lost: stopping takes time.
const leaseMargin = 5

// keepLease renews the lease until the store closes.
func (s *Store) keepLease(lease FencedLease) {
	margin := lease.TTL() / leaseMargin
	retry := time.NewTimer(0)
	defer retry.Stop()
	for wait := lease.TTL() / 3; ; {
		retry.Reset(min(wait, max(0, lease.Remaining()-margin)))
		select {
		case <-s.ctx.Done():
			return
		case <-retry.C:
		}
		if lease.Remaining() <= margin {
			s.Logger.Error("the lease could not be renewed in time: this node is no primary any more", "ttl", lease.TTL())
			close(s.leaseLost)
			return
		}
		ctx, cancel := context.WithTimeout(s.ctx, lease.Remaining()-margin)
		err := lease.Renew(ctx)
		cancel()
		switch {
		case err == nil:
			wait = lease.TTL() / 3
		case errors.Is(err, ErrLeaseExpired):
			s.Logger.Error("the lease was lost: this node is no primary any more", "error", err)
			close(s.leaseLost)
			return
		case s.ctx.Err() == nil:
			wait = lease.TTL() / 20
			s.Logger.Warn("the lease was not renewed; trying again", "left", lease.Remaining(), "error", err)
		}
	}
}
