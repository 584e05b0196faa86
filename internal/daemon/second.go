package daemon

import (
	"context"
	"fmt"

	"github.com/litefs/litefs/fuse"
)

// This file is the mount at fuse.forward-dir, which shows what the one at fuse.dir does and asks for each lock.

// mountPoints are where the node mounts. The second is cleared first: a mount that is dead has files of the first open.
func (n *Node) mountPoints() []string {
	if n.cfg.Fuse.ForwardDir == "" {
		return []string{n.cfg.Fuse.Dir}
	}
	return []string{n.cfg.Fuse.ForwardDir, n.cfg.Fuse.Dir}
}

// mountSecond mounts it, if it is asked for.
func (n *Node) mountSecond(ctx context.Context) (err error) {
	if n.cfg.Fuse.ForwardDir == "" {
		return nil
	}
	n.second, err = fuse.Mount(ctx, fuse.Options{
		Dir:        n.cfg.Fuse.ForwardDir,
		Beside:     n.session,
		AllowOther: n.cfg.Fuse.AllowOther,
		Debug:      n.cfg.Fuse.Debug,
		Backend:    backend{n.store},
		Locker:     locker{n.store},
		Logger:     n.logger,
	})
	if err != nil {
		return fmt.Errorf("fuse.forward-dir: %w", err)
	}
	return nil
}

// watchSecond tells of its end, until ctx ends: the first mount goes on without it.
func (n *Node) watchSecond(ctx context.Context) {
	select {
	case <-n.second.Done():
		n.logger.Warn("the second mount was taken away: it is back when litefs is started again", "mount", n.second.Dir())
	case <-ctx.Done():
	}
}

// closeSecond takes it away, before the first, whose files it has open.
func (n *Node) closeSecond(ctx context.Context) error {
	if n.second == nil {
		return nil
	}
	return n.second.Close(ctx)
}

// relieve has each mount answer others while a request of one waits.
func (n *Node) relieve() {
	n.session.Relieve()
	if n.second != nil {
		n.second.Relieve()
	}
}
