package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/logkey"
	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
	"github.com/litefs/litefs/internal/verify"
)

// patience bounds every wait for something that should be quick: a loaded machine is not a failure.
const patience = 2 * time.Minute

// command is the litefs binary, built once for all tests.
var command = struct {
	once sync.Once
	dir  string
	err  error
}{}

func TestMain(m *testing.M) {
	// Tests that call t.Parallel wait for most of their time, for leases and for stores: two processors take four.
	if err := flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0))); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	sqlitetest.Main(m)
	for _, dir := range []string{command.dir, programs.dir} {
		if dir == "" {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

// binary returns the path of the command.
func binary(t testing.TB) string {
	t.Helper()
	command.once.Do(func() {
		if command.dir, command.err = os.MkdirTemp("", "litefs-e2e-"); command.err != nil {
			return
		}
		out, err := exec.Command("go", "build", "-o", filepath.Join(command.dir, "litefs"), "github.com/litefs/litefs/cmd/litefs").CombinedOutput()
		if err != nil {
			command.err = fmt.Errorf("build the command: %w\n%s", err, out)
		}
	})
	if command.err != nil {
		t.Fatal(command.err)
	}
	return filepath.Join(command.dir, "litefs")
}

// timeout returns a context that bounds one wait.
func timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// node is one node of a test: its directories stay when the process is ended and started again.
type node struct {
	t    testing.TB
	dir  string
	cfg  childnode.Config
	args []string        // further flags of the command
	proc *childnode.Node // nil while it is down
	log  *logBuffer

	// inside returns the command line that runs args where the node is; nil: on this machine.
	inside func(args ...string) []string
	token  string // http.token; "": none

	keys *logkey.Keys // of its log; nil: it lies in the clear
}

// logBuffer keeps what all processes of a node printed.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// text returns the end of the log.
func (l *logBuffer) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	const most = 16 << 10
	b := l.b.Bytes()
	return string(b[max(0, len(b)-most):])
}

// option changes the configuration of a node.
type option func(*childnode.Config)

// cached turns passthrough off.
func cached(c *childnode.Config) { c.Passthrough = false }

// follows makes the node a follower.
func follows(primary *node) option {
	return func(c *childnode.Config) { c.PrimaryURL = "http://" + primary.cfg.Addr }
}

// newNode makes the directories and the configuration of a node and does not start it.
func newNode(t testing.TB, options ...option) *node {
	t.Helper()
	dir := t.TempDir()
	addr, err := childnode.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: dir, log: &logBuffer{}, cfg: childnode.Config{
		Mount: filepath.Join(dir, "mnt"), Data: filepath.Join(dir, "data"), Addr: addr, Passthrough: true,
	}}
	for _, o := range options {
		o(&n.cfg)
	}
	if err := os.Mkdir(n.cfg.Mount, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := n.cfg.WriteFile(n.configPath()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.cleanup)
	return n
}

// startNode makes a node and waits until its mount serves.
func startNode(t testing.TB, options ...option) *node {
	t.Helper()
	n := newNode(t, options...)
	n.start()
	return n
}

// cleanup ends the node whatever the test left, and leaves no mount.
func (n *node) cleanup() {
	if n.proc != nil {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		// A daemon that a test stopped must run to end.
		if err := n.proc.Signal(syscall.SIGCONT); err != nil && !errors.Is(err, os.ErrProcessDone) {
			n.t.Error(err)
		}
		if err := n.proc.Stop(ctx); err != nil {
			n.t.Errorf("end of node: %v", err)
		}
	}
	if err := n.detach(); err != nil {
		n.t.Error(err)
	}
	if n.t.Failed() {
		n.t.Logf("log of the node at %s:\n%s", n.cfg.Mount, n.log.text())
	}
}

func (n *node) configPath() string { return filepath.Join(n.dir, "litefs.yml") }

// path returns the path of a file in the mount.
func (n *node) path(name string) string { return filepath.Join(n.cfg.Mount, name) }

// launch starts the process and does not wait.
func (n *node) launch() *childnode.Node {
	n.t.Helper()
	o := childnode.Options{
		Binary: binary(n.t), Args: append([]string{"mount", "-config", n.configPath()}, n.args...),
		Config: n.configPath(), Log: n.log,
	}
	if n.inside != nil {
		args := n.inside(append([]string{o.Binary}, o.Args...)...)
		o.Binary, o.Args = args[0], args[1:]
	}
	if n.token != "" {
		o.Env = []string{"LITEFS_TOKEN=" + n.token}
	}
	proc, err := childnode.Start(o)
	if err != nil {
		n.t.Fatal(err)
	}
	return proc
}

// start starts the process and waits until the mount serves.
func (n *node) start() {
	n.t.Helper()
	n.proc = n.launch()
	if err := n.proc.Ready(timeout(n.t)); err != nil {
		n.t.Fatal(err)
	}
}

// stop ends the process gently; its mount is gone then.
func (n *node) stop() {
	n.t.Helper()
	err := n.proc.Stop(timeout(n.t))
	n.proc = nil
	if err != nil {
		n.t.Fatal(err)
	}
	if mounted(n.t, n.cfg.Mount) {
		n.t.Fatalf("%s is still mounted after the end of the node", n.cfg.Mount)
	}
}

// kill ends the process as a crash does.
func (n *node) kill() {
	n.t.Helper()
	if direct := len(n.cfg.Replica)+len(n.cfg.Durability) > 0 || n.cfg.DaemonLocks || n.cfg.ForwardDir != ""; direct || !n.cfg.Passthrough {
		// The daemon works on the databases through its own mount. A thread that waits for an answer of
		// its own process then keeps it, and its mount, from being gone, until the mount is aborted.
		abort := time.AfterFunc(time.Second, func() {
			if err := n.detach(); err != nil {
				n.t.Error(err)
			}
		})
		defer abort.Stop()
	}
	err := n.proc.Kill()
	n.proc = nil
	if err != nil {
		n.t.Fatal(err)
	}
}

// detach takes the mounts away, whoever uses them.
func (n *node) detach() error {
	err := childnode.Detach(n.cfg.Mount)
	if n.cfg.ForwardDir != "" {
		err = errors.Join(childnode.Detach(n.cfg.ForwardDir), err)
	}
	return err
}

// mounted reports whether something is mounted at dir.
func mounted(t testing.TB, dir string) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(b), " "+dir+" ")
}

