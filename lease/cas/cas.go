// Package cas is the Leaser of a cluster that elects its primary by a document, in any store that
// replaces a document only if it is still the one that was read (compare and set).
//
// The lock says who the primary is, and each renewal rewrites it. No store ends a lease here: a
// candidate that has seen the lock stand still for the holder's TTL and lock-delay, by its own clock,
// takes it in one write, which fails if the lock has moved. So neither the clock of the store nor that
// of another node counts.
//
// Beside the lock lies the state: the record of the last primary, and the fence, the token of the lease
// that may write it. A new holder raises the fence before it is told that it has the lease, and by that
// the version of the state: whatever a former holder has on its way does nothing from then on.
// docs/lease.md has the formats and the bounds of time.
package cas

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/boottime"
	"github.com/litefs/litefs/internal/leaseterm"
)

// Options of a Leaser. Zero values are the defaults, except where it says otherwise.
type Options struct {
	Store Store // required

	// Numbered says that versions are decimal numbers, and each write to the store, of any document, has
	// a greater one than all before. The token is then the version by which the lease was taken, else a
	// count of leases, which the lock and the state keep.
	Numbered bool

	TTL       time.Duration // how long a lease lasts after a renewal; required
	LockDelay time.Duration // how long nobody can have the lease after one that was not given back

	Hostname     string // this node's, for those who read the lock; may be empty
	AdvertiseURL string // where other nodes reach this one; required

	// Former is what Remember was last called with by the process that had this node's data before. That
	// one is dead, so its lease is taken over without waiting for its end. Remember may be nil.
	Former   string
	Remember func(id string)

	// Follower never takes the lease: Acquire always finds it taken.
	Follower bool

	// Now is the clock that leases are measured by: the time since an arbitrary moment.
	Now func() time.Duration
}

// MinTTL is the shortest lease.
const MinTTL = time.Second

// Leaser is a litefs.Leaser and litefs.Registry. It is safe for concurrent use.
type Leaser struct {
	opt Options

	// timeout bounds each call of the store. A third of the TTL: a renewal that hangs leaves time for
	// another one.
	timeout time.Duration

	// poll is the time between two looks of a candidate at a lock. It is how late a candidate can see
	// the last renewal, and so part of the time without a primary.
	poll time.Duration

	slot leaseterm.Slot[Lease, string]

	mu   sync.Mutex // guards what is below
	seen sighting   // how long another's lease has been standing
}

var (
	_ litefs.Leaser   = (*Leaser)(nil)
	_ litefs.Registry = (*Leaser)(nil)
)

// New returns a leaser. It does not yet call the store.
func New(o Options) (*Leaser, error) {
	if o.Now == nil {
		o.Now = boottime.Now
	}
	switch {
	case o.AdvertiseURL == "":
		return nil, errors.New("a node that may hold the lease needs a URL that others reach it at")
	case o.TTL < MinTTL || o.LockDelay < 0:
		return nil, fmt.Errorf("a TTL of %v and a lock-delay of %v: want at least %v, and at least 0", o.TTL, o.LockDelay, MinTTL)
	}
	l := &Leaser{opt: o, timeout: o.TTL / 3, poll: min(max(o.TTL/20, 100*time.Millisecond), 500*time.Millisecond)}
	l.slot.Had(o.Former)
	return l, nil
}

// AdvertiseURL is the base URL at which other nodes reach this one.
func (l *Leaser) AdvertiseURL() string { return l.opt.AdvertiseURL }

// String names the lease.
func (l *Leaser) String() string { return l.opt.Store.String() }

// PrimaryURL returns the URL that the holder has written into the lock. Whether that node still runs is
// not known here.
func (l *Leaser) PrimaryURL(ctx context.Context) (string, error) {
	k, _, err := l.lock(ctx)
	if err != nil {
		return "", err
	}
	if !k.Held() {
		return "", litefs.ErrNoPrimary
	}
	if k.URL == "" {
		return "", fmt.Errorf("%v does not say who has it: it has no advertise-url", l)
	}
	return k.URL, nil
}

// Acquire takes the lease if it is free, or if its holder has let it stand; see AwaitVacant. It returns
// litefs.ErrPrimaryExists if another node has it, while this leaser itself holds it, and if this node is
// a follower.
func (l *Leaser) Acquire(ctx context.Context) (litefs.Lease, error) {
	if l.opt.Follower || l.slot.Lease() != nil {
		return nil, litefs.ErrPrimaryExists
	}
	k, version, err := l.lock(ctx)
	if err != nil {
		return nil, err
	}
	if k.Held() && l.note(k, version) > 0 {
		return nil, litefs.ErrPrimaryExists
	}
	s, err := l.state(ctx)
	if err != nil {
		return nil, err
	}
	lease := &Lease{
		leaser: l, renewing: make(chan struct{}, 1),
		id: rand.Text(), token: max(k.Token, s.Fence) + 1, version: version,
		term: leaseterm.Begin(l.opt.TTL, l.opt.Now), // before the lock is written
	}
	var noted sync.WaitGroup // a disk and a server: applications may be waiting for both
	if l.opt.Remember != nil {
		noted.Go(func() { l.opt.Remember(lease.id) })
	}
	err = lease.take(ctx)
	noted.Wait()
	if errors.Is(err, ErrConflict) {
		return nil, litefs.ErrPrimaryExists
	}
	if err == nil {
		err = lease.raiseFence(ctx, s)
	}
	if err == nil && !l.slot.Adopt(lease) {
		err = litefs.ErrPrimaryExists
	}
	if err != nil {
		// The answer alone may have been lost, or the write may still come: nobody counts on it.
		l.slot.Had(lease.id)
		return nil, errors.Join(err, lease.release(context.WithoutCancel(ctx)))
	}
	return lease, nil
}

