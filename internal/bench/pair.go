package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/litefs/litefs/internal/childnode"
)

// Bounds of waits that should be quick; a loaded machine is given time.
const (
	startWait = time.Minute
	stepWait  = 5 * time.Minute
	endWait   = time.Minute
)

// pair is a primary and its replica on this machine, connected over loopback.
type pair struct {
	o                Options
	dir              string
	primary, replica *member // replica is nil while none runs
	replicas         int     // made so far
}

// member is one node, a child process.
type member struct {
	cfg  childnode.Config
	proc *childnode.Node
	log  *nodeLog
}

func startPair(ctx context.Context, o Options, dir string) (p *pair, err error) {
	p = &pair{o: o, dir: dir}
	if p.primary, err = p.start(ctx, "primary", ""); err != nil {
		return nil, err
	}
	if err := p.addReplica(ctx); err != nil {
		return nil, errors.Join(err, p.stop(ctx))
	}
	return p, nil
}

// start starts a node of the pair.
func (p *pair) start(ctx context.Context, name, primaryURL string) (*member, error) {
	return startMember(ctx, p.o, p.dir, name, func(c *childnode.Config) {
		c.PrimaryURL, c.Durability = primaryURL, []string{quorumRule}
	})
}

// startMember starts a node with empty directories and waits until its mount serves.
func startMember(ctx context.Context, o Options, dir, name string, change func(*childnode.Config)) (*member, error) {
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	addr, err := childnode.FreeAddr()
	if err != nil {
		return nil, err
	}
	m := &member{cfg: childnode.Config{
		Mount: filepath.Join(dir, name), Data: filepath.Join(dir, name+".data"), Addr: addr, Passthrough: !o.NoPassthrough,
	}, log: &nodeLog{to: o.NodeLog}}
	change(&m.cfg)
	if err := os.Mkdir(m.cfg.Mount, 0o700); err != nil {
		return nil, fmt.Errorf("make a mount point: %w", err)
	}
	config := filepath.Join(dir, name+".yml")
	if err := m.cfg.WriteFile(config); err != nil {
		return nil, err
	}
	if m.proc, err = childnode.Start(childnode.Options{Binary: o.Binary, Config: config, Log: m.log}); err != nil {
		return nil, err
	}
	if err := m.proc.Ready(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start the %s: %w", name, err), m.proc.Kill(), childnode.Detach(m.cfg.Mount))
	}
	return m, nil
}

// addReplica starts a replica that has nothing yet.
func (p *pair) addReplica(ctx context.Context) (err error) {
	p.replicas++
	p.replica, err = p.start(ctx, fmt.Sprintf("replica-%d", p.replicas), "http://"+p.primary.cfg.Addr)
	return err
}

// removeReplica ends the replica and removes what it had.
func (p *pair) removeReplica(ctx context.Context) error {
	m := p.replica
	p.replica = nil
	return errors.Join(m.stop(ctx), os.RemoveAll(m.cfg.Data))
}

// stop ends both nodes.
func (p *pair) stop(ctx context.Context) error {
	var errs []error
	for _, m := range []*member{p.replica, p.primary} {
		if m != nil {
			errs = append(errs, m.stop(ctx))
		}
	}
	p.primary, p.replica = nil, nil
	return errors.Join(errs...)
}

func (m *member) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWait)
	defer cancel()
	return errors.Join(m.proc.Stop(ctx), childnode.Detach(m.cfg.Mount))
}

// caughtUp waits until the replica shows the database as the primary has it.
func (p *pair) caughtUp(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, stepWait)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		want, err := p.primary.position(name)
		if err != nil {
			return err
		}
		got, err := p.replica.position(name)
		if err != nil {
			return err
		}
		if want != nil && bytes.Equal(got, want) {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.replica.proc.Exited():
			return fmt.Errorf("the replica has ended:\n%s", p.replica.proc.Tail())
		case <-ctx.Done():
			return fmt.Errorf("the replica is at %q, the primary at %q: %w\n%s", got, want, context.Cause(ctx), p.replica.proc.Tail())
		}
	}
}

// path is where applications find a database on the node.
func (m *member) path(name string) string { return filepath.Join(m.cfg.Mount, name) }

// position is what the node's mount says of a database; nil when the node does not have it.
func (m *member) position(name string) ([]byte, error) {
	b, err := os.ReadFile(m.path(name) + "-pos")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the position of %s: %w", name, err)
	}
	return b, nil
}

// walSize is the size of a database's write-ahead log, in bytes; 0 when there is none.
func (m *member) walSize(name string) (int64, error) {
	fi, err := os.Stat(m.path(name) + "-wal")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("size of the write-ahead log: %w", err)
	}
	return fi.Size(), nil
}
