package doctor

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/kubefake"
	"github.com/litefs/litefs/internal/leaseserver"
)

func TestKernel(t *testing.T) {
	for text, want := range map[string]Level{
		"6.9.0": OK, "6.18.44-fc-v857": OK, "10.0": OK, "6.8.12-generic": Warn, "5.15.0-91-generic": Warn, "": Warn, "x.y": Warn,
		"99999999999999999999.1": Warn,
	} {
		if got := kernel(parseRelease(text), text).Level; got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func TestCapabilities(t *testing.T) {
	for status, want := range map[string]uint64{
		"Name:\tx\nCapEff:\t000001ffffffffff\nCapBnd:\t0\n": 0x1ffffffffff, "CapEff:\t00000000a80425fb\n": 0xa80425fb, "": 0, "CapEff: zz\n": 0,
	} {
		if got := capabilities([]byte(status)); got != want {
			t.Errorf("%q: %x, want %x", status, got, want)
		}
	}
}

func TestPort(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for running, want := range map[bool]Level{false: Fail, true: OK} {
		if f := port(t.Context(), "http.addr", ln.Addr().String(), running); f.Level != want || f.Level == Fail && f.Do == "" {
			t.Errorf("in use, a node mounted %v: %+v", running, f)
		}
	}
	if f := port(t.Context(), "http.addr", "127.0.0.1:0", false); f.Level != OK {
		t.Errorf("free: %+v", f)
	}
}

func TestMountPoint(t *testing.T) {
	dir := t.TempDir()
	if f := mountPoint(dir); f.Level != OK {
		t.Errorf("empty: %+v", f)
	}
	if f := mountPoint(filepath.Join(dir, "new")); f.Level != OK {
		t.Errorf("not there: %+v", f)
	}
	if f := mountPoint(filepath.Dir(dir)); f.Level != Fail || f.Do == "" {
		t.Errorf("not empty: %+v", f)
	}
}

// A data directory that others can enter.
func TestDataDirOfOthers(t *testing.T) {
	dir := t.TempDir()
	for mode, want := range map[os.FileMode]bool{0o700: false, 0o770: false, 0o755: true, 0o701: true} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		said := slices.ContainsFunc(dataDir(dir), func(f Finding) bool { return f.Level == Warn && f.Do == "chmod 700 "+dir })
		if said != want {
			t.Errorf("mode %o: said %v, want %v", mode, said, want)
		}
	}
}

// What the primary answers, and what the follower is told to do about it.
func TestCluster(t *testing.T) {
	answer := `{"nodeID":"n1","isPrimary":true,"databases":[]}`
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer right" {
			http.Error(w, "wrong or missing token", http.StatusUnauthorized)
			return
		}
		_, _ = w.Write([]byte(answer)) // the client sees what is missing
	}))
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	srv.Config.Protocols = &protocols
	srv.Start()
	defer srv.Close()
	look := func(url, token string) (worst Level, all string) {
		set := []string{"lease.candidate=false", "lease.advertise-url=" + url, "http.token=right"}
		cfg, err := config.Default(filepath.Join(t.TempDir(), "mnt"), config.Source{Set: set})
		if err != nil {
			t.Fatal(err)
		}
		worst = OK
		for _, f := range cluster(context.Background(), Options{Config: cfg, Token: token, Logger: slog.New(slog.DiscardHandler)}) {
			all += f.Text + "\n"
			if f.Level != OK {
				worst = f.Level
			}
		}
		return worst, all
	}
	if worst, all := look(srv.URL, "right"); worst != OK || !strings.Contains(all, "node n1") {
		t.Errorf("%s: %s", worst, all)
	}
	if worst, all := look(srv.URL, "wrong"); worst != Fail || !strings.Contains(all, "token") {
		t.Errorf("wrong token: %s: %s", worst, all)
	}
	if worst, all := look("http://127.0.0.1:1", "right"); worst != Fail || !strings.Contains(all, "refused") {
		t.Errorf("nobody there: %s: %s", worst, all)
	}
	answer = strings.Replace(answer, "true", "false", 1)
	if worst, all := look(srv.URL, "right"); worst != Warn {
		t.Errorf("no primary: %s: %s", worst, all)
	}
}

