package daemon

import (
	"github.com/litefs/litefs"
	"github.com/litefs/litefs/fuse"
)

// locker translates the locks that the kernel asks for into what the store decides.
type locker struct{ store *litefs.Store }

// locker returns nil for a mount whose locks the kernel keeps.
func (n *Node) locker() fuse.Locker {
	if !n.cfg.Fuse.DaemonLocks {
		return nil
	}
	return locker{n.store}
}

func (l locker) Lock(r fuse.Lock, take func() error) error {
	kind := litefs.LockNone
	switch r.Kind {
	case fuse.SharedLock:
		kind = litefs.LockShared
	case fuse.ExclusiveLock:
		kind = litefs.LockExclusive
	}
	return l.store.Lock(litefs.LockRequest{
		Path: r.Path, Owner: r.Owner, Kind: kind, Start: r.Start, End: r.End, Wait: r.Wait, Cancel: r.Cancel, Over: r.Over,
	}, take)
}

func (l locker) LockFile(path string) (like string, ok bool) { return l.store.HaltFile(path) }

func (l locker) Dropped(path string, owner uint64) { l.store.LocksDropped(path, owner) }