// verified verifies the data directory of a node that is down and returns its databases by name. A
// fault fails the test; so does a transaction that is in a file and not in the log.
func (n *node) verified() map[string]*verify.Database {
	n.t.Helper()
	report, err := verify.Run(timeout(n.t), verify.Options{DataDir: n.cfg.Data, Keys: n.keys, TempDir: n.t.TempDir()})
	if err != nil {
		n.t.Fatal(err)
	}
	if report.Running {
		n.t.Fatal("verification found the data directory locked")
	}
	out := map[string]*verify.Database{}
	for _, db := range report.Databases {
		out[db.Name] = db
		for _, fault := range db.Faults {
			n.t.Errorf("%s: %v", db.Name, fault)
		}
		for _, note := range db.Notes {
			n.t.Errorf("%s: %s", db.Name, note)
		}
		if db.Max > 0 && db.Pages > 0 && db.Integrity != "ok" {
			n.t.Errorf("%s: integrity_check: %s", db.Name, db.Integrity)
		}
	}
	return out
}

// pos asks the node for the position of a database: "TXID/checksum", "none" for one it does not have.
// It asks by HTTP and not by the file name-pos: to look for a file before it exists is another thing to
// test.
func (n *node) pos(name string) (string, error) {
	all, err := n.positions()
	if pos, ok := all[name]; ok || err != nil {
		return pos, err
	}
	return "none", nil
}

// positions asks the node for the positions of all its databases, by name.
func (n *node) positions() (map[string]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.cfg.Addr+"/info", nil)
	if err != nil {
		return nil, err
	}
	if n.token != "" {
		req.Header.Set("Authorization", "Bearer "+n.token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var info struct {
		Databases []struct{ Name, TXID, Checksum string }
	}
	if err := json.NewDecoder(resp.Body).Decode(&info); err != nil {
		return nil, err
	}
	all := make(map[string]string)
	for _, db := range info.Databases {
		all[db.Name] = db.TXID + "/" + db.Checksum
	}
	return all, nil
}

// settle makes everything that was written to a database part of its log: a checkpoint waits for it.
func settle(c *sqlitetest.Conn) {
	c.MustExec("PRAGMA wal_checkpoint(PASSIVE)")
}

// eventually waits until ok is true.
func eventually(t testing.TB, what string, ok func() (bool, string)) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		done, state := ok()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %s until %s: %s", patience, what, state)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// caughtUp waits until a follower is at the primary's position of a database. The primary's is read
// anew each time: what it has acknowledged in WAL mode, or without a journal, is captured a moment later.
func caughtUp(primary, follower *node, name string) {
	primary.t.Helper()
	eventually(primary.t, "the follower is where the primary is", func() (bool, string) {
		want, err := primary.pos(name)
		if err != nil {
			return false, err.Error()
		}
		got, err := follower.pos(name)
		return err == nil && got == want, fmt.Sprintf("it is at %s (%v), want %s", got, err, want)
	})
}

// open opens a connection with a generous busy time-out, for tests where writers compete.
func openPatient(app *sqlitetest.App, path string, pragmas ...string) *sqlitetest.Conn {
	return app.Open(path, append([]string{"busy_timeout=60000"}, pragmas...)...)
}

// insert is a step that writes one row of about n bytes.
func insert(n int) sqlapp.Step {
	return sqlapp.Step{SQL: fmt.Sprintf("INSERT INTO t(v) VALUES (randomblob(%d))", n)}
}
