package daemon

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/fuse"
)

// backend translates what the kernel asks into what the store decides.
type backend struct{ store *litefs.Store }

var _ fuse.Backend = backend{}

func (b backend) Opening(c fuse.Caller, path string, flags uint32, first bool) (fuse.Mode, error) {
	own := b.own(c, path)
	mode, err := b.store.Opening(own, path, flags&unix.O_ACCMODE != unix.O_RDONLY, first)
	if err != nil {
		return fuse.Cached, err
	}
	switch mode {
	case litefs.IOPassthrough:
		return fuse.Passthrough, nil
	case litefs.IODirect:
		return fuse.Direct, nil
	}
	return fuse.Cached, nil
}

// own tells the peer's requests from those of applications. A primary, which has
// a peer only for a database that is lent, saves the look-up.
func (b backend) own(c fuse.Caller, path string) bool {
	return b.store.HasPeer(path) && c.Own()
}

func (b backend) Creating(c fuse.Caller, path string) error {
	return b.store.Creating(b.own(c, path), path)
}

func (b backend) Opened(path string, mode fuse.Mode, writable, _ bool) {
	if mode == fuse.Direct {
		b.store.OpenedDirect(path)
	}
	b.store.Opened(path, mode == fuse.Passthrough, writable)
}

func (b backend) Released(path string, writable, last bool) { b.store.Released(path, writable, last) }

func (b backend) Writing(c fuse.Caller, path string, off int64, data []byte) error {
	err := b.store.Writing(b.own(c, path), path, off, data)
	if errors.Is(err, litefs.ErrTaken) {
		return fuse.ErrTaken
	}
	return err
}

func (b backend) Wrote(path string, off int64, n int) { b.store.Wrote(path, off, n) }

func (b backend) Syncing(c fuse.Caller, path string) fuse.Sync {
	switch b.store.Syncing(b.own(c, path), path) {
	case litefs.SyncData:
		return fuse.SyncData
	case litefs.SyncBehind:
		return fuse.SyncBehind
	}
	return fuse.SyncAll
}

func (b backend) Truncating(c fuse.Caller, path string, size int64) error {
	return b.store.Truncating(b.own(c, path), path, size)
}

func (b backend) Unlinking(c fuse.Caller, path string) error {
	return b.store.Unlinking(b.own(c, path), path)
}

func (b backend) Unlinked(path string, err error) { b.store.Unlinked(path, err) }

func (b backend) Renaming(c fuse.Caller, oldPath, newPath string) error {
	return b.store.Renaming(b.own(c, oldPath), oldPath, newPath)
}

func (b backend) Renamed(oldPath, newPath string, err error) {
	b.store.Renamed(oldPath, newPath, err)
}

func (b backend) Virtual(path string) ([]byte, bool) { return b.store.Virtual(path) }

func (b backend) Virtuals(dir string) []string { return b.store.Virtuals(dir) }

func (b backend) Volatile(path string) bool { return b.store.Volatile(path) }
