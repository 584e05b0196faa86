package s3_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

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
