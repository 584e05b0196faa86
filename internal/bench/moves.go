package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/leaseserver"
	"github.com/litefs/litefs/internal/sqlapp"
)

// MoveWorkload is a way in which the primary role moves from one of two nodes to the other. It needs a
// lease server on this machine, and runs only when it is named.
type MoveWorkload struct {
	Name  string
	Lease string        // of which server, and how long
	What  string        // for people
	Bound time.Duration // in which the other node should write; 0: none

	backend string // "etcd", "consul", "nats" or "s3"
	server  func(context.Context, leaseserver.Options) (*leaseserver.Server, error)
	config  string // lines of the section lease, with %s for the server's URL
	phase   time.Duration
	do      func(ctx context.Context, m *moves, ws *writers, writing int) error
}

// is reports whether name asks for the workload: "failover" for all of that name, "failover-etcd" for one.
func (w MoveWorkload) is(name string) bool { return name == w.Name || name == w.Name+"-"+w.backend }

// MoveWorkloads returns all of them. Two that differ in their lease have one name.
func MoveWorkloads() []MoveWorkload {
	onEtcd := func(ttl string) MoveWorkload {
		return MoveWorkload{
			backend: "etcd", Lease: "etcd, TTL " + ttl, server: leaseserver.Etcd,
			config: "type: etcd\n  etcd:\n    url: %s\n    ttl: " + ttl,
		}
	}
	consul := MoveWorkload{backend: "consul", Lease: "Consul, TTL 10 s, lock-delay 1 s", server: leaseserver.ConsulDev, config: "type: consul\n  consul:\n    url: %s"}
	nats := MoveWorkload{backend: "nats", Lease: "NATS, TTL 2 s, lock-delay 0.2 s", server: leaseserver.NATS, config: "type: nats\n  nats:\n    url: %s\n    ttl: 2s\n    lock-delay: 200ms"}
	bucket := MoveWorkload{
		backend: "s3", Lease: "a bucket (versitygw), TTL 2 s, lock-delay 0.2 s", server: leaseserver.S3,
		config: "type: s3\n  s3:\n    url: s3://" + leaseserver.S3Bucket + "\n    endpoint: %s\n    access-key: " + leaseserver.S3AccessKey +
			"\n    secret-key: " + leaseserver.S3SecretKey + "\n    ttl: 2s\n    lock-delay: 200ms",
	}
	handover := func(w MoveWorkload) MoveWorkload {
		w.Name, w.What = "handover", "`litefs promote` on the other node"
		w.do = func(ctx context.Context, m *moves, _ *writers, writing int) error {
			return m.command(ctx, 1-writing, "promote")
		}
		return w
	}
	failover := func(w MoveWorkload, ttl, delay time.Duration) MoveWorkload {
		w.Name, w.What = "failover", "kill -9 of all processes of the primary, restarted for the next round"
		// A renewal comes each third of the TTL: kills are spread over the time between two.
		w.Bound, w.phase = ttl+delay+time.Second, ttl/3
		w.do = func(_ context.Context, m *moves, ws *writers, writing int) error {
			// Applications die with their node: alone they would go on, past the daemon, on files that are
			// open with passthrough.
			return errors.Join(ws.kill(writing), m.kill(writing))
		}
		return w
	}
	return []MoveWorkload{
		handover(onEtcd("10s")), handover(nats), handover(bucket),
		failover(onEtcd("2s"), 2*time.Second, 0), failover(consul, 10*time.Second, time.Second),
		failover(nats, 2*time.Second, 200*time.Millisecond), failover(bucket, 2*time.Second, 200*time.Millisecond),
	}
}

// MoveResult is what was found about one of them.
type MoveResult struct {
	Workload MoveWorkload

	Gaps  Lags // of each move, the longest time without a commit on either node
	Acked int  // transactions acknowledged
	Lost  int  // of these, not in the database after the move

	// Of an application with a busy time-out of a second, which goes to the other node when its own has
	// handed over.
	Refused int      // how often it was told SQLITE_BUSY by a node that was not the primary any more
	Errors  int      // how often it was told anything else
	Said    []string // some of these errors
}

