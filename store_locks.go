package litefs

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/internal/peer"
)

// Keeper holds copies of descriptors in another process, so that they outlive
// this one. When Keep has returned, the copy is safe from the end of this
// process.
type Keeper interface {
	Keep(name string, fd int) error
	Drop(name string) error
	// Kept returns what the process before this one left under a name, once:
	// it is the caller's.
	Kept(name string) (fd int, ok bool)
	Names() []string
}

// keptLocks begins the names of a replica's locks: then comes the database's id
// and the suffix of the file.
const keptLocks = "lock."

// dbLocks keeps the locks of one database of a replica: while no daemon runs,
// nobody writes to it either.
type dbLocks struct {
	keeper Keeper
	id     string
}

// lockKeeper is nil in a store without a Keeper.
func (db *DB) lockKeeper() peer.LockKeeper {
	if db.store.Keeper == nil {
		return nil
	}
	return dbLocks{db.store.Keeper, FormatDBID(db.id)}
}

func (l dbLocks) name(suffix string) string { return keptLocks + l.id + suffix }

// Keep implements peer.LockKeeper.
func (l dbLocks) Keep(suffix string, f *os.File) error {
	return l.keeper.Keep(l.name(suffix), int(f.Fd()))
}

// Drop implements peer.LockKeeper.
func (l dbLocks) Drop(suffix string) error { return l.keeper.Drop(l.name(suffix)) }

// Kept implements peer.LockKeeper.
func (l dbLocks) Kept(suffix string) (fd int, ok bool) { return l.keeper.Kept(l.name(suffix)) }

// dropStrayLocks lets go of locks that the process before has left on databases
// which no peer takes over.
func (s *Store) dropStrayLocks() {
	if s.Keeper == nil {
		return
	}
	for _, name := range s.Keeper.Names() {
		rest, isLock := strings.CutPrefix(name, keptLocks)
		if !isLock {
			continue
		}
		hex, _, _ := strings.Cut(rest, "-")
		if id, err := ParseDBID(hex); err == nil && s.Role() == RoleReplica && s.DB(id) != nil {
			continue
		}
		fd, ok := s.Keeper.Kept(name)
		if !ok {
			continue
		}
		whole := unix.Flock_t{Type: unix.F_UNLCK}
		err := errors.Join(unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &whole), unix.Close(fd), s.Keeper.Drop(name))
		s.Logger.Warn("locks of the daemon before are let go", "name", name, "error", err)
	}
}
