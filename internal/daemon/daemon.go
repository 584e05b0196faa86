// Package daemon builds a running node out of a configuration: the store, the
// mount, the server for other nodes, and the role. It is the only place where
// the kernel's side and the network's side meet.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/fuse"
	"github.com/litefs/litefs/http"
	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/ship"
	"github.com/litefs/litefs/proxy"
)

// Options say which node to run.
type Options struct {
	Config *config.Config
	Logger *slog.Logger

	// Guardian, if there is one, holds what must outlive this process.
	Guardian Guardian

	// Ready is called once the mount serves and, on a replica without
	// skip-sync, once it has caught up with its primary for the first time.
	Ready func(*Node)
}

// closeTimeout bounds a shutdown: how long the mount may stay busy before it
// is detached from the tree.
const closeTimeout = 10 * time.Second

// flushTimeout bounds how long a shutdown waits for the archive.
const flushTimeout = 3 * time.Second

// settleTimeout bounds how long a start waits for the lease service to say what
// this node is.
const settleTimeout = 10 * time.Second

// Node is a running node.
type Node struct {
	cfg      *config.Config
	logger   *slog.Logger
	guardian Guardian // nil: none

	// inherited is the mount of the daemon before, until it is served.
	inherited *fuse.Inherited

	leaser  litefs.Leaser
	store   *litefs.Store
	session *fuse.Session
	second  *fuse.Session // at fuse.forward-dir; nil: none
	server  *http.Server
	client  *http.Client
	proxy   *proxy.Proxy  // nil when there is none
	shipper *ship.Shipper // of the archive; nil when there is none

	newSecret string // the cluster's, when the data directory does not have it yet

	serving sync.WaitGroup
	failed  chan error // what ended the server or the proxy, if it ended by itself
	cancel  context.CancelFunc
}

// Run starts a node, says so, and stops it when ctx ends or the mount goes.
func Run(ctx context.Context, o Options) error {
	n, err := StartGuarded(ctx, o.Config, o.Logger, o.Guardian)
	if err != nil {
		return err
	}
	if o.Ready != nil && n.awaitSync(ctx) {
		o.Ready(n)
	}
	err = n.Wait(ctx)
	// ctx has ended by now; the shutdown has its own time.
	return errors.Join(err, n.Close(context.WithoutCancel(ctx)))
}

// awaitSync waits until an application may be started; false when the node is
// to stop before that.
func (n *Node) awaitSync(ctx context.Context) bool {
	if n.store.IsPrimary() || n.cfg.SkipSync {
		return true
	}
	select {
	case <-n.store.Synced():
		return true
	default:
		n.logger.Info("waiting for the first sync with the primary (skip-sync does not)")
	}
	select {
	case <-n.store.Synced():
		return true
	case <-ctx.Done():
	case <-n.session.Done():
	case err := <-n.failed:
		n.failed <- err
	}
	return false
}

// Start brings a node up. When it returns without an error the mount serves.
func Start(ctx context.Context, cfg *config.Config, logger *slog.Logger) (*Node, error) {
	return StartGuarded(ctx, cfg, logger, nil)
}

// StartGuarded is Start for a node with a guardian: a mount that the daemon
// before has left with it is taken over.
func StartGuarded(ctx context.Context, cfg *config.Config, logger *slog.Logger, guardian Guardian) (_ *Node, err error) {
	n := &Node{cfg: cfg, logger: logger, guardian: guardian, failed: make(chan error, 2)}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close(context.WithoutCancel(ctx)))
		}
	}()
	if n.leaser, err = newLeaser(cfg, logger); err != nil {
		return nil, config.Invalid(err)
	}
	if err := n.settleSecret(ctx); err != nil {
		return nil, err
	}
	if err := n.newStore(ctx); err != nil {
		return nil, config.Invalid(err)
	}
	if err := n.newShipper(); err != nil {
		return nil, err
	}
	if err := n.inherit(); err != nil {
		return nil, err
	}
	if n.inherited == nil {
		for _, dir := range n.mountPoints() {
			if err := n.prepareMountPoint(dir); err != nil {
				return nil, err
			}
		}
	}
	if err := n.listenProxy(); err != nil {
		return nil, err
	}
	if err := n.listen(); err != nil {
		return nil, fmt.Errorf("http.addr: %w: stop what uses the address, or choose another one", err)
	}
	if err := n.awaitLeaseServer(ctx); err != nil {
		return nil, err
	}
	if err := n.openStore(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := n.keepLock(); err != nil {
		return nil, err
	}
	inherited := n.inherited
	n.inherited = nil // the session's, whatever comes
	n.session, err = fuse.Mount(ctx, fuse.Options{
		Dir:           cfg.Fuse.Dir,
		Root:          n.store.FilesDir(),
		AllowOther:    cfg.Fuse.AllowOther,
		Debug:         cfg.Fuse.Debug,
		NoPassthrough: !cfg.Fuse.Passthrough,
		Backend:       backend{n.store},
		Locker:        n.locker(),
		Shared:        cfg.Fuse.ForwardDir != "",
		Logger:        logger,
		Keeper:        n.keeper(),
		Inherited:     inherited,
	})
	if err != nil {
		return nil, err
	}
	if err := n.outliveOthers(); err != nil {
		return nil, err
	}
	if err := n.mountSecond(ctx); err != nil {
		return nil, err
	}
	n.store.OnWait(n.relieve)
	passthrough, _ := n.session.Passthrough()
	if err := n.store.Mounted(cfg.Fuse.Dir, passthrough); err != nil {
		return nil, err
	}
	if guardian != nil {
		if err := guardian.Serving(); err != nil {
			return nil, err
		}
	}
	n.serve()
	if n.shipper != nil {
		if err := n.shipper.Start(); err != nil {
			return nil, err
		}
	}
	settleCtx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	if err := n.store.AwaitRole(settleCtx); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		logger.Warn("whether this node is the primary is not known yet: it serves reads")
	}
	logger.Info("ready", "mount", cfg.Fuse.Dir, "data", cfg.Data.Dir, "role", n.store.Role().String(), "url", n.server.URL(), "passthrough", passthrough)
	return n, nil
}