// AwaitVacant returns nil when an Acquire by this node may succeed: nobody has the lease, or its holder
// has let it stand for its TTL and lock-delay.
func (l *Leaser) AwaitVacant(ctx context.Context) error {
	for {
		k, version, err := l.lock(ctx)
		if err != nil {
			return err
		}
		if !k.Held() {
			return nil
		}
		left := l.note(k, version)
		if left <= 0 {
			return nil
		}
		if err := sleep(ctx, min(left, l.poll)); err != nil {
			return err
		}
	}
}

// note remembers that another node's lease was seen and returns how much longer it must be seen in this
// version before it may be taken.
func (l *Leaser) note(k Lock, version string) time.Duration {
	if l.slot.IsFormer(k.ID) {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seen.note(k, version, l.opt.Now(), l.opt.TTL, l.opt.LockDelay)
}

// Record returns what the last primary wrote of itself, or litefs.ErrNoRecord.
func (l *Leaser) Record(ctx context.Context) (litefs.Record, error) {
	s, err := l.state(ctx)
	if err != nil {
		return litefs.Record{}, err
	}
	if s.Record == nil {
		return litefs.Record{}, litefs.ErrNoRecord
	}
	return *s.Record, nil
}

// SetOnce stores value under name unless a value is there already, and returns the one that is there.
func (l *Leaser) SetOnce(ctx context.Context, name string, value []byte) ([]byte, error) {
	if err := litefs.ValidateRegistryValue(name, value); err != nil {
		return nil, err
	}
	d, err := l.get(ctx, name)
	if err != nil || d.Value != nil {
		return d.Value, err
	}
	_, err = l.put(ctx, name, value, d.Version)
	if err == nil {
		return value, nil
	}
	if !errors.Is(err, ErrConflict) {
		return nil, err
	}
	// Another node was first: what is there now stays.
	d, err = l.get(ctx, name)
	if err == nil && d.Value == nil {
		err = fmt.Errorf("%v: %s beside it was removed as soon as it was stored", l, name)
	}
	return d.Value, err
}

// Check reports whether the service is fit to keep a lease, as far as that can be found out.
func (l *Leaser) Check(ctx context.Context) error {
	if c, ok := l.opt.Store.(Checker); ok {
		return l.call(ctx, "try out", LockName, c.Check)
	}
	return nil
}

// Close gives back the lease, if it is held, and lets go of the connections.
func (l *Leaser) Close() error {
	lease := l.slot.Lease()
	defer l.opt.Store.Close()
	if lease == nil {
		return nil
	}
	return lease.Close()
}

// state is the document beside the lock that a holder writes; the zero value is one that is not there.
type state struct {
	// Fence and ID are of the last lease that was taken. Only its holder may write the rest.
	Fence  uint64         `json:"fence"`
	ID     string         `json:"id"`
	Writes uint64         `json:"writes"` // by that holder: no two documents are the same
	Record *litefs.Record `json:"record,omitempty"`

	version string // of the document
	exists  bool
}

func (l *Leaser) state(ctx context.Context) (s state, err error) {
	d, err := l.get(ctx, StateName)
	if err != nil {
		return state{}, err
	}
	if d.Value != nil {
		if err := json.Unmarshal(d.Value, &s); err != nil {
			return state{}, fmt.Errorf("%v: what lies beside it is no record of a primary: %w", l, err)
		}
	}
	s.version, s.exists = d.Version, d.Value != nil
	return s, nil
}

// putState replaces the state that has s.version by s.
func (l *Leaser) putState(ctx context.Context, s state) (state, error) {
	s.Writes++
	value, err := json.Marshal(s)
	if err != nil {
		return state{}, err
	}
	s.version, err = l.put(ctx, StateName, value, s.version)
	s.exists = true
	return s, err
}

// lock reads who has the lease.
func (l *Leaser) lock(ctx context.Context) (k Lock, version string, err error) {
	d, err := l.get(ctx, LockName)
	if err != nil {
		return Lock{}, "", err
	}
	if k, err = DecodeLock(d.Value); err != nil {
		return Lock{}, "", fmt.Errorf("%v %w", l, err)
	}
	return k, d.Version, nil
}

func (l *Leaser) get(ctx context.Context, name string) (d Doc, err error) {
	err = l.call(ctx, "read", name, func(ctx context.Context) (err error) {
		d, err = l.opt.Store.Get(ctx, name)
		return err
	})
	return d, err
}

func (l *Leaser) put(ctx context.Context, name string, value []byte, version string) (newVersion string, err error) {
	err = l.call(ctx, "write", name, func(ctx context.Context) (err error) {
		newVersion, err = l.opt.Store.Put(ctx, name, value, version)
		return err
	})
	return newVersion, err
}

// errNoAnswer reports that the store did not answer in time. What was asked may have been done.
var errNoAnswer = errors.New("no answer")

// call calls the store, with a time-out.
func (l *Leaser) call(ctx context.Context, verb, name string, f func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	err := f(limited)
	if err == nil || errors.Is(err, ErrConflict) {
		return err
	}
	what := verb + " " + l.String()
	if name != LockName {
		what = fmt.Sprintf("%s %s beside %v", verb, name, l)
	}
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	case limited.Err() != nil:
		return fmt.Errorf("%s: %w within %v (%v)", what, errNoAnswer, l.timeout, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// tokenOf is the token of a lease that was taken by the write that has version.
func (l *Leaser) tokenOf(count uint64, version string) (uint64, error) {
	if !l.opt.Numbered {
		return count, nil
	}
	n, err := strconv.ParseUint(version, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%v: the version %q is no number", l, version)
	}
	return n, nil
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
