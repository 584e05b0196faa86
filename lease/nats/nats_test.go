package nats

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/leaseserver"
	"github.com/litefs/litefs/lease/cas"
	"github.com/litefs/litefs/lease/leasetest"
)

// The suite waits for leases to end.
func TestMain(m *testing.M) { os.Exit(leasetest.Main(m)) }

func TestConformance(t *testing.T) {
	leasetest.Run(t, leasetest.Backend{
		TTL:   2 * time.Second,
		Start: leaseserver.NATS,
		Wire: &leasetest.Wire{
			IsRequest: func(b []byte) bool { return bytes.Contains(b, []byte("PUB ")) },
			IsAnswer:  func(b []byte) bool { return bytes.Contains(b, []byte("MSG ")) },
			Complaint: []byte("-ERR 'no leader'\r\n"),
		},
		Open: func(o leasetest.Options) (litefs.Leaser, error) {
			return New(Options{
				URL: o.URL, Key: o.Key, TTL: o.TTL, LockDelay: 200 * time.Millisecond,
				Hostname: o.Hostname, AdvertiseURL: o.AdvertiseURL, Now: o.Now, Former: o.Former, Remember: o.Remember,
			})
		},
		// Somebody makes the lock nobody's.
		EndSession: func(_ context.Context, server, key string) error {
			return publish(server, key, nil, cas.Lock{}.Encode())
		},
		RemoveKey: func(_ context.Context, server, key string) error {
			return publish(server, key, nats.Header{"KV-Operation": {"DEL"}}, nil)
		},
	})
}

// publish writes a key without a condition.
func publish(server, key string, h nats.Header, data []byte) error {
	nc, err := nats.Connect(server)
	if err != nil {
		return err
	}
	defer nc.Close()
	_, err = nc.RequestMsg(&nats.Msg{Subject: "$KV." + DefaultBucket + "." + key, Header: h, Data: data}, time.Minute)
	return err
}

func startServer(t *testing.T, args ...string) *leaseserver.Server {
	t.Helper()
	s, err := leaseserver.NATS(t.Context(), leaseserver.Options{Dir: t.TempDir(), Log: t.Output(), Args: args})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Kill(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func open(t *testing.T, o Options) *cas.Leaser {
	t.Helper()
	o.AdvertiseURL = "http://a:1"
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // the server may be gone
	return l
}

// A server that wants a log-in gets one; a wrong password is an error that does not show it. Of several
// servers one that answers is enough.
func TestLogIn(t *testing.T) {
	s := startServer(t, "--user", "litefs", "--pass", "s3cret")
	host := strings.TrimPrefix(s.URL, "nats://")
	for _, url := range []string{"nats://litefs:wr0ng@" + host, "nats://wr0ng@" + host} {
		_, err := open(t, Options{URL: url}).Acquire(t.Context())
		if err == nil || strings.Contains(err.Error(), "wr0ng") || errors.Is(err, litefs.ErrPrimaryExists) {
			t.Errorf("with a wrong password: %v", err)
		}
	}
	l := open(t, Options{URL: "nats://litefs:s3cret@" + host + ",nats://litefs:s3cret@127.0.0.1:1", Key: "/a/b/"})
	if _, err := l.Acquire(t.Context()); err != nil {
		t.Error(err)
	}
	if got, want := l.String(), "the lease a/b of the bucket litefs of nats at "+s.URL+",nats://127.0.0.1:1"; got != want {
		t.Errorf("it is called %q, want %q", got, want)
	}
	if _, err := New(Options{URL: "nats://u:s3cret@", AdvertiseURL: "http://a"}); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("a URL without a host: %v", err)
	}
}

// A bucket that forgets is refused, with what to do.
func TestForgetfulBucket(t *testing.T) {
	s := startServer(t)
	nc, err := nats.Connect(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := nc.JetStream()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		config nats.KeyValueConfig
		want   string
	}{
		{nats.KeyValueConfig{Bucket: "old", TTL: time.Hour}, "the bucket old has a TTL"},
		{nats.KeyValueConfig{Bucket: "memory", Storage: nats.MemoryStorage}, "the bucket memory is kept in memory"},
		{nats.KeyValueConfig{Bucket: "good", History: 5}, ""},
	} {
		if _, err := js.CreateKeyValue(&c.config); err != nil {
			t.Fatal(err)
		}
		_, err := open(t, Options{URL: s.URL, Bucket: c.config.Bucket}).Acquire(t.Context())
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.config.Bucket, err, c.want)
		}
	}
	// Who looks makes nothing.
	if _, err := open(t, Options{URL: s.URL}).PrimaryURL(t.Context()); !errors.Is(err, litefs.ErrNoPrimary) {
		t.Error(err)
	}
	if _, err := js.KeyValue(DefaultBucket); !errors.Is(err, nats.ErrBucketNotFound) {
		t.Errorf("the bucket after a look: %v", err)
	}
	// What is made here is a bucket to other clients.
	if _, err := open(t, Options{URL: s.URL}).Acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(DefaultBucket)
	if err != nil {
		t.Fatal(err)
	}
	if e, err := kv.Get(DefaultKey); err != nil || !strings.Contains(string(e.Value()), "http://a:1") {
		t.Errorf("another client reads %v, %v", e, err)
	}
}
