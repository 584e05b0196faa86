package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/fuse"
	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/leaseserver"
	"github.com/litefs/litefs/lease/consul"
)

func leaseServer(t *testing.T, start func(context.Context, leaseserver.Options) (*leaseserver.Server, error)) *leaseserver.Server {
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
	return s
}

// tutorialNode is a node with the configuration of LiteFS 0.1's tutorial.
type tutorialNode struct {
	mount, data, url, file string

	*childnode.Node
	log lines
}

// lines collects what a node prints.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
	to  io.Writer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Write(b)
	return l.to.Write(b)
}

func (l *lines) contain(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.buf.String(), s)
}

func startTutorialNode(t *testing.T, consulURL string) *tutorialNode {
	t.Helper()
	addr, err := childnode.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	n := &tutorialNode{mount: filepath.Join(dir, "mnt"), data: filepath.Join(dir, ".mnt.litefs"), url: "http://127.0.0.1:" + port}
	n.log.to = t.Output()
	text := fmt.Sprintf(`mount-dir: "%s"

http:
  addr: ":%s"

consul:
  url: "%s"
  advertise-url: "%s"
`, n.mount, port, consulURL, n.url)
	n.file = filepath.Join(dir, "litefs.yml")
	if err := os.WriteFile(n.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if n.Node, err = childnode.Start(childnode.Options{Config: n.file, Log: &n.log}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := n.Stop(ctx); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("end of node: %v", err)
		}
		if err := childnode.Detach(n.mount); err != nil {
			t.Error(err)
		}
	})
	return n
}

// restart kills the process and starts another. The mount is aborted as well: a process that waits for
// its own mount cannot die.
func (n *tutorialNode) restart() error {
	err := errors.Join(n.Signal(syscall.SIGKILL), fuse.Abort(n.mount))
	if err = errors.Join(err, n.Kill()); err != nil {
		return err
	}
	n.Node, err = childnode.Start(childnode.Options{Config: n.file, Log: &n.log})
	return err
}