// prepareMountPoint makes the mount point and clears what a daemon that was
// killed has left on it.
func (n *Node) prepareMountPoint(dir string) error {
	if pid, dying := litefs.DyingOwner(n.cfg.Data.Dir); dying {
		n.logger.Warn("the daemon before this one was killed and waits for its own mount: the mount is aborted", "pid", pid, "mount", dir)
		if err := fuse.Abort(dir); err != nil {
			return err
		}
		if err := awaitDeath(pid); err != nil {
			return err
		}
	}
	if err := fuse.Unstale(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return config.Invalid(fmt.Errorf("mount point: %w", err))
	}
	if err := fuse.CheckMountPoint(dir); err != nil {
		return config.Invalid(err)
	}
	return nil
}

// newStore makes the store, which touches nothing until it is opened.
func (n *Node) newStore(ctx context.Context) error {
	n.store = litefs.NewStore(n.cfg.Data.Dir)
	n.store.Leaser = n.leaser
	n.store.Logger = n.logger
	n.store.ReconnectDelay = n.cfg.Lease.ReconnectDelay
	n.store.MayLead = n.cfg.Lease.Candidate
	n.store.Promote = n.cfg.Lease.Promote
	n.store.DemoteDelay = n.cfg.Lease.DemoteDelay
	n.store.Retention = litefs.Retention{
		Age:      n.cfg.Data.Retention,
		Bytes:    n.cfg.Data.MaxSize,
		Interval: n.cfg.Data.RetentionMonitorInterval,
	}
	n.store.ScrubInterval = n.cfg.Data.ScrubInterval
	n.store.StrictVerify = n.cfg.StrictVerify
	n.store.ReadOnlyReplica = n.cfg.ReplicaReadOnly
	n.store.Guarded = n.cfg.Fuse.Guardian
	n.store.Levels = levelRules(n.cfg.Durability)
	n.store.MaxStaleness, n.store.ServeStale = n.cfg.MaxStaleness, n.cfg.ServeStale
	n.store.PackedLogs = true
	n.store.ForwardedLocks = n.cfg.Fuse.DaemonLocks || n.cfg.Fuse.ForwardDir != ""
	n.store.LocksBehind = n.cfg.Fuse.DaemonLocks
	n.store.HaltDatabases = n.cfg.HaltDatabases
	if n.cfg.Lease.Type == config.LeaseStatic {
		n.store.PrimaryHostname = n.cfg.Lease.Hostname
	}
	keys, err := LogKeys(ctx, n.cfg.Data)
	if err != nil {
		return err
	}
	n.store.LogKeys = keys
	client := http.NewClient(n.store, string(n.cfg.HTTP.Token))
	if files := http.TLSFiles(n.cfg.HTTP.TLS); !files.IsZero() {
		if err := client.UseTLS(files, n.logger); err != nil {
			return config.Invalid(err)
		}
	}
	if err := client.Follow(n.cfg.Lease.Databases); err != nil {
		return fmt.Errorf("lease.databases: %w", err)
	}
	client.Advertise(func() string { return n.server.URL() })
	n.store.RollForwardTimeout = n.cfg.Lease.RollForwardTimeout
	n.store.Client, n.client = client, client
	return nil
}

// levelRules are the rules of the configuration as the store has them.
func levelRules(rules []config.DurabilityRule) []litefs.LevelRule {
	var levels []litefs.LevelRule
	for _, r := range rules {
		l := litefs.Level{}
		switch r.Level {
		case config.LevelMaxLag:
			l = litefs.Level{Kind: litefs.LevelMaxLag, MaxLag: r.Lag}
		case config.LevelArchive:
			l = litefs.Level{Kind: litefs.LevelArchive, Timeout: r.Timeout}
		case config.LevelQuorum:
			l = litefs.Level{Kind: litefs.LevelQuorum, N: r.N, Memory: r.Memory, Timeout: r.Timeout}
		}
		levels = append(levels, litefs.LevelRule{Match: r.Match, Level: l})
	}
	return levels
}

// deathTimeout is how long a killed process may take to close its files.
const deathTimeout = 10 * time.Second

