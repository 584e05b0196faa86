// Package consul is the Leaser of a cluster that elects its primary by a lock on a key of Consul.
//
// The key exists while somebody is the primary and says who. A session of Consul holds it. Consul ends
// a session that is not renewed only after up to twice its TTL; so the primary also rewrites the key
// with each renewal, and a candidate that has seen it stand still for the holder's TTL and lock-delay
// takes it, in one transaction with the check that it still stands.
//
// Beside the key, and not ended with it, lie the record of the last primary, the cluster's id, and
// what else is stored with SetOnce. docs/lease.md has the formats and the bounds of time.
package consul

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/boottime"
	"github.com/litefs/litefs/internal/leasehttp"
	"github.com/litefs/litefs/internal/leaseterm"
)

// Defaults, as LiteFS has them.
const (
	DefaultKey       = "litefs/primary"
	DefaultTTL       = 10 * time.Second
	DefaultLockDelay = time.Second
)

// MaxLockDelay is the longest lock-delay that Consul accepts.
const MaxLockDelay = time.Minute

// Options of a Leaser. Zero values are the defaults, except where it says otherwise.
type Options struct {
	// URL of the Consul agent. Its password is the ACL token, its path goes before every key.
	URL string

	Key       string        // the key that is locked
	TTL       time.Duration // how long a lease lasts after a renewal
	LockDelay time.Duration // how long nobody can have the lease after one that was not given back

	Hostname     string // this node's, for those who read the key; may be empty
	AdvertiseURL string // where other nodes reach this one; required

	// Former is what Remember was last called with by the process that had this node's data before. That
	// one is dead, so its lease is taken over without waiting for its end. Remember may be nil.
	Former   string
	Remember func(session string)

	// Follower never takes the lease: Acquire always finds it taken.
	Follower bool

	// Now is the clock that leases are measured by: the time since an arbitrary moment.
	Now func() time.Duration
}

// Leaser is a litefs.Leaser and litefs.Registry. It is safe for concurrent use.
type Leaser struct {
	opt   Options
	key   string // with the prefix of the URL
	token string // ACL token; empty: the agent's default
	api   *leasehttp.Client

	slot leaseterm.Slot[Lease, string]

	mu   sync.Mutex // guards what is below
	seen sighting   // how long another's lease has been standing

	// refusedUntil is when to try again after Consul refused a free key: a lock-delay is running.
	refusedUntil time.Duration
}

var (
	_ litefs.Leaser   = (*Leaser)(nil)
	_ litefs.Registry = (*Leaser)(nil)
)

// New returns a leaser. It does not yet talk to Consul.
func New(o Options) (*Leaser, error) {
	if o.Key == "" {
		o.Key = DefaultKey
	}
	if o.TTL == 0 {
		o.TTL = DefaultTTL
	}
	if o.LockDelay == 0 {
		o.LockDelay = DefaultLockDelay
	}
	if o.Now == nil {
		o.Now = boottime.Now
	}
	u, err := url.Parse(o.URL)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		// The URL may hold a token: it is not repeated.
		return nil, errors.New("the URL of Consul must be like http://127.0.0.1:8500")
	case o.AdvertiseURL == "":
		return nil, errors.New("a node that may hold the lease needs a URL that others reach it at")
	case o.TTL < time.Second || o.LockDelay < 0 || o.LockDelay > MaxLockDelay:
		return nil, fmt.Errorf("a TTL of %v and a lock-delay of %v: want at least 1s, and from 0 to %v", o.TTL, o.LockDelay, MaxLockDelay)
	}
	l := &Leaser{
		opt: o,
		key: strings.Trim(path.Join(u.Path, o.Key), "/"),
		// A third: a renewal that hangs leaves time for another one.
		api: leasehttp.New("consul", u, o.TTL/3),
	}
	l.slot.Had(o.Former)
	if u.User != nil {
		l.token, _ = u.User.Password()
	}
	return l, nil
}

// AdvertiseURL is the base URL at which other nodes reach this one.
func (l *Leaser) AdvertiseURL() string { return l.opt.AdvertiseURL }

// String names the lease: the key, with the prefix that the URL gave it, and the server.
func (l *Leaser) String() string {
	return fmt.Sprintf("the lease %s of consul at %s", l.key, l.api.Base())
}

// PrimaryURL returns the URL that the holder of the key has written into it. Whether that node still
// runs is not known here.
func (l *Leaser) PrimaryURL(ctx context.Context) (string, error) {
	e, _, err := l.get(ctx, l.key)
	if err != nil {
		return "", err
	}
	if !e.held() {
		return "", litefs.ErrNoPrimary
	}
	h, err := e.holder()
	if err != nil {
		return "", fmt.Errorf("consul key %s: %w", l.key, err)
	}
	return h.URL, nil
}

