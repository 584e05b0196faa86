// Package etcd is the Leaser of a cluster that elects its primary by a key of etcd that is bound to an
// etcd lease. It speaks the JSON form of etcd's version 3 API (etcd 3.4 and later).
//
// The key exists while somebody is the primary and says who; etcd removes it with the lease. Beside it,
// and not ended with it, lie the record of the last primary, the cluster's id, and what else is stored
// with SetOnce. docs/lease.md has the formats and the bounds of time.
package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/boottime"
	"github.com/litefs/litefs/internal/leasehttp"
	"github.com/litefs/litefs/internal/leaseterm"
)

// Defaults.
const (
	DefaultKey = "litefs/primary"
	DefaultTTL = 10 * time.Second
)

// MinTTL is the shortest lease of an etcd that elects its leader within a second, as it does by
// default: it gives no shorter one.
const MinTTL = 2 * time.Second

// Options of a Leaser. Zero values are the defaults, except where it says otherwise.
type Options struct {
	URL string        // of etcd's client port; its user and password log in; its path goes before every key
	Key string        // the key that is bound to the lease
	TTL time.Duration // how long a lease lasts after a renewal: whole seconds, from MinTTL on

	Hostname     string // this node's, for those who read the key; may be empty
	AdvertiseURL string // where other nodes reach this one; required

	// Former is what Remember was last called with by the process that had this node's data before. That
	// one is dead, so its lease is taken over without waiting for it. Remember may be nil.
	Former   string
	Remember func(lease string)

	// Follower never takes the lease: Acquire always finds it taken.
	Follower bool

	// Now is the clock that leases are measured by: the time since an arbitrary moment.
	Now func() time.Duration
}

// Leaser is a litefs.Leaser and litefs.Registry. It is safe for concurrent use.
type Leaser struct {
	opt Options
	key string // with the prefix of the URL
	api *api

	slot leaseterm.Slot[Lease, int64]
}

var (
	_ litefs.Leaser   = (*Leaser)(nil)
	_ litefs.Registry = (*Leaser)(nil)
)

// New returns a leaser. It does not yet talk to etcd.
func New(o Options) (*Leaser, error) {
	if o.Key == "" {
		o.Key = DefaultKey
	}
	if o.TTL == 0 {
		o.TTL = DefaultTTL
	}
	if o.Now == nil {
		o.Now = boottime.Now
	}
	u, err := url.Parse(o.URL)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		// The URL may hold a password: it is not repeated.
		return nil, errors.New("the URL of etcd must be like http://127.0.0.1:2379")
	case o.AdvertiseURL == "":
		return nil, errors.New("a node that may hold the lease needs a URL that others reach it at")
	case o.TTL < MinTTL || o.TTL%time.Second != 0:
		return nil, fmt.Errorf("a TTL of %v: etcd counts whole seconds, from %v on", o.TTL, MinTTL)
	}
	l := &Leaser{
		opt: o,
		key: strings.Trim(strings.Trim(u.Path, "/")+"/"+strings.Trim(o.Key, "/"), "/"),
		// A third: a renewal that hangs leaves time for another one.
		api: &api{client: leasehttp.New("etcd", u, o.TTL/3)},
	}
	// What is no number was another service's: the configuration has changed since.
	if id, err := strconv.ParseInt(o.Former, 10, 64); err == nil {
		l.slot.Had(id)
	}
	if u.User != nil {
		l.api.user = u.User.Username()
		l.api.password, _ = u.User.Password()
	}
	return l, nil
}

// AdvertiseURL is the base URL at which other nodes reach this one.
func (l *Leaser) AdvertiseURL() string { return l.opt.AdvertiseURL }

// String names the lease: the key, with the prefix that the URL gave it, and the server.
func (l *Leaser) String() string {
	return fmt.Sprintf("the lease %s of etcd at %s", l.key, l.api.client.Base())
}

// holder is what the key holds: who the primary is.
type holder struct {
	Hostname string `json:"hostname"`
	URL      string `json:"advertise-url"`
}

// PrimaryURL returns the URL that the holder of the key has written into it. Whether that node still
// runs is not known here.
func (l *Leaser) PrimaryURL(ctx context.Context) (string, error) {
	kv, _, err := l.api.get(ctx, l.key)
	if err != nil {
		return "", err
	}
	if !kv.exists() {
		return "", litefs.ErrNoPrimary
	}
	var h holder
	if err := json.Unmarshal(kv.Value, &h); err != nil || h.URL == "" {
		return "", fmt.Errorf("etcd key %s does not say who the primary is", l.key)
	}
	return h.URL, nil
}

