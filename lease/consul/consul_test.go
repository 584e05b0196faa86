package consul

import (
	"context"
	"net/http"
	"net/url"
	"os"
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
		TTL:   2 * time.Second,
		Start: leaseserver.Consul,
		Open: func(o leasetest.Options) (litefs.Leaser, error) {
			return New(Options{
				URL: o.URL, Key: o.Key, TTL: o.TTL, LockDelay: 200 * time.Millisecond,
				Hostname: o.Hostname, AdvertiseURL: o.AdvertiseURL, Now: o.Now, Former: o.Former, Remember: o.Remember,
			})
		},
		EndSession: func(ctx context.Context, server, key string) error {
			api, err := client(server)
			if err != nil {
				return err
			}
			var entries []entry
			if _, err := api.Do(ctx, leasehttp.Request{Method: http.MethodGet, Path: kvPath(key)}, &entries); err != nil {
				return err
			}
			_, err = api.Do(ctx, leasehttp.Request{Method: http.MethodPut, Path: "/v1/session/destroy/" + entries[0].Session}, nil)
			return err
		},
		RemoveKey: func(ctx context.Context, server, key string) error {
			api, err := client(server)
			if err != nil {
				return err
			}
			_, err = api.Do(ctx, leasehttp.Request{Method: http.MethodDelete, Path: kvPath(key)}, nil)
			return err
		},
	})
}

func client(server string) (*leasehttp.Client, error) {
	u, err := url.Parse(server)
	if err != nil {
		return nil, err
	}
	return leasehttp.New("consul", u, time.Minute), nil
}
