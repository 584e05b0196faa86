// Package bucket is the Leaser of a cluster that elects its primary by an object in an object store: two
// nodes and a bucket are a cluster with failover, with the bucket as the third vote. Package cas says how;
// this is its store: each document is an object, and a write has the condition that the object is the one
// that was read (If-Match), or that there is none (If-None-Match).
//
// docs/lease.md has the formats and what a bucket must be set to.
package bucket

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/litefs/litefs/internal/objstore"
	"github.com/litefs/litefs/lease/cas"
)

// Defaults.
const (
	DefaultKey       = "litefs/primary"
	DefaultTTL       = 10 * time.Second
	DefaultLockDelay = time.Second
)

// Options of a Leaser. Zero values are the defaults, except where it says otherwise.
type Options struct {
	Objects objstore.Store // required

	// Check reports whether the store honours conditions. It is called before the first write, and again
	// until it has returned nil: a store that ignores them would give the lease to everybody. nil: it does.
	Check func(context.Context) error

	Key string // what the objects' keys begin with

	TTL       time.Duration // how long a lease lasts after a renewal
	LockDelay time.Duration // how long nobody can have the lease after one that was not given back

	// See cas.Options.
	Hostname, AdvertiseURL string
	Former                 string
	Remember               func(id string)
	Follower               bool
	Now                    func() time.Duration
}

// New returns a leaser. It does not yet call the store.
func New(o Options) (*cas.Leaser, error) {
	s := &store{objects: o.Objects, check: o.Check, key: strings.Trim(cmp.Or(o.Key, DefaultKey), "/")}
	if err := objstore.CheckKey(s.object(cas.LockName)); err != nil {
		return nil, fmt.Errorf("the key of the lease: %w", err)
	}
	return cas.New(cas.Options{
		Store: s, TTL: cmp.Or(o.TTL, DefaultTTL), LockDelay: cmp.Or(o.LockDelay, DefaultLockDelay),
		Hostname: o.Hostname, AdvertiseURL: o.AdvertiseURL,
		Former: o.Former, Remember: o.Remember, Follower: o.Follower, Now: o.Now,
	})
}

// store keeps documents as objects. An ETag is a hash of the content, or may be: package cas never writes
// one content twice.
type store struct {
	objects objstore.Store
	key     string

	mu    sync.Mutex                  // guards what is below
	check func(context.Context) error // nil: it has been made
}

var (
	_ cas.Store   = (*store)(nil)
	_ cas.Checker = (*store)(nil)
)

// maxDocument bounds what is read of a document, in bytes.
const maxDocument = 64 << 10

// object is the key of a document. The lock's has a part more, too: to a directory it cannot be a file
// and have others below it.
func (s *store) object(name string) string {
	if name == cas.LockName {
		name = "lock"
	}
	return s.key + "/" + name
}

func (s *store) String() string { return fmt.Sprintf("the lease %s in %s", s.key, s.objects) }

// Close is cas.Store's. Connections that are idle end by themselves.
func (s *store) Close() {}

// Get is cas.Store's.
func (s *store) Get(ctx context.Context, name string) (cas.Doc, error) {
	value, etag, err := objstore.ReadAll(ctx, s.objects, s.object(name), maxDocument)
	switch {
	case errors.Is(err, objstore.ErrNotFound):
		return cas.Doc{}, nil
	case err != nil:
		return cas.Doc{}, err
	case etag == "":
		return cas.Doc{}, fmt.Errorf("the object %s has no ETag", s.object(name))
	}
	return cas.Doc{Value: value, Version: etag}, nil
}

// Put is cas.Store's.
func (s *store) Put(ctx context.Context, name string, value []byte, version string) (etag string, err error) {
	if err := s.Check(ctx); err != nil {
		return "", err
	}
	key, body := s.object(name), bytes.NewReader(value)
	if version == "" {
		etag, err = s.objects.PutIfAbsent(ctx, key, body, objstore.Attrs{})
	} else {
		etag, err = s.objects.PutIfMatch(ctx, key, version, body, objstore.Attrs{})
	}
	switch {
	case errors.Is(err, objstore.ErrExists), errors.Is(err, objstore.ErrChanged):
		return "", cas.ErrConflict
	case err == nil && etag == "":
		err = fmt.Errorf("the object %s was written and has no ETag", key)
	}
	return etag, err
}

// Check is cas.Checker's. It asks the service once.
func (s *store) Check(ctx context.Context) error {
	s.mu.Lock()
	check := s.check
	s.mu.Unlock()
	if check == nil {
		return nil
	}
	if err := check(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.check = nil
	return nil
}
