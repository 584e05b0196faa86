package bucket

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/leaseserver"
	"github.com/litefs/litefs/internal/objstore"
	"github.com/litefs/litefs/internal/objstore/s3"
	"github.com/litefs/litefs/lease/cas"
	"github.com/litefs/litefs/lease/leasetest"
)

// The suite waits for leases to end.
func TestMain(m *testing.M) { os.Exit(leasetest.Main(m)) }

func TestConformance(t *testing.T) {
	leasetest.Run(t, leasetest.Backend{
		TTL:   2 * time.Second,
		Start: leaseserver.S3,
		Open: func(o leasetest.Options) (litefs.Leaser, error) {
			s, err := objects(o.URL)
			if err != nil {
				return nil, err
			}
			return New(Options{
				Objects: s, Key: o.Key, TTL: o.TTL, LockDelay: 200 * time.Millisecond,
				Hostname: o.Hostname, AdvertiseURL: o.AdvertiseURL, Now: o.Now, Former: o.Former, Remember: o.Remember,
			})
		},
		// Somebody makes the lock nobody's.
		EndSession: func(ctx context.Context, server, key string) error {
			s, err := objects(server)
			if err != nil {
				return err
			}
			_, etag, err := objstore.ReadAll(ctx, s, key+"/lock", maxDocument)
			if err == nil {
				_, err = s.PutIfMatch(ctx, key+"/lock", etag, bytes.NewReader(cas.Lock{}.Encode()), objstore.Attrs{})
			}
			return err
		},
		RemoveKey: func(ctx context.Context, server, key string) error {
			s, err := objects(server)
			if err != nil {
				return err
			}
			return s.Delete(ctx, key+"/lock")
		},
	})
}

func objects(server string) (*s3.Store, error) {
	return s3.New(s3.Options{
		Bucket: leaseserver.S3Bucket, Endpoint: server,
		AccessKey: leaseserver.S3AccessKey, SecretKey: leaseserver.S3SecretKey,
	})
}

// A wrong secret key is an error that does not show it, and no lease.
func TestWrongKey(t *testing.T) {
	server, err := leaseserver.S3(t.Context(), leaseserver.Options{Dir: t.TempDir(), Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := server.Kill(); err != nil {
			t.Error(err)
		}
	}()
	s, err := s3.New(s3.Options{Bucket: leaseserver.S3Bucket, Endpoint: server.URL, AccessKey: leaseserver.S3AccessKey, SecretKey: "wr0ng"})
	if err != nil {
		t.Fatal(err)
	}
	l, err := New(Options{Objects: s, AdvertiseURL: "http://a:1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Acquire(t.Context()); err == nil || errors.Is(err, litefs.ErrPrimaryExists) || strings.Contains(err.Error(), "wr0ng") {
		t.Errorf("with a wrong key: %v", err)
	}
}

// The check of conditions comes before the first write, and nothing is written before it has passed; the
// real store passes it.
func TestCheck(t *testing.T) {
	ctx := t.Context()
	dir, err := objstore.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	failure := objstore.ErrConditions
	l, err := New(Options{Objects: dir, AdvertiseURL: "http://a:1", Check: func(context.Context) error { return failure }})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := l.Acquire(ctx); !errors.Is(err, objstore.ErrConditions) {
			t.Fatalf("Acquire in a store that ignores conditions: %v", err)
		}
	}
	if _, err := l.SetOnce(ctx, "secret", []byte("x")); !errors.Is(err, objstore.ErrConditions) {
		t.Fatalf("SetOnce in a store that ignores conditions: %v", err)
	}
	for info, err := range dir.List(ctx, "", "") {
		t.Errorf("%s was written (%v)", info.Key, err)
	}
	failure = nil
	lease, err := l.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	failure = objstore.ErrConditions // it was asked
	if err := lease.Renew(ctx); err != nil {
		t.Error(err)
	}

	server, err := leaseserver.S3(ctx, leaseserver.Options{Dir: t.TempDir(), Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := server.Kill(); err != nil {
			t.Error(err)
		}
	}()
	s, err := objects(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(ctx, "litefs/check-"+rand.Text()); err != nil {
		t.Error(err)
	}
}