// Acquire takes the lease if it is free, or if its holder has let it stand; see AwaitVacant. It returns
// litefs.ErrPrimaryExists if another node has it, if a lock-delay is running, while this leaser itself
// holds it, and if this node is a follower.
func (l *Leaser) Acquire(ctx context.Context) (litefs.Lease, error) {
	if l.opt.Follower || l.slot.Lease() != nil {
		return nil, litefs.ErrPrimaryExists
	}
	e, _, err := l.get(ctx, l.key)
	if err != nil {
		return nil, err
	}
	take := l.takeFree
	if e.held() {
		if l.note(e) > 0 {
			return nil, litefs.ErrPrimaryExists
		}
		take = l.takeStanding
	}

	// Before the first request of which Consul could count the TTL.
	lease := &Lease{leaser: l, term: leaseterm.Begin(l.opt.TTL, l.opt.Now), renewing: make(chan struct{}, 1)}
	if lease.session, err = l.createSession(ctx); err != nil {
		return nil, err
	}
	var noted sync.WaitGroup // a disk and a server: applications may be waiting for both
	if l.opt.Remember != nil {
		noted.Go(func() { l.opt.Remember(lease.session) })
	}
	lease.token, err = take(ctx, lease, e)
	noted.Wait()
	if err == nil && !l.slot.Adopt(lease) {
		err = litefs.ErrPrimaryExists
	}
	if err != nil {
		// The answer alone may have been lost: without its session the key is free again.
		return nil, errors.Join(err, l.destroySession(context.WithoutCancel(ctx), lease.session))
	}
	if e.held() {
		// Nothing hangs on the session of the last holder any more. If it stays, Consul ends it.
		_ = l.destroySession(ctx, e.Session)
	}
	return lease, nil
}

// takeFree locks a key that nobody holds.
func (l *Leaser) takeFree(ctx context.Context, lease *Lease, _ entry) (uint64, error) {
	index, err := l.transact(ctx, l.lock(lease))
	var rollback *rollbackError
	if !errors.As(err, &rollback) || rollback.denied() {
		return index, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refusedUntil = l.opt.Now() + l.opt.TTL/100
	return 0, litefs.ErrPrimaryExists
}

// takeStanding moves the key from the session that let it stand to ours. Destroying that session and
// then locking the key would be wrong: the holder may renew between our look and the end of its
// session, and would believe in its lease for a whole TTL.
func (l *Leaser) takeStanding(ctx context.Context, lease *Lease, e entry) (uint64, error) {
	index, err := l.transact(ctx,
		kvOp{Verb: "check-index", Key: l.key, Index: e.ModifyIndex},
		kvOp{Verb: "unlock", Key: l.key, Session: e.Session, Value: e.Value},
		l.lock(lease),
	)
	var rollback *rollbackError
	if errors.As(err, &rollback) && !rollback.denied() {
		return 0, litefs.ErrPrimaryExists
	}
	return index, err
}

func (l *Leaser) lock(lease *Lease) kvOp {
	return kvOp{Verb: "lock", Key: l.key, Session: lease.session, Value: lease.value()}
}

// AwaitVacant returns nil when an Acquire by this node may succeed: nobody holds the key, or its holder
// has let it stand for its TTL and lock-delay.
func (l *Leaser) AwaitVacant(ctx context.Context) error {
	var wait waiting
	for {
		e, index, err := l.getAfter(ctx, l.key, wait)
		if err != nil {
			return err
		}
		left := l.pause()
		if e.held() {
			left = l.note(e)
		}
		if left <= 0 {
			return nil
		}
		if !e.held() {
			// Nothing is going to change at the key: only time passes.
			wait = waiting{}
			if err := sleep(ctx, left); err != nil {
				return err
			}
			continue
		}
		// Consul adds up to a sixteenth to what it is asked to wait: a short wait is late by less.
		wait = waiting{index: index, for_: min(left, max(l.opt.TTL/10, 100*time.Millisecond))}
	}
}

// pause is how long a free key is not worth another attempt.
func (l *Leaser) pause() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.refusedUntil - l.opt.Now()
}

// note remembers that another node's lease was seen in this state and returns how much longer it must
// be seen in it before it may be taken.
func (l *Leaser) note(e entry) time.Duration {
	if l.slot.IsFormer(e.Session) {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seen.note(e, l.opt.Now(), l.opt.TTL, l.opt.LockDelay)
}

// Record returns what the last primary wrote of itself, or litefs.ErrNoRecord.
func (l *Leaser) Record(ctx context.Context) (litefs.Record, error) {
	e, _, err := l.get(ctx, l.beside(recordName))
	if err != nil {
		return litefs.Record{}, err
	}
	if !e.exists() {
		return litefs.Record{}, litefs.ErrNoRecord
	}
	var r litefs.Record
	if err := json.Unmarshal(e.Value, &r); err != nil {
		return litefs.Record{}, fmt.Errorf("consul key %s holds no record of a primary: %w", l.beside(recordName), err)
	}
	return r, nil
}

// SetOnce stores value under name unless a value is there already, and returns the one that is there.
func (l *Leaser) SetOnce(ctx context.Context, name string, value []byte) ([]byte, error) {
	if err := litefs.ValidateRegistryValue(name, value); err != nil {
		return nil, err
	}
	key := l.beside(name)
	e, _, err := l.get(ctx, key)
	if err != nil || e.exists() {
		return e.Value, err
	}
	if err := l.putNew(ctx, key, value); err != nil {
		return nil, err
	}
	// Whoever was first: what is there now stays.
	e, _, err = l.get(ctx, key)
	if err == nil && !e.exists() {
		err = fmt.Errorf("consul key %s was removed as soon as it was stored", key)
	}
	return e.Value, err
}

// recordName is the name of the record among the values beside the key.
const recordName = "record"

// beside is the key of what is stored under name. LiteFS calls the cluster's id "clusterid".
func (l *Leaser) beside(name string) string {
	if name == "cluster-id" {
		name = "clusterid"
	}
	return l.key + "/" + name
}

// Close gives back the lease, if it is held, and lets go of the connections.
func (l *Leaser) Close() error {
	lease := l.slot.Lease()
	defer l.api.Close()
	if lease == nil {
		return nil
	}
	return lease.Close()
}

// header carries the token: in a URL it would get into logs.
func (l *Leaser) header() http.Header {
	if l.token == "" {
		return nil
	}
	return http.Header{"X-Consul-Token": {l.token}}
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