func (n *tutorialNode) sql(t *testing.T, statement string) string {
	t.Helper()
	out, err := exec.CommandContext(timeout(t), "sqlite3", "-cmd", ".timeout 10000", filepath.Join(n.mount, "data.db"), statement).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// The configuration of LiteFS 0.1's tutorial, unchanged, gives two nodes that know each other and
// nobody else.
func TestTutorialConfiguration(t *testing.T) {
	server := leaseServer(t, leaseserver.Consul)
	one := startTutorialNode(t, server.URL)
	if err := one.Ready(timeout(t)); err != nil {
		t.Fatal(err)
	}
	if got := one.sql(t, `CREATE TABLE movies (title TEXT, rating INT); INSERT INTO movies VALUES ('The Jerk', 10)`); got != "" {
		t.Fatalf("write on the first node: %s", got)
	}
	two := startTutorialNode(t, server.URL)
	if err := two.Ready(timeout(t)); err != nil {
		t.Fatal(err)
	}
	await(t, "the second node has the row", func() bool { return two.sql(t, `SELECT * FROM movies`) == "The Jerk|10" })

	secrets := map[string]bool{}
	for _, n := range []*tutorialNode{one, two} {
		resp, err := http.Get(n.url + "/info")
		if err != nil {
			t.Fatal(err)
		}
		if err := resp.Body.Close(); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("a stranger is answered with %s", resp.Status)
		}
		secret, err := litefs.ReadSecret(n.data)
		if err != nil || len(secret) < 32 {
			t.Errorf("the secret has %d bytes: %v", len(secret), err)
		}
		if info, err := os.Stat(filepath.Join(n.data, "secret")); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the secret's file: %v, %v", info, err)
		}
		if n.log.contain(secret) {
			t.Error("the secret is in the log")
		}
		secrets[secret] = true
	}
	if len(secrets) != 1 {
		t.Error("two nodes have two secrets")
	}

	// The first one is killed and comes back: it is the primary again, without waiting for its own
	// lease, which the second one could not take for ten seconds.
	if err := one.restart(); err != nil {
		t.Fatal(err)
	}
	if err := one.Ready(timeout(t)); err != nil {
		t.Fatal(err)
	}
	if got := one.sql(t, `INSERT INTO movies VALUES ('Election', 9)`); got != "" {
		t.Fatalf("write on the first node after it came back: %s", got)
	}
	await(t, "the second node has the second row", func() bool { return two.sql(t, `SELECT COUNT(*) FROM movies`) == "2" })

	// A clean end gives the lease back.
	if err := two.Stop(timeout(t)); err != nil {
		t.Fatal(err)
	}
	if err := one.Stop(timeout(t)); err != nil {
		t.Fatal(err)
	}
	l, err := consul.New(consul.Options{URL: server.URL, AdvertiseURL: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.PrimaryURL(timeout(t)); !errors.Is(err, litefs.ErrNoPrimary) {
		t.Errorf("after the end of both nodes: %v, want %v", err, litefs.ErrNoPrimary)
	}
}

// A node that starts before its lease server says so, and goes on once it is there.
func TestLeaseServerComesLater(t *testing.T) {
	server := leaseServer(t, leaseserver.Consul)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	n := startTutorialNode(t, server.URL)
	await(t, "the node says what it waits for", func() bool {
		return n.log.contain("waiting for the lease server") && n.log.contain("the lease litefs/primary of consul at "+server.URL)
	})
	if err := server.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
	if err := n.Ready(timeout(t)); err != nil {
		t.Fatal(err)
	}
	if got := n.sql(t, `CREATE TABLE movies (title TEXT, rating INT); INSERT INTO movies VALUES ('The Jerk', 10)`); got != "" {
		t.Fatalf("write: %s", got)
	}

	// Now that it knows its cluster it serves what it has, without the server.
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := n.restart(); err != nil {
		t.Fatal(err)
	}
	if err := n.Ready(timeout(t)); err != nil {
		t.Fatal(err)
	}
	if got := n.sql(t, `SELECT * FROM movies`); got != "The Jerk|10" {
		t.Errorf("read without the lease server: %s", got)
	}
	if _, err := exec.CommandContext(timeout(t), "sqlite3", filepath.Join(n.mount, "data.db"), `DELETE FROM movies`).CombinedOutput(); err == nil {
		t.Error("a write without the lease server is taken")
	}
	if err := server.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
	await(t, "the node writes again", func() bool { return n.sql(t, `INSERT INTO movies VALUES ('Election', 9)`) == "" })
}

// A node with the data of one cluster is not let into another, and is told what to do.
func TestOtherCluster(t *testing.T) {
	server := leaseServer(t, leaseserver.Etcd)
	parse := func(dir string) *config.Config {
		t.Helper()
		text := fmt.Sprintf("fuse: {dir: %s/mnt}\ndata: {dir: %s/data}\nhttp: {addr: '127.0.0.1:0'}\n"+
			"lease: {type: etcd, advertise-url: 'http://127.0.0.1:1', etcd: {url: '%s', ttl: 2s}}\n", dir, dir, server.URL)
		cfg, err := config.Parse([]byte(text), config.Source{})
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	open := func(dir string, leaser litefs.Leaser) (string, error) {
		t.Helper()
		s := litefs.NewStore(filepath.Join(dir, "data"))
		s.Leaser, s.Logger = leaser, slog.New(slog.DiscardHandler)
		err := s.Open()
		id := s.ClusterID()
		if err == nil {
			err = s.Close()
		}
		return id, err
	}
	// The first node of a cluster, a second one that joins it, and one that has been on its own.
	first, second, other := t.TempDir(), t.TempDir(), t.TempDir()
	leaser, err := newLeaser(parse(first), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	id, err := open(first, leaser)
	if err != nil || id == "" {
		t.Fatalf("cluster id %q, %v", id, err)
	}
	if got, err := open(second, leaser); err != nil || got != id {
		t.Fatalf("the second node is of cluster %q, %v, want %q", got, err, id)
	}
	// A server that has lost the secret gets it from a node that knows it.
	if err := os.WriteFile(filepath.Join(first, "data", "secret"), []byte("known\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(first, leaser); err != nil {
		t.Fatal(err)
	}
	if got, err := leaser.(litefs.Registry).SetOnce(timeout(t), litefs.SecretName, []byte("another")); err != nil || string(got) != "known" {
		t.Errorf("the secret beside the lease is %q, %v", got, err)
	}

	strange, err := open(other, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Start(timeout(t), parse(other), slog.New(slog.NewTextHandler(t.Output(), nil)))
	want := fmt.Sprintf("the lease is another cluster's: the lease litefs/primary of etcd at %s is of cluster %s, the data in %s/data of %s: give this node an empty data directory to join %s, or the lease another key to stay apart",
		server.URL, id, other, strange, id)
	if !errors.Is(err, config.ErrInvalid) || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}