// awaitDeath waits until a process that was killed has closed its files, its
// descriptors of the mount and the lock of the data directory among them.
func awaitDeath(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for the end of process %d: %w", pid, err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	for deadline := time.Now().Add(deathTimeout); ; {
		// A pidfd is readable once every thread has ended (pidfd_open(2)).
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, max(0, int(time.Until(deadline).Milliseconds())))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for the end of process %d: %w", pid, err)
		case n == 0:
			return fmt.Errorf("the killed daemon, process %d, does not end within %v: see what it waits for in /proc/%d/task/*/stack", pid, deathTimeout, pid)
		default:
			return nil
		}
	}
}

func (n *Node) openStore() error {
	err := n.store.Open()
	if errors.Is(err, litefs.ErrDataDir) || errors.Is(err, litefs.ErrOtherCluster) {
		return config.Invalid(err)
	}
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.ENOTDIR) {
		return config.Invalid(fmt.Errorf("data.dir: %w", err))
	}
	if err == nil && n.newSecret != "" {
		err = n.store.KeepSecret(n.newSecret)
	}
	return err
}

func (n *Node) listen() error {
	o := http.Options{
		Addr:       n.cfg.HTTP.Addr,
		Token:      string(n.cfg.HTTP.Token),
		AdminToken: string(n.cfg.HTTP.AdminToken),
		TLS:        http.TLSFiles(n.cfg.HTTP.TLS),
		Candidate:  n.cfg.Lease.Candidate,
		Logger:     n.logger,
		Listener:   n.inheritedListener(keptHTTP, n.cfg.HTTP.Addr),
	}
	if n.proxy != nil {
		o.Intercept = n.proxy.Intercept
	}
	n.server = http.NewServer(n.store, o)
	if err := n.server.Listen(); err != nil {
		return err
	}
	return n.keepListener(keptHTTP, n.cfg.HTTP.Addr, n.server.Listener())
}

func (n *Node) serve() {
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	n.serving.Add(1)
	go func() {
		defer n.serving.Done()
		n.failed <- n.server.Serve(ctx)
	}()
	if n.second != nil {
		n.serving.Go(func() { n.watchSecond(ctx) })
	}
	if n.proxy != nil {
		n.serving.Add(1)
		go func() {
			defer n.serving.Done()
			if err := n.proxy.Serve(); err != nil {
				n.failed <- err
			}
		}()
		n.logger.Info("proxy", "url", n.proxy.URL(), "target", n.cfg.Proxy.Target, "write", n.cfg.Proxy.Write)
	}
}

// Wait returns when ctx ends, when the mount is taken away, or when the server
// for other nodes fails.
func (n *Node) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-n.session.Done():
		n.logger.Warn("the mount was taken away: stopping", "mount", n.cfg.Fuse.Dir)
		return nil
	case err := <-n.failed:
		n.failed <- err
		return err
	}
}

// Close stops the node: no more requests from the network, then none from the
// kernel, then the store is closed cleanly.
func (n *Node) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	var errs []error
	if n.shipper != nil {
		// What comes after this is archived by the next primary, or at the next start.
		ctx, cancel := context.WithTimeout(ctx, flushTimeout)
		n.shipper.Flush(ctx)
		cancel()
	}
	if n.store != nil && n.session != nil {
		if err := n.store.Leave(ctx); err != nil {
			n.logger.Warn("stopping without a hand-over", "reason", err)
		}
	}
	if n.proxy != nil {
		errs = append(errs, n.proxy.Close(ctx))
	}
	if n.shipper != nil {
		n.shipper.Close()
	}
	if n.server != nil {
		errs = append(errs, n.server.Close(ctx))
	}
	if n.cancel != nil {
		n.cancel()
	}
	n.serving.Wait()
	// A replica's peer has files of the mount open: it lets go first.
	if n.store != nil {
		errs = append(errs, n.store.Unmounting())
	}
	errs = append(errs, n.closeSecond(ctx))
	if n.session != nil {
		errs = append(errs, n.session.Close(ctx))
	}
	errs = append(errs, n.inherited.Close())
	if n.store != nil {
		errs = append(errs, n.store.Close())
	}
	if n.leaser != nil {
		errs = append(errs, n.leaser.Close())
	}
	if n.inherited == nil { // else the next daemon tries
		errs = append(errs, n.dropKept())
	}
	return errors.Join(errs...)
}

// Counts returns the FUSE requests since the mount, by name.
func (n *Node) Counts() map[string]uint64 { return n.session.Counts() }

// Passthrough reports whether files pass to the files behind them, and if not, why.
func (n *Node) Passthrough() (live bool, why string) { return n.session.Passthrough() }

// Archived returns the transaction up to which every archive has a database; 0 without one.
func (n *Node) Archived(dbID uint32) uint64 {
	if n.shipper == nil {
		return 0
	}
	return slices.Min(append(n.shipper.Needs(dbID), math.MaxUint64)) - 1
}

// Store returns the node's store.
func (n *Node) Store() *litefs.Store { return n.store }

// URL is where this node listens for other nodes.
func (n *Node) URL() string { return n.server.URL() }
