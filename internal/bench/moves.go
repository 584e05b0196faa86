package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/leaseserver"
	"github.com/litefs/litefs/internal/sqlapp"
)

// Names of the workloads in which the primary role moves. They run only when they are named: they need
// an etcd on this machine.
const (
	handoverName = "handover"
	failoverName = "failover"
)

// moveTTL is the TTL of the lease that the nodes share.
const moveTTL = 2 * time.Second

// moves is two nodes between which the role moves, and one writer on each. A writer tries without a
// pause and without patience: what is measured is the time in which none of them succeeds.
type moves struct {
	o      Options
	dir    string
	nodes  [2]*member
	apps   [2]*sqlapp.Process // the writers
	server *leaseserver.Server

	mu     sync.Mutex
	acked  int64
	last   time.Time     // the newest commit anywhere
	gap    time.Duration // the longest time between two commits since it was set to 0
	faults []string      // what a writer was told other than that the database is locked
}

// handover measures clean stops of the writing, b.o.Rounds at a time, each by `litefs promote` on the
// node that does not write.
func (b *pairBench) handover(ctx context.Context, round int) error {
	return b.move(ctx, round, func(ctx context.Context, m *moves, writing int) error {
		return m.command(ctx, m.nodes[1-writing], "promote")
	})
}

// failover measures kills of all processes of the node that writes.
func (b *pairBench) failover(ctx context.Context, round int) error {
	return b.move(ctx, round, func(ctx context.Context, m *moves, writing int) error {
		// The application dies with its node: alone it would go on, past the daemon, on files
		// that are open with passthrough.
		return errors.Join(m.apps[writing].Kill(), m.killNode(m.nodes[writing]))
	})
}

// move measures one move of the role.
func (b *pairBench) move(ctx context.Context, round int, do func(ctx context.Context, m *moves, writing int) error) (err error) {
	dir := filepath.Join(b.p.dir, fmt.Sprintf("moves-%s-%d", b.result.Workload.Name, round))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	m := &moves{o: b.o, dir: dir}
	defer func() { err = errors.Join(err, m.stop(ctx)) }()
	if err := m.start(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, stepWait)
	defer cancel()

	// All of it is on the node that does not die, or the loss is counted.
	writers, stopWriters := context.WithCancel(ctx)
	defer stopWriters()
	var (
		wg      sync.WaitGroup
		success [2]chan struct{}
	)
	for i := range m.nodes {
		success[i] = make(chan struct{}, 1)
		app, err := sqlapp.Start(ctx, m.o.App)
		if err != nil {
			return err
		}
		m.apps[i] = app
		defer func() {
			if cerr := app.Kill(); cerr != nil && !errors.Is(cerr, os.ErrProcessDone) {
				err = errors.Join(err, cerr)
			}
		}()
		conn, err := app.Open(ctx, m.nodes[i].path("app.db"), sqlapp.Options{Pragmas: []string{"synchronous=normal"}})
		if err != nil {
			return err
		}
		wg.Go(func() { m.write(writers, conn, success[i]) })
	}
	defer wg.Wait()
	defer stopWriters()
	if err := await(ctx, success[0]); err != nil {
		return fmt.Errorf("nobody writes: %w", err)
	}
	select {
	case <-time.After(300 * time.Millisecond):
	case <-ctx.Done():
	}
	m.reset()
	drainSignal(success[1])
	if err := do(ctx, m, 0); err != nil {
		return err
	}
	if err := await(ctx, success[1]); err != nil {
		return fmt.Errorf("the other node does not write: %w", err)
	}
	stopWriters()
	wg.Wait()
	lost, err := m.lost(ctx)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(b.result.Lags) == 0 {
		b.result.Lags = []Lags{nil}
	}
	b.result.Lags[0] = append(b.result.Lags[0], m.gap)
	slices.Sort(b.result.Lags[0])
	b.result.Lost += lost
	b.result.Faults = append(b.result.Faults, m.faults...)
	return nil
}

