package e2e

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/leaseserver"
)

// walker is a node of the walk-through: a shell's variables and a litefs.yml that uses them.
type walker struct {
	t      *testing.T
	dir    string
	db     string // path of data.db in its mount
	port   string
	config string
	proc   *childnode.Node
	log    *logBuffer
}

// newWalker chooses the directory and the port.
func newWalker(t *testing.T, name string) *walker {
	t.Helper()
	addr, err := childnode.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	w := &walker{t: t, dir: filepath.Join(t.TempDir(), name), port: port, log: &logBuffer{}}
	w.db, w.config = filepath.Join(w.dir, "data.db"), filepath.Join(t.TempDir(), "litefs.yml")
	if err := os.MkdirAll(w.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if w.proc != nil {
			if err := w.proc.Kill(); err != nil {
				t.Error(err)
			}
		}
		if err := childnode.Detach(w.dir); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log of %s:\n%s", name, w.log.text())
		}
	})
	return w
}

// start starts a node with static roles: the lines are those of section lease.
func (w *walker) start(primaryPort string, lease ...string) {
	w.t.Helper()
	w.run("lease:\n  type: static\n  advertise-url: \"http://${PRIMARY_NODE}:${PRIMARY_PORT}\"\n  "+strings.Join(lease, "\n  ")+"\n",
		"PRIMARY_NODE=127.0.0.1", "PRIMARY_PORT="+primaryPort, "LITEFS_TOKEN=walk-through")
}

// startConsul starts a node with the tutorial's section consul.
func (w *walker) startConsul(url string) {
	w.t.Helper()
	w.run("consul:\n  url: \"${CONSUL_URL}\"\n  advertise-url: \"http://${HOSTNAME}:${LITEFS_PORT}\"\n",
		"CONSUL_URL="+url, "HOSTNAME=127.0.0.1")
}

