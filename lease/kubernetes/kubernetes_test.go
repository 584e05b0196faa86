package kubernetes

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/kubefake"
	"github.com/litefs/litefs/internal/leaseserver"
	"github.com/litefs/litefs/lease/cas"
	"github.com/litefs/litefs/lease/leasetest"
)

// The fake server is a process, to be paused and killed: this program with these in its environment.
const (
	serveAddr = "LITEFS_TEST_KUBEFAKE_ADDR"
	serveFile = "LITEFS_TEST_KUBEFAKE_FILE"
)

func TestMain(m *testing.M) {
	if addr := os.Getenv(serveAddr); addr != "" {
		s, err := kubefake.Open(os.Getenv(serveFile), "apps", "")
		if err == nil {
			err = http.ListenAndServe(addr, s)
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(leasetest.Main(m))
}

func startFake(ctx context.Context, o leaseserver.Options) (*leaseserver.Server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return leaseserver.Program(ctx, o, func(addr string) []string {
		return []string{"env", serveAddr + "=" + addr, serveFile + "=" + filepath.Join(o.Dir, "leases"), self}
	}, "/apis")
}

func TestConformance(t *testing.T) {
	leasetest.Run(t, leasetest.Backend{
		TTL:   2 * time.Second,
		Start: startFake,
		Open: func(o leasetest.Options) (litefs.Leaser, error) {
			return New(Options{
				URL: o.URL, Namespace: "apps", Name: objectName(o.Key), TTL: o.TTL, LockDelay: 200 * time.Millisecond,
				Hostname: o.Hostname, AdvertiseURL: o.AdvertiseURL, Now: o.Now, Former: o.Former, Remember: o.Remember,
			})
		},
		// As kubectl patch does.
		EndSession: func(ctx context.Context, server, key string) error {
			return request(ctx, http.MethodPatch, server, key, `{"spec":{"holderIdentity":""}}`)
		},
		RemoveKey: func(ctx context.Context, server, key string) error {
			return request(ctx, http.MethodDelete, server, key, "")
		},
	})
}

// objectName makes the name of a Lease of a key of the suite.
func objectName(key string) string {
	return strings.ToLower(strings.NewReplacer("/", ".", "_", "-").Replace(key))
}

func request(ctx context.Context, method, server, key, body string) error {
	url := server + "/apis/coordination.k8s.io/v1/namespaces/apps/leases/" + objectName(key)
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/merge-patch+json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s", method, url, resp.Status)
	}
	return errors.Join(err, resp.Body.Close())
}

// account is a fake API server with TLS and a service account's directory.
func account(t *testing.T, token string) (server *httptest.Server, dir, file string) {
	t.Helper()
	dir, file = t.TempDir(), filepath.Join(t.TempDir(), "leases")
	fake, err := kubefake.Open(file, "apps", token)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewTLSServer(fake)
	t.Cleanup(s.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := errors.Join(write(dir, "token", token+"\n"), write(dir, "ca.crt", string(ca))); err != nil {
		t.Fatal(err)
	}
	return s, dir, file
}

func write(dir, name, text string) error {
	return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600)
}

func open(t *testing.T, o Options) *cas.Leaser {
	t.Helper()
	o.Namespace, o.Hostname, o.AdvertiseURL = "apps", "litefs-0", "http://litefs-0.litefs:20202"
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // the server may be gone
	return l
}

// In a pod: the server's certificate is checked by the account's authority, the token is read again when
// it has changed, and stands in no error.
func TestServiceAccount(t *testing.T) {
	ctx := t.Context()
	s, dir, _ := account(t, "t0ken")
	l := open(t, Options{URL: s.URL, Dir: dir})
	if err := write(dir, "token", "0ld"); err != nil {
		t.Fatal(err)
	}
	_, err := l.Acquire(ctx)
	if err == nil || !strings.Contains(err.Error(), "401") || strings.Contains(err.Error(), "0ld") {
		t.Errorf("with an old token: %v", err)
	}
	if err := write(dir, "token", "t0ken"); err != nil {
		t.Fatal(err)
	}
	lease, err := l.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := lease.Renew(ctx); err != nil {
		t.Fatal(err)
	}

	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"another authority": strangeCA(t), "no certificate": "hello"} {
		if err := write(dir, "ca.crt", text); err != nil {
			t.Fatal(err)
		}
		if _, err := open(t, Options{URL: s.URL, Dir: dir}).PrimaryURL(ctx); err == nil || errors.Is(err, litefs.ErrNoPrimary) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The authority is read for each connection, too.
	if err := write(dir, "ca.crt", string(ca)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "token")); err != nil {
		t.Fatal(err)
	}
	if _, err := l.PrimaryURL(ctx); err == nil || !strings.Contains(err.Error(), "token of the service account") {
		t.Errorf("without a token: %v", err)
	}
}

