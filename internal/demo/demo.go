// Package demo shows replication on one machine: three nodes in a temporary directory, an application
// that writes on one and applications that read the rows on the others, in place.
//
// Nodes and applications are child processes, as in real life. Run shows the lag of each replica until
// its context ends, then verifies and compares the nodes and removes everything it made.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/verify"
)

// Options of Run.
type Options struct {
	Out      io.Writer
	Binary   string         // the litefs command; empty: the running binary
	App      sqlapp.Command // how to start a child that serves SQL
	Interval time.Duration  // between two reports; default 1 s, on a terminal a fifth of it
	Lines    int            // end after so many reports; 0: when the context ends
	Terminal bool           // Out understands a terminal's codes: reports take the place of the last one
}

// Bounds of waits that should be quick; a loaded machine is given time.
const (
	startWait = time.Minute
	stepWait  = time.Minute
	endWait   = time.Minute
)

// dbName is the database of the demonstration.
const dbName = "demo.db"

// roles are the nodes; the first writes.
var roles = [...]string{"primary", "replica-1", "replica-2"}

// demo is a running demonstration.
type demo struct {
	Options
	dir   string
	nodes []*node // the primary first
	apps  []*sqlapp.Process
}

// node is one of the nodes.
type node struct {
	role string
	cfg  childnode.Config
	proc *childnode.Node
	conn *sqlapp.Conn // of the application: the writer's on the primary, a reader's on the others
}

// Run shows replication until ctx ends, then verifies and cleans up. The end of ctx is no error.
func Run(ctx context.Context, o Options) (err error) {
	if !sqlapp.Available {
		return fmt.Errorf("the demonstration needs SQLite: %w", sqlapp.ErrNoSQLite)
	}
	if o.Interval <= 0 {
		o.Interval = time.Second
		if o.Terminal {
			o.Interval /= 5
		}
	}
	dir, err := os.MkdirTemp("", "litefs-demo-")
	if err != nil {
		return fmt.Errorf("make a directory for the demonstration: %w", err)
	}
	d := &demo{Options: o, dir: dir}
	defer func() { err = errors.Join(err, d.cleanUp(context.WithoutCancel(ctx))) }()

	if err := d.start(ctx); err != nil {
		return ended(ctx, err)
	}
	if err := d.show(ctx); err != nil && ctx.Err() == nil {
		return err
	}
	return d.finish(context.WithoutCancel(ctx))
}

// ended drops the error of work that the end of ctx cut short.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// printf writes to the output; a reader that went away does not stop the demonstration's clean-up.
func (d *demo) printf(format string, args ...any) { _, _ = fmt.Fprintf(d.Out, format, args...) }

// start brings up the nodes and their applications.
func (d *demo) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	primaryURL := ""
	for _, role := range roles {
		n, err := d.startNode(ctx, role, primaryURL)
		if err != nil {
			return err
		}
		d.nodes = append(d.nodes, n)
		primaryURL = "http://" + d.nodes[0].cfg.Addr
	}
	d.printf("%d nodes, everything in %s, removed at the end (Ctrl-C)\n", len(d.nodes), d.dir)
	for _, n := range d.nodes {
		d.printf("  %-9s  %s  http://%s\n", n.role, n.cfg.Mount, n.cfg.Addr)
	}
	if err := d.createDatabase(ctx); err != nil {
		return err
	}
	for _, n := range d.nodes {
		// The database appears on a replica with its first transaction.
		if err := d.until(ctx, func() (bool, error) {
			_, err := os.Stat(d.path(n))
			return err == nil, nil
		}); err != nil {
			return fmt.Errorf("wait for %s on the %s: %w", dbName, n.role, err)
		}
		conn, err := d.open(ctx, n)
		if err != nil {
			return err
		}
		n.conn = conn
	}
	d.printf("look for yourself:\n  sqlite3 %s 'SELECT * FROM messages ORDER BY id DESC LIMIT 3'\n\n", d.path(d.nodes[1]))
	return nil
}

// startNode starts one node and waits until its mount serves.
func (d *demo) startNode(ctx context.Context, role, primaryURL string) (*node, error) {
	addr, err := childnode.FreeAddr()
	if err != nil {
		return nil, err
	}
	n := &node{role: role, cfg: childnode.Config{
		Mount: filepath.Join(d.dir, role), Data: filepath.Join(d.dir, role+".data"),
		Addr: addr, PrimaryURL: primaryURL, Passthrough: true,
	}}
	if err := os.Mkdir(n.cfg.Mount, 0o755); err != nil {
		return nil, fmt.Errorf("make a mount point: %w", err)
	}
	config := filepath.Join(d.dir, role+".yml")
	if err := n.cfg.WriteFile(config); err != nil {
		return nil, err
	}
	if n.proc, err = childnode.Start(childnode.Options{Binary: d.Binary, Config: config}); err != nil {
		return nil, err
	}
	if err := n.proc.Ready(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start the %s: %w", role, err), n.proc.Kill(), childnode.Detach(n.cfg.Mount))
	}
	return n, nil
}