// run writes litefs.yml, whose end is roles, and starts "litefs -config litefs.yml".
func (w *walker) run(roles string, env ...string) {
	w.t.Helper()
	yml := "mount-dir: \"${DB_DIR}\"\n\nhttp:\n  addr: \":${LITEFS_PORT}\"\n\n" + roles
	if err := os.WriteFile(w.config, []byte(yml), 0o600); err != nil {
		w.t.Fatal(err)
	}
	var err error
	w.proc, err = childnode.Start(childnode.Options{
		Binary: binary(w.t), Args: []string{"-config", w.config}, Log: w.log,
		Env: append([]string{"DB_DIR=" + w.dir, "LITEFS_PORT=" + w.port}, env...),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.proc.Ready(timeout(w.t)); err != nil {
		w.t.Fatal(err)
	}
}

// interrupt is Ctrl-C.
func (w *walker) interrupt() {
	w.t.Helper()
	if err := w.proc.Signal(syscall.SIGINT); err != nil {
		w.t.Fatal(err)
	}
	code, err := w.proc.Wait(timeout(w.t))
	if err != nil || code != 0 {
		w.t.Fatalf("after Ctrl-C: exit code %d, %v", code, err)
	}
	w.proc = nil
	if mounted(w.t, w.dir) {
		w.t.Fatalf("%s is still mounted", w.dir)
	}
}

// sqlite3 runs the command line as a user types it.
func (w *walker) sqlite3(sql string) (string, error) {
	out, err := exec.Command("sqlite3", w.db, sql).CombinedOutput()
	return string(out), err
}

func (w *walker) must(sql string) {
	w.t.Helper()
	if out, err := w.sqlite3(sql); err != nil || out != "" {
		w.t.Fatalf("%s: %v: %s", sql, err, out)
	}
}

// shows waits until the movies are these.
func (w *walker) shows(want string) {
	w.t.Helper()
	eventually(w.t, "the movies are there", func() (bool, string) {
		out, err := w.sqlite3("SELECT * FROM movies")
		return err == nil && out == want, out
	})
}

// The tutorial of the first LiteFS, word for word where it speaks to SQLite: two nodes, the sqlite3 command
// line on both, a write that the second refuses, and its turn to write when the first has gone. Roles are
// static, so that the turn is a change in its file.
func TestWalkThrough(t *testing.T) {
	one, two := newWalker(t, "litefs-demo1"), newWalker(t, "litefs-demo2")
	one.start(one.port, "candidate: true")
	two.start(one.port, "candidate: false", "hostname: bert")

	one.must(`CREATE TABLE movies (title TEXT, rating INT)`)
	one.must(`INSERT INTO movies (title, rating) VALUES ("The Jerk", 10)`)
	one.must(`INSERT INTO movies VALUES ("Election", 9)`)
	two.shows("The Jerk|10\nElection|9\n")
	if b, err := os.ReadFile(filepath.Join(two.dir, ".primary")); err != nil || string(b) != "bert\n" {
		t.Errorf(".primary is %q, %v", b, err)
	}

	const insert = `INSERT INTO movies VALUES ("Chairman of the Board", 1)`
	if out, err := two.sqlite3(insert); err == nil {
		t.Errorf("a write on the second node: no error, %q", out)
	}
	two.shows("The Jerk|10\nElection|9\n")

	one.interrupt()
	two.shows("The Jerk|10\nElection|9\n") // without a primary
	two.interrupt()
	two.start(two.port, "candidate: true")
	two.must(insert)
	all := "The Jerk|10\nElection|9\nChairman of the Board|1\n"
	two.shows(all)

	// The first comes back, and follows.
	one.start(two.port, "candidate: false")
	one.shows(all)
	if out, err := one.sqlite3("PRAGMA integrity_check"); err != nil || out != "ok\n" {
		t.Errorf("integrity_check: %q, %v", out, err)
	}
	one.interrupt()
	two.interrupt()
}

// The tutorial with its own configuration, Consul and all: the second node takes over from the first when
// that is interrupted, and when every process of it is killed.
func TestWalkThrough_Consul(t *testing.T) {
	t.Parallel()
	server, err := leaseserver.ConsulDev(t.Context(), leaseserver.Options{Dir: t.TempDir(), Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Kill(); err != nil {
			t.Error(err)
		}
	})
	one, two := newWalker(t, "litefs-demo1"), newWalker(t, "litefs-demo2")
	one.startConsul(server.URL)
	two.startConsul(server.URL)

	one.must(`CREATE TABLE movies (title TEXT, rating INT)`)
	one.must(`INSERT INTO movies (title, rating) VALUES ("The Jerk", 10)`)
	one.must(`INSERT INTO movies VALUES ("Election", 9)`)
	two.shows("The Jerk|10\nElection|9\n")
	if b, err := os.ReadFile(filepath.Join(two.dir, ".primary")); err != nil || string(b) != "127.0.0.1\n" {
		t.Errorf(".primary is %q, %v", b, err)
	}
	const insert = `INSERT INTO movies VALUES ("Chairman of the Board", 1)`
	if out, err := two.sqlite3(insert); err == nil {
		t.Errorf("a write on the second node: no error, %q", out)
	}

	// The tutorial's end of the primary hands the lease over.
	one.interrupt()
	two.takes(insert)
	all := "The Jerk|10\nElection|9\nChairman of the Board|1\n"
	two.shows(all)
	one.startConsul(server.URL)
	one.shows(all)
	if out, err := one.sqlite3(insert); err == nil {
		t.Errorf("a write on the node that came back: no error, %q", out)
	}

	// The other end: the lease has to run out. It does in TTL, lock-delay and a second, on a machine that
	// is not busy; Consul alone would take twice the TTL.
	killed := time.Now()
	two.killAll()
	one.takes(`INSERT INTO movies VALUES ("Roxanne", 8)`)
	t.Logf("the next write came %.1f s after the kill", time.Since(killed).Seconds())
	all += "Roxanne|8\n"
	one.shows(all)
	two.startConsul(server.URL)
	two.shows(all)
	if out, err := two.sqlite3(insert); err == nil {
		t.Errorf("a write on the node that was killed: no error, %q", out)
	}
	for _, w := range []*walker{one, two} {
		if out, err := w.sqlite3("PRAGMA integrity_check"); err != nil || out != "ok\n" {
			t.Errorf("integrity_check: %q, %v", out, err)
		}
	}
	two.interrupt()
	one.interrupt()
	var files [2][]byte
	for i, w := range []*walker{one, two} {
		if files[i], err = os.ReadFile(filepath.Join(w.dir, "..", "."+filepath.Base(w.dir)+".litefs", "files", "data.db")); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(files[0], files[1]) {
		t.Errorf("the nodes' files differ: %d and %d bytes", len(files[0]), len(files[1]))
	}
}

// takes waits until the node takes a write.
func (w *walker) takes(sql string) {
	w.t.Helper()
	eventually(w.t, "the node takes a write", func() (bool, string) {
		out, err := w.sqlite3(sql)
		return err == nil, out
	})
}

// killAll ends every process of the node as a power cut does.
func (w *walker) killAll() {
	w.t.Helper()
	if err := syscall.Kill(-w.proc.PID(), syscall.SIGKILL); err != nil {
		w.t.Fatal(err)
	}
	err := errors.Join(w.proc.Kill(), childnode.Detach(w.dir))
	w.proc = nil
	if err != nil {
		w.t.Fatal(err)
	}
}