// Late is how many moves took longer than the bound.
func (r MoveResult) Late() int {
	if r.Workload.Bound == 0 {
		return 0
	}
	in, _ := slices.BinarySearch(r.Gaps, r.Workload.Bound+1)
	return len(r.Gaps) - in
}

// moves is two nodes between which the role moves.
type moves struct {
	o      Options
	w      MoveWorkload
	dir    string
	nodes  [2]*member
	server *leaseserver.Server
}

// runMoves measures one workload, o.Rounds moves to and fro.
func runMoves(ctx context.Context, o Options, dir string, w MoveWorkload) (r MoveResult, err error) {
	r = MoveResult{Workload: w}
	m := &moves{o: o, w: w, dir: dir}
	defer func() { err = errors.Join(err, m.stop(ctx)) }()
	if err := m.start(ctx); err != nil {
		return r, err
	}
	for round := range o.Rounds {
		if err := m.round(ctx, round, &r); err != nil {
			return r, fmt.Errorf("move %d: %w", round+1, err)
		}
	}
	return r, nil
}

// round measures one move.
func (m *moves) round(ctx context.Context, round int, r *MoveResult) error {
	ctx, cancel := context.WithTimeout(ctx, stepWait)
	defer cancel()
	from, to := round%2, 1-round%2
	ws, err := m.startWriters(ctx, round)
	if err != nil {
		return err
	}
	defer ws.stop()
	if err := await(ctx, ws.wrote[from]); err != nil {
		return fmt.Errorf("nobody writes: %w", err)
	}
	pause := 300*time.Millisecond + time.Duration(round)*m.w.phase/time.Duration(m.o.Rounds)
	select {
	case <-time.After(pause):
	case <-ctx.Done():
	}
	ws.begin(to)
	if err := m.w.do(ctx, m, ws, from); err != nil {
		return err
	}
	if err := await(ctx, ws.wrote[to]); err != nil {
		return fmt.Errorf("the other node does not write: %w", err)
	}
	// An application that waits in its busy handler on the old node is told within its second.
	if err := await(ctx, ws.moved); err != nil {
		return fmt.Errorf("the application does not write on the other node: %w", err)
	}
	if err := ws.stop(); err != nil {
		return err
	}
	lost, err := m.lost(ctx, to, ws)
	if err != nil {
		return err
	}
	r.Gaps = append(r.Gaps, ws.gap)
	slices.Sort(r.Gaps)
	r.Acked += ws.count()
	r.Lost += lost
	r.Refused += ws.refused
	r.Errors += ws.faults
	r.Said = append(r.Said, ws.said...)
	if m.nodes[from].ended() {
		if err := m.startNode(ctx, from); err != nil {
			return err
		}
	}
	return (&pair{primary: m.nodes[to], replica: m.nodes[from]}).caughtUp(ctx, movesDB)
}