// Acquire takes the lease if nobody has it. It returns litefs.ErrPrimaryExists if another node does,
// while this leaser itself holds it, and if this node is a follower.
func (l *Leaser) Acquire(ctx context.Context) (litefs.Lease, error) {
	if l.opt.Follower || l.slot.Lease() != nil {
		return nil, litefs.ErrPrimaryExists
	}
	kv, _, err := l.api.get(ctx, l.key)
	if err != nil {
		return nil, err
	}
	if kv.exists() && !l.slot.IsFormer(kv.Lease) {
		return nil, litefs.ErrPrimaryExists
	}
	// Before the first request of which etcd could count the TTL.
	lease := &Lease{leaser: l, term: leaseterm.Begin(l.opt.TTL, l.opt.Now), renewing: make(chan struct{}, 1)}
	if lease.id, err = l.api.grant(ctx, l.opt.TTL); err != nil {
		return nil, err
	}
	var noted sync.WaitGroup // a disk and a server: applications may be waiting for both
	if l.opt.Remember != nil {
		noted.Go(func() { l.opt.Remember(strconv.FormatInt(lease.id, 10)) })
	}
	err = l.take(ctx, lease, kv)
	noted.Wait()
	if err == nil && !l.slot.Adopt(lease) {
		err = litefs.ErrPrimaryExists
	}
	if err != nil {
		// The answer alone may have been lost: without its lease the key is free again.
		return nil, errors.Join(err, l.api.revoke(context.WithoutCancel(ctx), lease.id))
	}
	if kv.exists() {
		// No key hangs on the lease of the process before any more. If it stays, etcd ends it.
		_ = l.api.revoke(ctx, kv.Lease)
	}
	return lease, nil
}

// take writes the key, bound to lease, if it still is as it was seen: absent, or of the process before.
// To end that one's lease and to make the key then would not do: another node could come in between.
func (l *Leaser) take(ctx context.Context, lease *Lease, seen keyValue) error {
	value, err := json.Marshal(holder{Hostname: l.opt.Hostname, URL: l.opt.AdvertiseURL})
	if err != nil {
		return err
	}
	done, revision, _, err := l.api.txn(ctx, txnRequest{
		Compare: []compare{writtenAt(l.key, seen.ModRevision)},
		Success: []op{put(l.key, value, lease.id)},
	})
	if err == nil && !done {
		err = litefs.ErrPrimaryExists
	}
	lease.token = revision
	return err
}

// AwaitVacant returns nil when nobody has the key.
func (l *Leaser) AwaitVacant(ctx context.Context) error {
	for {
		kv, revision, err := l.api.get(ctx, l.key)
		if err != nil {
			return err
		}
		if !kv.exists() || l.slot.IsFormer(kv.Lease) {
			return nil
		}
		// A watch ends with the first event. One that is silent may be of a server that hangs: it is
		// left from time to time to ask again.
		if err := l.api.awaitRemoval(ctx, l.key, revision+1, l.opt.TTL/2); err != nil {
			return err
		}
	}
}

// Record returns what the last primary wrote of itself, or litefs.ErrNoRecord.
func (l *Leaser) Record(ctx context.Context) (litefs.Record, error) {
	kv, _, err := l.api.get(ctx, l.beside(recordName))
	if err != nil {
		return litefs.Record{}, err
	}
	if !kv.exists() {
		return litefs.Record{}, litefs.ErrNoRecord
	}
	var r litefs.Record
	if err := json.Unmarshal(kv.Value, &r); err != nil {
		return litefs.Record{}, fmt.Errorf("etcd key %s holds no record of a primary: %w", l.beside(recordName), err)
	}
	return r, nil
}

// SetOnce stores value under name unless a value is there already, and returns the one that is there.
func (l *Leaser) SetOnce(ctx context.Context, name string, value []byte) ([]byte, error) {
	if err := litefs.ValidateRegistryValue(name, value); err != nil {
		return nil, err
	}
	key := l.beside(name)
	// Who may only read can read what is there.
	kv, _, err := l.api.get(ctx, key)
	if err != nil || kv.exists() {
		return kv.Value, err
	}
	done, _, kv, err := l.api.txn(ctx, txnRequest{
		Compare: []compare{absent(key)},
		Success: []op{put(key, value, 0)},
		Failure: []op{get(key)},
	})
	if err != nil {
		return nil, err
	}
	if done {
		return value, nil
	}
	return kv.Value, nil
}

// recordName is the name of the record among the values beside the key.
const recordName = "record"

func (l *Leaser) beside(name string) string { return l.key + "/" + name }

// Close gives back the lease, if it is held, and lets go of the connections.
func (l *Leaser) Close() error {
	lease := l.slot.Lease()
	defer l.api.client.Close()
	if lease == nil {
		return nil
	}
	return lease.Close()
}