func await(ctx context.Context, ch <-chan struct{}) error {
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func drainSignal(ch <-chan struct{}) {
	select {
	case <-ch:
	default:
	}
}

// start starts the lease server and both nodes; the first one is the primary and has the table.
func (m *moves) start(ctx context.Context) error {
	dir := filepath.Join(m.dir, "etcd")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	var err error
	if m.server, err = leaseserver.Etcd(ctx, leaseserver.Options{Dir: dir, Log: m.o.NodeLog}); err != nil {
		return err
	}
	for i := range m.nodes {
		if m.nodes[i], err = m.startNode(ctx, i); err != nil {
			return err
		}
		if i == 1 {
			continue
		}
		app, err := sqlapp.Start(ctx, m.o.App)
		if err != nil {
			return err
		}
		c, err := app.Open(ctx, m.nodes[0].path("app.db"), sqlapp.Options{BusyTimeout: stepWait, Pragmas: []string{"journal_mode=wal"}})
		if err == nil {
			_, err = c.Exec(ctx, table)
		}
		if err := errors.Join(err, app.Kill()); err != nil {
			return err
		}
	}
	p := &pair{primary: m.nodes[0], replica: m.nodes[1]}
	return p.caughtUp(ctx, "app.db")
}

func (m *moves) startNode(ctx context.Context, i int) (*member, error) {
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	addr, err := childnode.FreeAddr()
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("node-%d", i)
	n := &member{cfg: childnode.Config{
		Mount: filepath.Join(m.dir, name), Data: filepath.Join(m.dir, name+".data"),
		Addr: addr, Passthrough: !m.o.NoPassthrough,
		Lease: []string{"type: etcd", "candidate: true", fmt.Sprintf("etcd:\n    url: %s\n    ttl: %s", m.server.URL, moveTTL)},
	}}
	if err := os.Mkdir(n.cfg.Mount, 0o700); err != nil {
		return nil, err
	}
	if err := n.cfg.WriteFile(m.config(i)); err != nil {
		return nil, err
	}
	if n.proc, err = childnode.Start(childnode.Options{Binary: m.o.Binary, Config: m.config(i), Log: m.o.NodeLog}); err != nil {
		return nil, err
	}
	if err := n.proc.Ready(ctx); err != nil {
		return nil, errors.Join(err, n.proc.Kill(), childnode.Detach(n.cfg.Mount))
	}
	return n, nil
}

func (m *moves) config(i int) string { return filepath.Join(m.dir, fmt.Sprintf("node-%d.yml", i)) }

// command runs a command of litefs for a node.
func (m *moves) command(ctx context.Context, n *member, name string) error {
	i := slices.Index(m.nodes[:], n)
	c, err := childnode.Start(childnode.Options{Binary: m.o.Binary, Args: []string{name, "-config", m.config(i)}, Log: m.o.NodeLog})
	if err != nil {
		return err
	}
	code, err := c.Wait(ctx)
	if err == nil && code != 0 {
		err = fmt.Errorf("litefs %s: exit code %d: %s", name, code, c.Tail())
	}
	return err
}

// killNode ends all processes of a node.
func (m *moves) killNode(n *member) error {
	err := syscall.Kill(-n.proc.PID(), syscall.SIGKILL)
	return errors.Join(err, n.proc.Kill(), childnode.Detach(n.cfg.Mount))
}

// write writes one row after the other.
func (m *moves) write(ctx context.Context, c *sqlapp.Conn, success chan<- struct{}) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for ctx.Err() == nil {
		_, err := c.Exec(ctx, "INSERT INTO t(v) VALUES (randomblob(100))")
		if ctx.Err() != nil && err != nil {
			return // it may have been committed: not acknowledged
		}
		if m.note(err) {
			return
		}
		if err == nil {
			select {
			case success <- struct{}{}:
			default:
			}
			continue
		}
		pause.Reset(time.Millisecond)
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
	}
}

// note notes how a write ended, and reports whether it was the last: of a writer that was killed.
func (m *moves) note(err error) (last bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err != nil && strings.Contains(err.Error(), "child process has ended"):
		return true
	case err == nil:
		now := time.Now()
		if !m.last.IsZero() {
			m.gap = max(m.gap, now.Sub(m.last))
		}
		m.last = now
		m.acked++
	case strings.Contains(err.Error(), "locked"):
	case len(m.faults) < 10:
		m.faults = append(m.faults, err.Error())
	}
	return false
}

func (n *member) ended() bool {
	select {
	case <-n.proc.Exited():
		return true
	default:
		return false
	}
}

func (m *moves) reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gap = 0
}

// lost counts the acknowledged rows that the node that writes now does not have.
func (m *moves) lost(ctx context.Context) (int64, error) {
	app, err := sqlapp.Start(ctx, m.o.App)
	if err != nil {
		return 0, err
	}
	c, err := app.Open(ctx, m.nodes[1].path("app.db"), sqlapp.Options{BusyTimeout: stepWait})
	var rows [][]any
	if err == nil {
		rows, err = c.Query(ctx, "SELECT count(*) FROM t")
	}
	if err := errors.Join(err, app.Kill()); err != nil {
		return 0, err
	}
	var n int64
	if _, err := fmt.Sscan(fmt.Sprint(rows[0][0]), &n); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(0, m.acked-n), nil
}

func (m *moves) stop(ctx context.Context) error {
	var errs []error
	for _, n := range m.nodes {
		switch {
		case n == nil:
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