// createDatabase makes the database and closes it: how the kernel serves a file is settled when it is
// opened, and only a file that is in WAL mode by then is served without a detour through the daemon.
func (d *demo) createDatabase(ctx context.Context) error {
	c, err := d.open(ctx, d.nodes[0])
	if err != nil {
		return err
	}
	for _, sql := range []string{"PRAGMA journal_mode=wal", "CREATE TABLE messages(id INTEGER PRIMARY KEY, body TEXT, at TEXT)"} {
		if _, err := c.Exec(ctx, sql); err != nil {
			return errors.Join(fmt.Errorf("create %s: %w", dbName, err), c.Close(ctx))
		}
	}
	return c.Close(ctx)
}

// open opens the database on a node, in an application of its own.
func (d *demo) open(ctx context.Context, n *node) (*sqlapp.Conn, error) {
	// The application outlives ctx, which bounds the start: Close and Kill end it.
	app, err := sqlapp.Start(context.WithoutCancel(ctx), d.App)
	if err != nil {
		return nil, err
	}
	d.apps = append(d.apps, app)
	return app.Open(ctx, d.path(n), sqlapp.Options{BusyTimeout: 10 * time.Second, Pragmas: []string{"synchronous=normal"}})
}

func (d *demo) path(n *node) string { return filepath.Join(n.cfg.Mount, dbName) }

// positions reads the position of each node from its mount.
func (d *demo) positions() (out []string, err error) {
	for _, n := range d.nodes {
		b, err := os.ReadFile(d.path(n) + "-pos")
		if err != nil {
			return nil, fmt.Errorf("read the position of the %s: %w", n.role, err)
		}
		out = append(out, strings.TrimSpace(string(b)))
	}
	return out, nil
}

// until asks again and again, soon at first, until the answer is yes or ctx ends.
func (d *demo) until(ctx context.Context, ok func() (bool, error)) error {
	const first, most = 100 * time.Microsecond, 20 * time.Millisecond
	for delay := first; ; delay = min(2*delay, most) {
		done, err := ok()
		if done || err != nil {
			return err
		}
		t := time.NewTimer(delay)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
	}
}

// finish lets the replicas catch up, stops everything, and verifies and compares the nodes without their
// daemons.
func (d *demo) finish(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, endWait)
	defer cancel()
	d.printf("\nstopping, verifying and comparing ...\n")
	err := d.until(ctx, func() (bool, error) {
		p, err := d.positions()
		return err == nil && len(slices.Compact(p)) == 1, err
	})
	if err != nil {
		return fmt.Errorf("wait until the replicas have everything: %w", err)
	}
	if err := d.stopAll(ctx); err != nil {
		return err
	}
	var first *verify.Database
	for _, n := range d.nodes {
		found, err := d.verify(ctx, n)
		if err != nil {
			return fmt.Errorf("verify the %s: %w", n.role, err)
		}
		d.printf("  %-9s  %016x/%016x: %d log entries replayed, %d pages equal, integrity_check %s\n",
			n.role, found.Max, found.Checksum, found.Entries, found.Pages, found.Integrity)
		if first == nil {
			first = found
		}
		if found.Max != first.Max || found.Checksum != first.Checksum {
			return fmt.Errorf("the %s ended at %016x/%016x, the primary at %016x/%016x", n.role, found.Max, found.Checksum, first.Max, first.Checksum)
		}
	}
	d.printf("all %d nodes are the same, byte for byte\n", len(d.nodes))
	return nil
}

// verify checks what a node that has ended left.
func (d *demo) verify(ctx context.Context, n *node) (*verify.Database, error) {
	report, err := verify.Run(ctx, verify.Options{DataDir: n.cfg.Data, Names: []string{dbName}, TempDir: d.dir})
	if err != nil {
		return nil, err
	}
	found := report.Databases[0]
	for _, fault := range found.Faults {
		err = errors.Join(err, fault)
	}
	return found, err
}

// stopAll ends the applications, then the replicas, then the primary.
func (d *demo) stopAll(ctx context.Context) error {
	var errs []error
	for _, app := range d.apps {
		errs = append(errs, app.Close(ctx))
	}
	d.apps = nil
	for i := len(d.nodes) - 1; i >= 0; i-- {
		if n := d.nodes[i]; n.proc != nil {
			errs = append(errs, n.proc.Stop(ctx))
			n.proc = nil
		}
	}
	return errors.Join(errs...)
}

// cleanUp ends whatever still runs and removes the directory.
func (d *demo) cleanUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, endWait)
	defer cancel()
	errs := []error{d.stopAll(ctx)}
	for _, n := range d.nodes {
		errs = append(errs, childnode.Detach(n.cfg.Mount))
	}
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}
