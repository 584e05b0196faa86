package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/leaseserver"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// cluster is nodes that share a lease of a real server.
type cluster struct {
	t      *testing.T
	server *leaseserver.Server
	lease  option
}

func newCluster(t *testing.T, ttl time.Duration) *cluster {
	t.Helper()
	return newClusterOn(t, leaseserver.Etcd, "type: etcd", "etcd:\n    url: %s\n    ttl: "+ttl.String())
}

// newClusterOn has its lease with another service; group is lines of its keys, with %s for the URL.
func newClusterOn(t *testing.T, start func(context.Context, leaseserver.Options) (*leaseserver.Server, error), leaseType, group string) *cluster {
	t.Helper()
	server, err := start(t.Context(), leaseserver.Options{Dir: t.TempDir(), Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Kill(); err != nil {
			t.Error(err)
		}
	})
	return &cluster{t, server, func(c *childnode.Config) {
		c.Lease = []string{
			leaseType, "candidate: true", "reconnect-delay: 250ms", "demote-delay: 1s",
			fmt.Sprintf(group, server.URL),
		}
	}}
}

func (c *cluster) start(options ...option) *node {
	return startNode(c.t, append([]option{c.lease}, options...)...)
}

// killAll ends every process of a node as a power cut does, the guardian among them.
func (n *node) killAll() {
	n.t.Helper()
	pid := n.proc.PID()
	if err := syscall.Kill(-pid, syscall.SIGKILL); err != nil {
		n.t.Fatal(err)
	}
	// Also a primary opens files of its mount, when it lends a lock: see kill.
	abort := time.AfterFunc(time.Second, func() {
		if err := n.detach(); err != nil {
			n.t.Error(err)
		}
	})
	defer abort.Stop()
	n.kill()
	if err := n.detach(); err != nil {
		n.t.Fatal(err)
	}
}

// primaryAmong waits until one of the nodes is the primary.
func primaryAmong(t testing.TB, nodes []*node) (p *node) {
	t.Helper()
	eventually(t, "a node is the primary", func() (bool, string) {
		for _, n := range nodes {
			if info, ok := n.info(); ok && info.IsPrimary {
				p = n
			}
		}
		return p != nil, "none"
	})
	return p
}

type nodeInfo struct {
	NodeID, RoleState, RoleReason string
	IsPrimary                     bool
	Epoch                         uint64
	Databases                     []struct{ Name, TXID, Checksum string }
}

// info asks the node; ok is false while it does not answer.
func (n *node) info() (info nodeInfo, ok bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.cfg.Addr+"/info", nil)
	if err == nil {
		req.Header.Set("Authorization", "Bearer "+n.secret())
		var resp *http.Response
		if resp, err = http.DefaultClient.Do(req); err == nil {
			defer resp.Body.Close()
			err = json.NewDecoder(resp.Body).Decode(&info)
		}
	}
	return info, err == nil
}

// move posts to /promote or /demote.
func (n *node) move(path string) error {
	req, err := http.NewRequestWithContext(timeout(n.t), http.MethodPost, "http://"+n.cfg.Addr+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+n.secret())
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, resp.Status)
	}
	return nil
}

// becomesPrimary waits until the node is the primary.
func becomesPrimary(n *node) {
	n.t.Helper()
	eventually(n.t, "the node is the primary", func() (bool, string) {
		info, ok := n.info()
		return info.IsPrimary, fmt.Sprintf("answers %v, %+v", ok, info)
	})
}

// samePosition waits until nodes are at one position of a database.
func samePosition(a, b *node, name string) {
	a.t.Helper()
	at := func(n *node) string {
		info, _ := n.info()
		for _, db := range info.Databases {
			if db.Name == name {
				return db.TXID + "/" + db.Checksum
			}
		}
		return "none"
	}
	eventually(a.t, "both nodes are at one position", func() (bool, string) {
		x, y := at(a), at(b)
		return x == y && x != "none", x + " and " + y
	})
}

// The primary's processes are killed: the other node writes, with what was replicated and over the
// connections that are open there. The killed one comes back and follows.
func TestFailover_Kill(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"wal", "delete"} {
		t.Run(mode, func(t *testing.T) {
			c := newCluster(t, 5*time.Second)
			a := c.start()
			becomesPrimary(a)
			b := c.start()

			writer := sqlitetest.Open(t, a.path("app.db"), "journal_mode="+mode, "busy_timeout=1000")
			writer.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
			for range 20 {
				writer.MustExec("INSERT INTO t(v) VALUES (randomblob(100))")
			}
			samePosition(a, b, "app.db")
			reader := openPatient(sqlitetest.Start(t), b.path("app.db"))
			if n := reader.MustInt("SELECT count(*) FROM t"); n != 20 {
				t.Fatalf("%d rows on the replica", n)
			}
			if _, err := sqlitetest.Open(t, b.path("app.db")).Exec("INSERT INTO t(v) VALUES (1)"); err == nil {
				t.Fatal("a replica takes a write")
			}

			a.killAll()
			becomesPrimary(b)
			reader.MustExec("INSERT INTO t(v) VALUES ('written by the connection that has read')")
			samePosition(b, b, "app.db")

			a.start()
			samePosition(a, b, "app.db")
			back := sqlitetest.Open(t, a.path("app.db"))
			if n := back.MustInt("SELECT count(*) FROM t"); n != 21 {
				t.Fatalf("%d rows on the node that came back", n)
			}
			if _, err := back.Exec("INSERT INTO t(v) VALUES (1)"); err == nil {
				t.Fatal("the node that came back takes a write")
			}
			sqlitetest.CheckIntegrity(t, b.path("app.db"))
		})
	}
}