// strangeCA is an authority that has signed nothing here.
func strangeCA(t *testing.T) string {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(nil, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// What kubectl shows, and what others may do to the object.
func TestObject(t *testing.T) {
	ctx := t.Context()
	s, dir, file := account(t, "t0ken")
	l := open(t, Options{URL: s.URL, Dir: dir, TTL: 1500 * time.Millisecond})
	lease, err := l.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	read := func() object {
		t.Helper()
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var all struct{ Leases map[string]object }
		if err := json.Unmarshal(b, &all); err != nil {
			t.Fatal(err)
		}
		return all.Leases["litefs"]
	}
	taken := read()
	if err := lease.Renew(ctx); err != nil {
		t.Fatal(err)
	}
	o := read()
	if !strings.HasPrefix(o.Spec.HolderIdentity, "litefs-0_") || o.Spec.LeaseDurationSeconds != 2 || o.Spec.LeaseTransitions != 1 ||
		o.Spec.AcquireTime != taken.Spec.AcquireTime || o.Spec.RenewTime <= taken.Spec.RenewTime {
		t.Errorf("got %+v after %+v", o.Spec, taken.Spec)
	}
	if err := lease.Close(); err != nil {
		t.Fatal(err)
	}
	if o := read(); o.Spec.HolderIdentity != "" || o.Spec.LeaseTransitions != 1 {
		t.Errorf("after the end: %+v", o.Spec)
	}

	// Another program's Lease is not taken.
	other := open(t, Options{URL: s.URL, Dir: dir, Name: "scheduler"})
	call := func(method, path, contentType, body string) {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, method, s.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", contentType)
		req.Header.Set("Authorization", "Bearer t0ken")
		resp, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode/100 != 2 {
			t.Fatal(resp.Status)
		}
		if err := resp.Body.Close(); err != nil {
			t.Fatal(err)
		}
	}
	const leases = "/apis/coordination.k8s.io/v1/namespaces/apps/leases"
	call("POST", leases, "application/json", `{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"scheduler"},"spec":{"holderIdentity":"x"}}`)
	if _, err := other.Acquire(ctx); err == nil || errors.Is(err, litefs.ErrPrimaryExists) || !strings.Contains(err.Error(), "not written by litefs") {
		t.Errorf("Acquire of another program's: %v", err)
	}
	// One that was made beforehand, with labels, is, and they stay; transitions go on from where they are.
	call("PATCH", leases+"/litefs", "application/merge-patch+json", `{"metadata":{"labels":{"app":"x"}},"spec":{"leaseTransitions":40}}`)
	again, err := l.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if o := read(); o.Metadata.Labels["app"] != "x" || o.Spec.LeaseTransitions != 41 || again.(litefs.FencedLease).Token() != 41 {
		t.Errorf("got %+v, token %d", o, again.(litefs.FencedLease).Token())
	}
}

type object struct {
	Metadata struct{ Labels map[string]string }
	Spec     spec
}

// What is written is the file that packaging/check decodes into the type of the API.
func TestForm(t *testing.T) {
	s := &store{name: "litefs"}
	k := cas.Lock{ID: "ID", Token: 7, Hostname: "litefs-0", URL: "http://litefs-0.litefs:20202", TTL: "10s", LockDelay: "1s"}
	l, err := s.encode(cas.LockName, k.Encode(), "1001", time.Date(2026, 11, 30, 8, 0, 0, 1000, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/lease.json")
	if err != nil {
		t.Fatal(err)
	}
	if string(got)+"\n" != string(want) {
		t.Errorf("got %s\nwant %s", got, want)
	}
}
