package s3_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/leaseserver"
	"github.com/litefs/litefs/internal/objstore"
	"github.com/litefs/litefs/internal/objstore/objtest"
	"github.com/litefs/litefs/internal/objstore/s3"
)

// open starts a real S3 server with an empty bucket.
func open(t *testing.T, prefix string) (*leaseserver.Server, func(t *testing.T) objstore.Store) {
	server, err := leaseserver.S3(t.Context(), leaseserver.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Kill(); err != nil {
			t.Error(err)
		}
	})
	var n atomic.Int64
	return server, func(t *testing.T) objstore.Store {
		s, err := s3.New(s3.Options{
			Bucket: leaseserver.S3Bucket, Prefix: fmt.Sprint(prefix, n.Add(1)), Endpoint: server.URL,
			AccessKey: leaseserver.S3AccessKey, SecretKey: leaseserver.S3SecretKey,
		})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
}

func TestS3(t *testing.T) {
	_, store := open(t, "some/where")
	objtest.Run(t, store)
}

// withParts is a store whose objects of more than 5 MiB, the least that services take for a part, go up in parts.
func withParts(t *testing.T, server *leaseserver.Server, transport http.RoundTripper) *s3.Store {
	t.Helper()
	s, err := s3.New(s3.Options{
		Bucket: leaseserver.S3Bucket, Prefix: "parts" + strings.ToLower(rand.Text()), Endpoint: server.URL, PartSize: 5 << 20,
		AccessKey: leaseserver.S3AccessKey, SecretKey: leaseserver.S3SecretKey, Client: &http.Client{Transport: transport},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestS3Parts(t *testing.T) {
	server, _ := open(t, "p")
	objtest.Run(t, func(t *testing.T) objstore.Store { return withParts(t, server, http.DefaultTransport) })
}

// failing fails the requests that match.
type failing struct {
	match func(r *http.Request) bool
	count atomic.Int64
}

func (f *failing) RoundTrip(r *http.Request) (*http.Response, error) {
	if f.match(r) {
		f.count.Add(1)
		return nil, errors.New("a fault of the test")
	}
	return http.DefaultTransport.RoundTrip(r)
}

// TestParts: an object in parts has the bytes and the time that it was given, and is written once: of several
// writers at the same time one wins, and the others are told. One whose upload fails, at whatever request, is
// not there, and can be written after.
func TestParts(t *testing.T) {
	server, _ := open(t, "p")
	content := make([]byte, 12<<20+345)
	for i := range content {
		content[i] = byte(i * i >> 7)
	}
	s := withParts(t, server, http.DefaultTransport)
	at := time.Date(2026, 1, 2, 3, 4, 5, 678_000_000, time.UTC)
	var won atomic.Int64
	var group sync.WaitGroup
	for i := range 3 {
		group.Go(func() {
			mine := slices.Clone(content)
			mine[len(mine)-1] = byte(i)
			switch _, err := s.PutIfAbsent(t.Context(), "raced", bytes.NewReader(mine), objstore.Attrs{Time: at}); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, objstore.ErrExists):
				t.Error(err)
			}
		})
	}
	group.Wait()
	if won.Load() != 1 {
		t.Errorf("%d writers of one object have won", won.Load())
	}
	got, _, err := objstore.ReadAll(t.Context(), s, "raced", 1<<30)
	if err != nil || len(got) != len(content) || !bytes.Equal(got[:len(got)-1], content[:len(got)-1]) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	o, err := s.Get(t.Context(), "raced", objstore.Range{Len: 1})
	if err != nil || !o.Modified.Equal(at) {
		t.Errorf("%v, want the time %s", err, at)
	}
	if err == nil {
		err = o.Body.Close()
	}
	if _, perr := s.PutIfAbsent(t.Context(), "raced", bytes.NewReader(content), objstore.Attrs{}); err != nil || !errors.Is(perr, objstore.ErrExists) {
		t.Errorf("a second put: %v, %v", perr, err)
	}

	for name, match := range map[string]func(r *http.Request) bool{
		"the begin": func(r *http.Request) bool { return r.Method == http.MethodPost && r.URL.Query().Has("uploads") },
		"a part":    func(r *http.Request) bool { return r.URL.Query().Get("partNumber") == "2" },
		"the end":   func(r *http.Request) bool { return r.Method == http.MethodPost && r.URL.Query().Has("uploadId") },
	} {
		f := &failing{match: match}
		s := withParts(t, server, f)
		if _, err := s.PutIfAbsent(t.Context(), "failed", bytes.NewReader(content), objstore.Attrs{}); err == nil || f.count.Load() == 0 {
			t.Errorf("%s fails: %v", name, err)
		}
		if _, err := s.Get(t.Context(), "failed", objstore.Range{}); !errors.Is(err, objstore.ErrNotFound) {
			t.Errorf("after %s has failed: %v", name, err)
		}
		f.match = func(*http.Request) bool { return false }
		if _, err := s.PutIfAbsent(t.Context(), "failed", bytes.NewReader(content), objstore.Attrs{}); err != nil {
			t.Errorf("after %s has failed: %v", name, err)
		}
		if got, _, err := objstore.ReadAll(t.Context(), s, "failed", 1<<30); err != nil || !bytes.Equal(got, content) {
			t.Errorf("after %s has failed: %d bytes, %v", name, len(got), err)
		}
	}
}

func TestCheck(t *testing.T) {
	_, store := open(t, "p")
	s := store(t).(*s3.Store)
	for range 2 {
		if err := s.Check(t.Context(), "check/1"); err != nil {
			t.Fatal(err)
		}
	}
	for info, err := range s.List(t.Context(), "", "") {
		t.Errorf("left: %v %v", info, err)
	}
}

// forgetful loses the answer to every request at its first attempt: it was carried out.
type forgetful struct{ seen map[string]int }

func (f *forgetful) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := http.DefaultTransport.RoundTrip(r)
	what := r.Method + r.URL.Path + r.Header.Get("If-Match") + r.Header.Get("If-None-Match")
	if f.seen[what]++; err == nil && f.seen[what]%2 == 1 {
		return nil, errors.Join(errors.New("the answer is lost"), resp.Body.Close())
	}
	return resp, err
}

// TestCheckLostAnswers: a service whose answers get lost does honour conditions.
func TestCheckLostAnswers(t *testing.T) {
	server, _ := open(t, "p")
	s, err := s3.New(s3.Options{
		Bucket: leaseserver.S3Bucket, Endpoint: server.URL, AccessKey: leaseserver.S3AccessKey, SecretKey: leaseserver.S3SecretKey,
		Client: &http.Client{Transport: &forgetful{map[string]int{}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(t.Context(), "check"); err != nil {
		t.Error(err)
	}
}

// TestErrors: what people get to read names the bucket and what is wrong, in one line.
func TestErrors(t *testing.T) {
	server, _ := open(t, "p")
	for name, o := range map[string]s3.Options{
		"no such bucket": {Bucket: "nobucket", Endpoint: server.URL, AccessKey: leaseserver.S3AccessKey, SecretKey: leaseserver.S3SecretKey},
		"wrong key":      {Bucket: leaseserver.S3Bucket, Endpoint: server.URL, AccessKey: leaseserver.S3AccessKey, SecretKey: "wrong"},
	} {
		s, err := s3.New(o)
		if err != nil {
			t.Fatal(err)
		}
		err = s.Check(t.Context(), "check")
		var answer *s3.Error
		if !errors.As(err, &answer) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