// An operator moves the role back and forth under a writer that goes where the primary is.
func TestFailover_HandOver(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"wal", "delete"} {
		t.Run(mode, func(t *testing.T) {
			c := newCluster(t, 5*time.Second)
			nodes := []*node{c.start()}
			becomesPrimary(nodes[0])
			nodes = append(nodes, c.start())
			first := sqlitetest.Open(t, nodes[0].path("app.db"), "journal_mode="+mode, "busy_timeout=500")
			first.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
			samePosition(nodes[0], nodes[1], "app.db")

			conns := []*sqlitetest.Conn{first, sqlitetest.Open(t, nodes[1].path("app.db"), "busy_timeout=500")}
			rows := int64(0)
			for i := range 6 {
				p, r := i%2, (i+1)%2
				for range 10 {
					conns[p].MustExec("INSERT INTO t(v) VALUES (randomblob(500))")
					rows++
				}
				if _, err := conns[r].Exec("INSERT INTO t(v) VALUES (1)"); err == nil {
					t.Fatal("the follower takes a write")
				}
				if i%4 < 2 {
					if err := nodes[r].move("/promote"); err != nil {
						t.Fatal(err)
					}
				} else {
					eventually(t, "the primary hands over", func() (bool, string) {
						err := nodes[p].move("/demote") // refused until the other one is connected
						return err == nil, fmt.Sprint(err)
					})
				}
				becomesPrimary(nodes[r])
				if n := conns[r].MustInt("SELECT count(*) FROM t"); n != rows {
					t.Fatalf("%d rows after hand-over %d, want %d", n, i, rows)
				}
			}
			samePosition(nodes[0], nodes[1], "app.db")

			// A clean stop is a hand-over too.
			conns[0].Close()
			nodes[0].stop()
			becomesPrimary(nodes[1])
			conns[1].MustExec("INSERT INTO t(v) VALUES ('after the stop')")
			sqlitetest.CheckIntegrity(t, nodes[1].path("app.db"))
		})
	}
}

// secret is what the nodes of the cluster know each other by.
func (n *node) secret() string {
	secret, err := n.cfg.Secret()
	if err != nil {
		n.t.Fatal(err)
	}
	return secret
}

// What the primary acknowledged and nobody else got is in lost+found when it comes back, and nowhere
// else.
func TestFailover_TailIsKept(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 5*time.Second)
	a := c.start()
	becomesPrimary(a)
	b := c.start()
	writer := sqlitetest.Open(t, a.path("app.db"), "journal_mode=wal", "busy_timeout=1000")
	writer.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	writer.MustExec("INSERT INTO t(v) VALUES ('replicated')")
	samePosition(a, b, "app.db")

	if err := b.proc.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// Each is more than what may be on its way without an acknowledgement.
	for range 2 {
		writer.MustExec("INSERT INTO t(v) VALUES ('late' || hex(randomblob(4<<20)))")
	}
	settle(writer)
	a.killAll()
	if err := b.proc.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	becomesPrimary(b)
	other := sqlitetest.Open(t, b.path("app.db"), "busy_timeout=1000")
	if n := other.MustInt("SELECT count(*) FROM t"); n != 1 {
		t.Fatalf("%d rows on the new primary", n)
	}
	for range 9 {
		other.MustExec("INSERT INTO t(v) VALUES ('new')")
	}

	a.start()
	samePosition(a, b, "app.db")
	back := sqlitetest.Open(t, a.path("app.db"))
	if n := back.MustInt("SELECT count(*) FROM t WHERE v LIKE 'late%'"); n != 0 {
		t.Fatalf("%d late rows are in the cluster", n)
	}
	if n := back.MustInt("SELECT count(*) FROM t"); n != 10 {
		t.Fatalf("%d rows on the node that came back", n)
	}
	kept, err := os.ReadDir(filepath.Join(a.cfg.Data, "lost+found"))
	if err != nil || len(kept) != 1 {
		t.Fatalf("lost+found holds %v (%v), want one tail", kept, err)
	}
	if kept, err := os.ReadDir(filepath.Join(b.cfg.Data, "lost+found")); err == nil && len(kept) > 0 {
		t.Fatalf("the new primary has lost %v", kept)
	}
}

// All nodes stop at once: a primary has its locks for a hand-over when the candidate goes.
func TestFailover_StopTogether(t *testing.T) {
	c := newCluster(t, patience)
	first := c.start()
	becomesPrimary(first)
	for _, mode := range []string{"delete", "wal"} {
		db := sqlitetest.Open(t, first.path(mode+".db"), "journal_mode="+mode)
		db.MustExec("CREATE TABLE t (a)")
		db.Close()
	}
	second := c.start()
	if err := second.move("/promote"); err != nil {
		t.Fatal(err)
	}
	becomesPrimary(second)
	for _, mode := range []string{"delete", "wal"} {
		db := sqlitetest.Open(t, second.path(mode+".db"), "busy_timeout=30000")
		db.MustExec("INSERT INTO t VALUES (1)")
		db.Close()
	}
	ended := make(chan error)
	for _, n := range []*node{first, second} {
		proc := n.proc
		n.proc = nil
		go func() { ended <- proc.Stop(timeout(t)) }()
	}
	if err := errors.Join(<-ended, <-ended); err != nil {
		t.Fatal(err)
	}
	second.verified()
}