func await(ctx context.Context, ch <-chan struct{}) error {
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

const movesDB = "app.db"

// start starts the lease server and both nodes; the first one is the primary and has the table.
func (m *moves) start(ctx context.Context) error {
	dir := filepath.Join(m.dir, "lease")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	var err error
	if m.server, err = m.w.server(ctx, leaseserver.Options{Dir: dir, Log: m.o.NodeLog}); err != nil {
		return err
	}
	for i := range m.nodes {
		addr, err := childnode.FreeAddr()
		if err != nil {
			return err
		}
		name := fmt.Sprintf("node-%d", i)
		m.nodes[i] = &member{cfg: childnode.Config{
			Mount: filepath.Join(m.dir, name), Data: filepath.Join(m.dir, name+".data"),
			Addr: addr, Passthrough: !m.o.NoPassthrough,
			Lease: []string{fmt.Sprintf(m.w.config, m.server.URL)},
		}}
		if err := os.Mkdir(m.nodes[i].cfg.Mount, 0o700); err != nil {
			return err
		}
		if err := m.nodes[i].cfg.WriteFile(m.config(i)); err != nil {
			return err
		}
		if err := m.startNode(ctx, i); err != nil {
			return err
		}
		if i == 1 {
			break
		}
		if _, err := m.sql(ctx, 0, "PRAGMA journal_mode=wal"); err != nil {
			return err
		}
		if _, err := m.sql(ctx, 0, "CREATE TABLE t(writer INTEGER, n INTEGER, v BLOB, PRIMARY KEY (writer, n)) WITHOUT ROWID"); err != nil {
			return err
		}
	}
	return (&pair{primary: m.nodes[0], replica: m.nodes[1]}).caughtUp(ctx, movesDB)
}

func (m *moves) config(i int) string { return filepath.Join(m.dir, fmt.Sprintf("node-%d.yml", i)) }

// startNode starts a node in its directories.
func (m *moves) startNode(ctx context.Context, i int) (err error) {
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	n := m.nodes[i]
	if n.proc, err = childnode.Start(childnode.Options{Binary: m.o.Binary, Config: m.config(i), Log: m.o.NodeLog}); err != nil {
		return err
	}
	return n.proc.Ready(ctx)
}

// sql runs one statement on a node, by an application of its own.
func (m *moves) sql(ctx context.Context, i int, sql string, args ...any) (rows [][]any, err error) {
	app, err := sqlapp.Start(ctx, m.o.App)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, app.Close(ctx)) }()
	c, err := app.Open(ctx, m.nodes[i].path(movesDB), sqlapp.Options{BusyTimeout: stepWait})
	if err != nil {
		return nil, err
	}
	return c.Query(ctx, sql, args...)
}

// command runs a command of litefs for a node.
func (m *moves) command(ctx context.Context, i int, name string) error {
	c, err := childnode.Start(childnode.Options{Binary: m.o.Binary, Args: []string{name, "-config", m.config(i)}, Log: m.o.NodeLog})
	if err != nil {
		return err
	}
	code, err := c.Wait(ctx)
	if err == nil && code != 0 {
		err = fmt.Errorf("litefs %s: exit code %d: %s\nthe nodes say:\n%s\n\n%s", name, code, c.Tail(), m.nodes[i].proc.Tail(), m.nodes[1-i].proc.Tail())
	}
	return err
}

// kill ends all processes of a node.
func (m *moves) kill(i int) error {
	n := m.nodes[i]
	err := syscall.Kill(-n.proc.PID(), syscall.SIGKILL)
	return errors.Join(err, n.proc.Kill(), childnode.Detach(n.cfg.Mount))
}

// isPrimary asks a node whether writers are, or will be, let in.
func (m *moves) isPrimary(ctx context.Context, i int) (bool, error) {
	n := m.nodes[i]
	secret, err := n.cfg.Secret()
	if err != nil {
		return false, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.cfg.Addr+"/info", nil)
	if err != nil {
		return false, err
	}
	req.Header.Set("Authorization", "Bearer "+secret)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, err
	}
	var info struct{ IsPrimary bool }
	err = json.NewDecoder(resp.Body).Decode(&info)
	return info.IsPrimary, errors.Join(err, resp.Body.Close())
}

func (n *member) ended() bool {
	select {
	case <-n.proc.Exited():
		return true
	default:
		return false
	}
}

// lost counts the acknowledged rows that a node does not have.
func (m *moves) lost(ctx context.Context, i int, ws *writers) (lost int, err error) {
	for _, w := range ws.all {
		rows, err := m.sql(ctx, i, "SELECT n FROM t WHERE writer = ?", w.id)
		if err != nil {
			return 0, err
		}
		have := make(map[int64]bool, len(rows))
		for _, row := range rows {
			n, ok := row[0].(int64)
			if !ok {
				return 0, fmt.Errorf("a row's number is %v", row[0])
			}
			have[n] = true
		}
		for _, n := range w.acked {
			if !have[n] {
				lost++
			}
		}
	}
	return lost, nil
}

func (m *moves) stop(ctx context.Context) error {
	var errs []error
	for _, n := range m.nodes {
		switch {
		case n == nil || n.proc == nil:
		case n.ended():
			errs = append(errs, childnode.Detach(n.cfg.Mount))
		default:
			errs = append(errs, n.stop(ctx))
		}
	}
	if m.server != nil {
		errs = append(errs, m.server.Kill())
	}
	return errors.Join(errs...)
}