// Lease servers that are there, and fit, and those that are not.
func TestLeaseServers(t *testing.T) {
	start := func(start func(context.Context, leaseserver.Options) (*leaseserver.Server, error)) string {
		t.Helper()
		s, err := start(t.Context(), leaseserver.Options{Dir: t.TempDir(), Log: t.Output()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Kill(); err != nil {
				t.Error(err)
			}
		})
		return s.URL
	}
	nats, bucket := start(leaseserver.NATS), start(leaseserver.S3)
	// It takes every write, whatever its condition.
	var kept sync.Map // path -> object
	careless := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"e"`)
		switch r.Method {
		case http.MethodPut:
			if b, err := io.ReadAll(r.Body); err == nil {
				kept.Store(r.URL.Path, b)
			}
		case http.MethodGet:
			b, ok := kept.Load(r.URL.Path)
			if !ok {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			_, _ = w.Write(b.([]byte)) // whoever asked has gone
		}
	}))
	defer careless.Close()
	api, err := kubefake.Open(filepath.Join(t.TempDir(), "leases"), "apps", "t0ken")
	if err != nil {
		t.Fatal(err)
	}
	kube, account := httptest.NewServer(api), t.TempDir()
	defer kube.Close()
	for name, text := range map[string]string{"token": "t0ken", "ca.crt": ""} {
		if err := os.WriteFile(filepath.Join(account, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s3 := func(endpoint string) []string {
		return []string{"lease.type=s3", "lease.s3.url=s3://" + leaseserver.S3Bucket, "lease.s3.endpoint=" + endpoint,
			"lease.s3.access-key=" + leaseserver.S3AccessKey, "lease.s3.secret-key=" + leaseserver.S3SecretKey}
	}
	const vacant = "answers: no node has the lease"
	for _, c := range []struct {
		set  []string
		want Finding
	}{
		{[]string{"lease.type=nats", "lease.nats.url=" + nats}, Finding{Check: "nats", Level: OK, Text: vacant}},
		{[]string{"lease.type=nats", "lease.nats.url=nats://127.0.0.1:1"}, Finding{Check: "nats", Level: Fail, Text: "no servers available"}},
		{[]string{"lease.type=kubernetes", "lease.kubernetes.url=" + kube.URL, "lease.kubernetes.namespace=apps", "lease.kubernetes.account-dir=" + account}, Finding{Check: "kubernetes", Level: OK, Text: vacant}},
		{s3(bucket), Finding{Check: "s3", Level: OK, Text: vacant}},
		{s3(careless.URL), Finding{Check: "s3", Level: Fail, Text: "does not honour conditional writes"}},
	} {
		cfg, err := config.Default(filepath.Join(t.TempDir(), "mnt"), config.Source{Set: c.set})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range cluster(t.Context(), Options{Config: cfg, Logger: slog.New(slog.DiscardHandler)}) {
			if f.Check != c.want.Check || f.Level != c.want.Level || !strings.Contains(f.Text, c.want.Text) {
				t.Errorf("%s: got %+v, want %+v", c.set[0], f, c.want)
			}
		}
	}
}

// The whole of it, on this machine: the trial mounts and leaves nothing.
func TestExamine(t *testing.T) {
	dir := t.TempDir()
	cfg, err := config.Default(filepath.Join(dir, "mnt"), config.Source{Set: []string{"http.addr=127.0.0.1:0"}})
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]Finding)
	worst := Examine(t.Context(), Options{Config: cfg, Logger: slog.New(slog.DiscardHandler)}, func(f Finding) { seen[f.Check] = f })
	if worst == Fail {
		t.Errorf("%+v", seen)
	}
	if f := seen["trial mount"]; f.Level != OK && !strings.Contains(f.Text, "without passthrough") {
		t.Errorf("%+v", f)
	}
	for _, f := range seen {
		if f.Level != OK && f.Do == "" {
			t.Errorf("no remedy: %+v", f)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	hidden, err2 := filepath.Glob(filepath.Join(dir, ".*"))
	if err != nil || err2 != nil || len(left)+len(hidden) != 0 {
		t.Errorf("left behind: %v %v", left, hidden)
	}
}
