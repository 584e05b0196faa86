// Package kubernetes is the Leaser of a cluster that elects its primary by a Lease object of Kubernetes
// (coordination.k8s.io/v1). Package cas says how; this is its store: each document is a Lease with the
// document in an annotation, and a write names the resourceVersion that was read, without which the API
// server refuses it.
//
// It speaks to the API server by plain HTTP requests with the service account's token: the project's
// client library would bring more code than all of litefs has. docs/lease.md has the formats and the
// permissions.
package kubernetes

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/litefs/litefs/internal/leasehttp"
	"github.com/litefs/litefs/lease/cas"
)

// Defaults.
const (
	DefaultName      = "litefs"
	DefaultTTL       = 10 * time.Second
	DefaultLockDelay = time.Second
)

// Options of a Leaser. Zero values are the defaults, except where it says otherwise.
type Options struct {
	URL string // of the API server; required

	// Dir has the files token and ca.crt of a service account. They are read again, for they change. Empty:
	// no token, and the authorities that the machine trusts.
	Dir string

	Namespace string // required
	Name      string // of the Lease; others beside it begin with it

	TTL       time.Duration // how long a lease lasts after a renewal
	LockDelay time.Duration // how long nobody can have the lease after one that was not given back

	// See cas.Options.
	Hostname, AdvertiseURL string
	Former                 string
	Remember               func(id string)
	Follower               bool
	Now                    func() time.Duration
}

// nameForm is what the API server takes as the name of a Lease, with room for what is added to it.
var nameForm = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,198}[a-z0-9])?$`)

// New returns a leaser. It does not yet talk to the API server.
func New(o Options) (*cas.Leaser, error) {
	ttl := cmp.Or(o.TTL, DefaultTTL)
	name := cmp.Or(o.Name, DefaultName)
	u, err := url.Parse(o.URL)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil:
		return nil, errors.New("the URL of the API server must be like https://10.0.0.1:443, without a credential")
	case !nameForm.MatchString(name):
		return nil, fmt.Errorf("%q is no name of a Lease: want a-z and 0-9, and - or . between", name)
	case !nameForm.MatchString(o.Namespace):
		return nil, fmt.Errorf("%q is no namespace: want a-z and 0-9, and - between", o.Namespace)
	}
	s := &store{
		client:    leasehttp.New("kubernetes", u, ttl/3),
		path:      strings.TrimRight(u.Path, "/") + "/apis/" + apiVersion + "/namespaces/" + o.Namespace + "/leases",
		namespace: o.Namespace, name: name, dir: o.Dir,
	}
	if o.Dir != "" {
		s.client.Trust(s.file("ca.crt"))
	}
	return cas.New(cas.Options{
		Store: s, TTL: ttl, LockDelay: cmp.Or(o.LockDelay, DefaultLockDelay),
		Hostname: o.Hostname, AdvertiseURL: o.AdvertiseURL,
		Former: o.Former, Remember: o.Remember, Follower: o.Follower, Now: o.Now,
	})
}
