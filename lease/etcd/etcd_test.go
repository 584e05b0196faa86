package etcd

import (
	"context"
	"errors"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/leasehttp"
	"github.com/litefs/litefs/internal/leaseserver"
	"github.com/litefs/litefs/lease/leasetest"
)

// The suite waits for leases to end.
func TestMain(m *testing.M) { os.Exit(leasetest.Main(m)) }

func TestConformance(t *testing.T) {
	leasetest.Run(t, leasetest.Backend{
		TTL:   MinTTL,
		Start: leaseserver.Etcd,
		Open: func(o leasetest.Options) (litefs.Leaser, error) {
			return New(Options{
				URL: o.URL, Key: o.Key, TTL: max(o.TTL, MinTTL),
				Hostname: o.Hostname, AdvertiseURL: o.AdvertiseURL, Now: o.Now, Former: o.Former, Remember: o.Remember,
			})
		},
		EndSession: func(ctx context.Context, server, key string) error {
			a, err := client(server)
			if err != nil {
				return err
			}
			var answer struct {
				KVs []struct {
					Lease int64 `json:"lease,string"`
				} `json:"kvs"`
			}
			if err := a.call(ctx, "/v3/kv/range", rangeRequest{[]byte(key)}, &answer); err != nil {
				return err
			}
			return a.revoke(ctx, answer.KVs[0].Lease)
		},
		RemoveKey: func(ctx context.Context, server, key string) error {
			a, err := client(server)
			if err != nil {
				return err
			}
			return a.call(ctx, "/v3/kv/deleterange", rangeRequest{[]byte(key)}, nil)
		},
	})
}

func client(server string) (*api, error) {
	u, err := url.Parse(server)
	if err != nil {
		return nil, err
	}
	return &api{client: leasehttp.New("etcd", u, time.Minute)}, nil
}

// A server that wants a log-in gets one, and another when it has forgotten the first; a wrong password
// is an error that does not show it.
func TestLogIn(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	s, err := leaseserver.Etcd(ctx, leaseserver.Options{Dir: t.TempDir(), Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Kill(); err != nil {
			t.Error(err)
		}
	}()
	admin, err := client(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		in   any
	}{
		{"/v3/auth/role/add", map[string]string{"name": "root"}},
		{"/v3/auth/user/add", map[string]string{"name": "root", "password": "s3cret"}},
		{"/v3/auth/user/grant", map[string]string{"user": "root", "role": "root"}},
		{"/v3/auth/enable", map[string]string{}},
	} {
		if err := admin.call(ctx, c.path, c.in, nil); err != nil {
			t.Fatal(err)
		}
	}
	open := func(userinfo string) *Leaser {
		l, err := New(Options{URL: strings.Replace(s.URL, "//", "//"+userinfo, 1) + "/prefix/", TTL: 90 * time.Second, AdvertiseURL: "http://a:1"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() }) // the server may be gone
		return l
	}
	if _, err := open("").Acquire(ctx); err == nil {
		t.Error("no error without a log-in")
	}
	_, err = open("root:wr0ng@").Acquire(ctx)
	if err == nil || strings.Contains(err.Error(), "wr0ng") {
		t.Errorf("with a wrong password: %v", err)
	}
	l := open("root:s3cret@")
	lease, err := l.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := l.String(), "the lease prefix/litefs/primary of etcd at "+s.URL; got != want {
		t.Errorf("it is called %q, want %q", got, want)
	}
	// The server forgets log-ins when it restarts.
	if err := errors.Join(s.Kill(), s.Start(ctx)); err != nil {
		t.Fatal(err)
	}
	if err := lease.Renew(ctx); err != nil {
		t.Errorf("Renew after a restart: %v", err)
	}
}
