// Package demo shows replication on one machine: two nodes in a temporary directory, an application
// that writes on one and an application that reads the rows on the other, in place.
//
// Nodes and applications are child processes, as in real life. Run prints a line each interval until
// its context ends, then verifies both nodes and removes everything it made.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
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
	Interval time.Duration  // between two lines; default 1 s
	Lines    int            // end after so many lines; 0: when the context ends
}

// Bounds of waits that should be quick; a loaded machine is given time.
const (
	startWait = time.Minute
	stepWait  = time.Minute
	endWait   = time.Minute
)

// dbName is the database of the demonstration.
const dbName = "demo.db"

// rowsPerLine is how many rows the writer commits, one transaction each, before a line is printed.
const rowsPerLine = 25

// demo is a running demonstration.
type demo struct {
	Options
	dir      string
	nodes    [2]*node
	apps     []*sqlapp.Process
	writer   *sqlapp.Conn // on the primary
	reader   *sqlapp.Conn // on the follower
	lastRow  int64
	rowsSeen int64
}

// node is one of the two nodes.
type node struct {
	role string
	cfg  childnode.Config
	proc *childnode.Node
}

// Run shows replication until ctx ends, then verifies and cleans up. The end of ctx is no error.
func Run(ctx context.Context, o Options) (err error) {
	if !sqlapp.Available {
		return fmt.Errorf("the demonstration needs SQLite: %w", sqlapp.ErrNoSQLite)
	}
	if o.Interval <= 0 {
		o.Interval = time.Second
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

// start brings up both nodes and both applications.
func (d *demo) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	primaryURL := ""
	for i, role := range []string{"primary", "follower"} {
		n, err := d.startNode(ctx, role, primaryURL)
		if err != nil {
			return err
		}
		d.nodes[i] = n
		primaryURL = "http://" + n.cfg.Addr
	}
	d.printf("two nodes, everything in %s, removed at the end (Ctrl-C)\n", d.dir)
	for _, n := range d.nodes {
		d.printf("  %-9s %s  http://%s\n", n.role, n.cfg.Mount, n.cfg.Addr)
	}
	if err := d.createDatabase(ctx); err != nil {
		return err
	}
	var err error
	if d.writer, err = d.open(ctx, d.nodes[0]); err != nil {
		return err
	}
	// The database appears on the follower with its first transaction.
	if err := d.until(ctx, func() (bool, error) {
		_, err := os.Stat(d.path(d.nodes[1]))
		return err == nil, nil
	}); err != nil {
		return fmt.Errorf("wait for %s on the follower: %w", dbName, err)
	}
	d.reader, err = d.open(ctx, d.nodes[1])
	d.printf("look for yourself:\n  sqlite3 %s 'SELECT * FROM messages ORDER BY id DESC LIMIT 3'\n\n", d.path(d.nodes[1]))
	return err
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

// show prints a line each interval until ctx ends.
func (d *demo) show(ctx context.Context) error {
	d.printf("%8s  %10s  %-33s  %-33s  %s\n", "written", "read there", "position of the primary", "position of the follower", "lag")
	tick := time.NewTicker(d.Interval)
	defer tick.Stop()
	for line := 0; d.Lines == 0 || line < d.Lines; line++ {
		if err := d.showLine(ctx); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// showLine writes rows on the primary, waits until they can be read on the follower, and prints both
// positions. The lag is from the last commit's return to the first read that sees it.
func (d *demo) showLine(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stepWait)
	defer cancel()
	for range rowsPerLine {
		_, err := d.writer.Exec(ctx, "INSERT INTO messages(body, at) VALUES ('row written on the primary', strftime('%Y-%m-%d %H:%M:%f', 'now'))")
		if err != nil {
			return fmt.Errorf("write on the primary: %w", err)
		}
		d.lastRow++
	}
	committed := time.Now()
	if err := d.until(ctx, func() (bool, error) { return d.read(ctx) }); err != nil {
		return fmt.Errorf("wait for row %d on the follower, which has %d: %w", d.lastRow, d.rowsSeen, err)
	}
	lag := time.Since(committed)
	positions, err := d.positions()
	if err != nil {
		return err
	}
	d.printf("%8d  %10d  %-33s  %-33s  %.1f ms\n", d.lastRow, d.rowsSeen, positions[0], positions[1], float64(lag)/float64(time.Millisecond))
	return nil
}

// read counts the rows on the follower and reports whether all are there.
func (d *demo) read(ctx context.Context) (bool, error) {
	rows, err := d.reader.Query(ctx, "SELECT count(*) FROM messages")
	if err != nil {
		return false, fmt.Errorf("read on the follower: %w", err)
	}
	n, ok := rows[0][0].(int64)
	if !ok {
		return false, fmt.Errorf("count is %v (%[1]T), want an integer", rows[0][0])
	}
	d.rowsSeen = n
	return n >= d.lastRow, nil
}

// positions reads the position of each node from its mount.
func (d *demo) positions() (out [2]string, err error) {
	for i, n := range d.nodes {
		b, err := os.ReadFile(d.path(n) + "-pos")
		if err != nil {
			return out, fmt.Errorf("read the position of the %s: %w", n.role, err)
		}
		out[i] = strings.TrimSpace(string(b))
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

// finish lets the follower catch up, stops everything, and verifies both nodes without their daemons.
func (d *demo) finish(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, endWait)
	defer cancel()
	d.printf("\nstopping and verifying ...\n")
	err := d.until(ctx, func() (bool, error) {
		p, err := d.positions()
		return p[0] == p[1], err
	})
	if err != nil {
		return fmt.Errorf("wait until the follower has everything: %w", err)
	}
	if err := d.stopAll(ctx); err != nil {
		return err
	}
	var found [2]*verify.Database
	for i, n := range d.nodes {
		report, err := verify.Run(ctx, verify.Options{DataDir: n.cfg.Data, Names: []string{dbName}, TempDir: d.dir})
		if err != nil {
			return fmt.Errorf("verify the %s: %w", n.role, err)
		}
		found[i] = report.Databases[0]
		for _, fault := range found[i].Faults {
			err = errors.Join(err, fmt.Errorf("verify the %s: %w", n.role, fault))
		}
		if err != nil {
			return err
		}
		d.printf("  %-9s %016x/%016x: %d log entries replayed, %d pages equal, integrity_check %s\n",
			n.role, found[i].Max, found[i].Checksum, found[i].Entries, found[i].Pages, found[i].Integrity)
	}
	if found[0].Max != found[1].Max || found[0].Checksum != found[1].Checksum {
		return errors.New("the nodes ended at different positions")
	}
	d.printf("both nodes are the same, byte for byte\n")
	return nil
}

// stopAll ends the applications, then the follower, then the primary.
func (d *demo) stopAll(ctx context.Context) error {
	var errs []error
	for _, app := range d.apps {
		errs = append(errs, app.Close(ctx))
	}
	d.apps = nil
	for i := len(d.nodes) - 1; i >= 0; i-- {
		if n := d.nodes[i]; n != nil && n.proc != nil {
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
		if n != nil {
			errs = append(errs, childnode.Detach(n.cfg.Mount))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}
