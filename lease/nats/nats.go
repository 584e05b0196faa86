// Package nats is the Leaser of a cluster that elects its primary by a key of a bucket in NATS
// JetStream. Package cas says how; this is its store: each document is a key, and a write names the
// revision at which the key was written last, without which the server refuses it.
//
// docs/lease.md has the formats and what a server must be set to.
package nats

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/litefs/litefs/lease/cas"
)

// Defaults.
const (
	DefaultBucket    = "litefs"
	DefaultKey       = "litefs/primary"
	DefaultTTL       = 10 * time.Second
	DefaultLockDelay = time.Second
)

// Options of a Leaser. Zero values are the defaults, except where it says otherwise.
type Options struct {
	// URL of a server, or of several with commas between. A user and a password, or a token in the
	// place of the user, log in. The scheme is nats, or tls.
	URL string

	// Credentials is a file with a user's token and key, as nsc writes it; empty: none.
	Credentials string

	Bucket string // which is made when it is not there
	Key    string // the key that says who has the lease

	// Replicas is how many servers keep a bucket that is made here: 1, 3 or 5. It says nothing about one
	// that is there.
	Replicas int

	TTL       time.Duration // how long a lease lasts after a renewal
	LockDelay time.Duration // how long nobody can have the lease after one that was not given back

	// See cas.Options.
	Hostname, AdvertiseURL string
	Former                 string
	Remember               func(id string)
	Follower               bool
	Now                    func() time.Duration
}

// New returns a leaser. It does not yet talk to a server.
func New(o Options) (*cas.Leaser, error) {
	s := &store{
		bucket: cmp.Or(o.Bucket, DefaultBucket), key: strings.Trim(cmp.Or(o.Key, DefaultKey), "/"),
		replicas: cmp.Or(o.Replicas, 1),
	}
	ttl := cmp.Or(o.TTL, DefaultTTL)
	urls, shown, err := servers(o.URL)
	switch {
	case err != nil:
		return nil, err
	case !isName(s.bucket, "-_"):
		return nil, fmt.Errorf("the bucket %q of nats: want letters, digits, - and _", s.bucket)
	case !isName(s.key, "-_/=."):
		return nil, fmt.Errorf("the key %q of nats: want letters, digits, and any of -_./= between", s.key)
	}
	s.shown = shown
	s.dialer = dialer{urls: urls, credentials: o.Credentials, timeout: ttl / 3}
	return cas.New(cas.Options{
		Store: s, Numbered: true, TTL: ttl, LockDelay: cmp.Or(o.LockDelay, DefaultLockDelay),
		Hostname: o.Hostname, AdvertiseURL: o.AdvertiseURL,
		Former: o.Former, Remember: o.Remember, Follower: o.Follower, Now: o.Now,
	})
}

// servers takes a list of URLs apart; shown is what may be repeated of them.
func servers(list string) (urls []string, shown string, err error) {
	var hosts []string
	for s := range strings.SplitSeq(list, ",") {
		s = strings.TrimSpace(s)
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "nats" && u.Scheme != "tls" || u.Hostname() == "" {
			// The URL may hold a password: it is not repeated.
			return nil, "", errors.New("the URL of nats must be like nats://127.0.0.1:4222, or several with commas between")
		}
		urls = append(urls, s)
		hosts = append(hosts, u.Scheme+"://"+u.Host)
	}
	return urls, strings.Join(hosts, ","), nil
}

// isName reports whether s is made of letters, digits and the characters of also, and can be a part of a
// subject.
func isName(s, also string) bool {
	const alphanumeric = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	return s != "" && strings.Trim(s, alphanumeric+also) == "" && !strings.Contains("."+s+".", "..")
}
