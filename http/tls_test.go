package http

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority signs certificates in a directory.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.sign("ca", nil, nil)
	return a
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name+".pem") }

// files are those of a node that the authority vouches for.
func (a *authority) files(name string) TLSFiles {
	a.sign(name, a.cert, a.key)
	return TLSFiles{Cert: a.path(name), Key: a.path(name + "-key"), CA: a.path("ca")}
}

func (a *authority) sign(name string, parent *x509.Certificate, by *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		a.t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true, IsCA: parent == nil,
	}
	if parent == nil {
		parent, by = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, by)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for _, f := range []struct {
		name, typ string
		der       []byte
	}{{name, "CERTIFICATE", der}, {name + "-key", "EC PRIVATE KEY", keyDER}} {
		if err := os.WriteFile(a.path(f.name), pem.EncodeToMemory(&pem.Block{Type: f.typ, Bytes: f.der}), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

func TestTLS(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	src := newFakeSource("a.db")
	src.commit(1, "a1", strings.Repeat("x", 1<<20))
	s := newServer(src, Options{Addr: "127.0.0.1:0", TLS: ours.files("primary"), Logger: discard}, fastLimits())
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { served <- s.Serve(ctx) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	connect := func(files TLSFiles) error {
		c := testClient("")
		if !files.IsZero() {
			if err := c.UseTLS(files, discard); err != nil {
				t.Fatal(err)
			}
		}
		stream, err := c.Stream(t.Context(), s.URL(), nil)
		if err != nil {
			return err
		}
		defer stream.Close()
		_, err = stream.NextFrame()
		return err
	}
	if err := connect(ours.files("replica")); err != nil {
		t.Fatal(err)
	}
	mixed := theirs.files("replica")
	mixed.CA = ours.path("ca")
	for name, files := range map[string]TLSFiles{
		"the system's trust":               {},
		"no certificate":                   {CA: ours.path("ca")},
		"another authority":                theirs.files("replica"),
		"another authority, ours accepted": mixed,
	} {
		if err := connect(files); err == nil || errors.Is(err, ErrStalled) {
			t.Errorf("%s: %v, want a refusal", name, err)
		}
	}
	if err := func() error {
		_, err := testClient("").Stream(t.Context(), "http"+strings.TrimPrefix(s.URL(), "https"), nil)
		return err
	}(); err == nil || errors.Is(err, ErrStalled) {
		t.Errorf("in the clear: %v, want a refusal", err)
	}

	// The authority is replaced under the server: those it vouches for are admitted now.
	// Cert and key must fit: written from one signing.
	theirs.files("renewed")
	for from, to := range map[string]string{"renewed": "primary", "renewed-key": "primary-key", "ca": "ca"} {
		b, err := os.ReadFile(theirs.path(from))
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, strings.Repeat("\n", 100)...)
		if err := os.WriteFile(ours.path(to), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := connect(theirs.files("replica")); err != nil {
		t.Errorf("after the change: %v", err)
	}
}

func TestTLS_Files(t *testing.T) {
	a := newAuthority(t)
	good := a.files("node")
	for name, c := range map[string]struct {
		change func(f *TLSFiles)
		want   string
	}{
		"no file":    {func(f *TLSFiles) { f.Cert += "x" }, "no such file"},
		"other key":  {func(f *TLSFiles) { f.Key = a.path("ca-key") }, "http.tls.cert"},
		"no ca":      {func(f *TLSFiles) { f.CA = f.Key }, "http.tls.ca"},
		"no cert":    {func(f *TLSFiles) { f.Cert = "" }, "http.tls.cert is missing"},
		"not a cert": {func(f *TLSFiles) { f.Cert = f.Key }, "http.tls.cert"},
	} {
		f := good
		c.change(&f)
		s := newServer(newFakeSource(), Options{Addr: "127.0.0.1:0", TLS: f, Logger: discard}, fastLimits())
		if err := s.Listen(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// Files that do not fit together, as in the middle of a renewal, change nothing; a client shows what its
// files hold when it connects, and a server without ca asks for no certificate but for the token.
func TestTLS_Renewal(t *testing.T) {
	a := newAuthority(t)
	serverFiles, clientFiles := a.files("primary"), a.files("replica")
	src := newFakeSource("a.db")
	listen := func(files TLSFiles, token string) string {
		t.Helper()
		s := newServer(src, Options{Addr: "127.0.0.1:0", TLS: files, Token: token, Logger: discard}, fastLimits())
		if err := s.Listen(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- s.Serve(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
		return s.URL()
	}
	connect := func(c *Client, url string) error {
		stream, err := c.Stream(t.Context(), url, nil)
		if err != nil {
			return err
		}
		_, err = stream.NextFrame()
		return errors.Join(err, stream.Close())
	}
	withTLS := func(files TLSFiles, token string) *Client {
		t.Helper()
		c := testClient(token)
		if err := c.UseTLS(files, discard); err != nil {
			t.Fatal(err)
		}
		return c
	}

	mutual := listen(serverFiles, "")
	c := withTLS(clientFiles, "")
	if err := connect(c, mutual); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(serverFiles.Key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(serverFiles.Key, []byte("half a ke"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := connect(c, mutual); err != nil {
		t.Errorf("a key that is being written: %v, want the old one", err)
	}
	if err := os.WriteFile(serverFiles.Key, append(key, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}

	// The client's certificate becomes that of another authority, and then good again.
	good, err := os.ReadFile(clientFiles.Cert)
	if err != nil {
		t.Fatal(err)
	}
	goodKey, err := os.ReadFile(clientFiles.Key)
	if err != nil {
		t.Fatal(err)
	}
	other := newAuthority(t)
	other.files("replica")
	for _, round := range []struct {
		cert, key []byte
		admitted  bool
	}{{nil, nil, false}, {append(good, '\n'), append(goodKey, '\n'), true}} {
		if round.cert == nil {
			if round.cert, err = os.ReadFile(other.path("replica")); err != nil {
				t.Fatal(err)
			}
			if round.key, err = os.ReadFile(other.path("replica-key")); err != nil {
				t.Fatal(err)
			}
			round.cert, round.key = append(round.cert, "\n\n"...), append(round.key, "\n\n"...)
		}
		for name, b := range map[string][]byte{clientFiles.Cert: round.cert, clientFiles.Key: round.key} {
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := connect(c, mutual); (err == nil) != round.admitted {
			t.Errorf("after a renewal: %v, want admitted: %t", err, round.admitted)
		}
	}

	oneSided := serverFiles
	oneSided.CA = ""
	url := listen(oneSided, "secret")
	if err := connect(withTLS(TLSFiles{CA: a.path("ca")}, "secret"), url); err != nil {
		t.Errorf("with the token, and no certificate: %v", err)
	}
	if err := connect(withTLS(TLSFiles{CA: a.path("ca")}, "wrong"), url); err == nil {
		t.Error("admitted with a wrong token")
	}
}
