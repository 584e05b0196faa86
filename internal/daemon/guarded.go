package daemon

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/fuse"
)

// Guardian holds descriptors for the daemon after this one, and has those of
// the daemon before.
type Guardian interface {
	fuse.Keeper
	litefs.Watchdog
	// Dying lists daemons before this one that are dead but for a wait for the
	// mount.
	Dying() []int
	// Serving says that the mount answers.
	Serving() error
	// PID is the process that whoever wants to end the node has to end.
	PID() int
}

// What a daemon keeps.
const (
	keptLock  = "data.lock"
	keptHTTP  = "listen.http."
	keptProxy = "listen.proxy."
)

// inherit finds the mount of the daemon before and what is open on it.
func (n *Node) inherit() error {
	if n.guardian == nil {
		return nil
	}
	n.store.OwnerPID, n.store.Keeper, n.store.Watchdog = n.guardian.PID(), n.guardian, n.guardian
	in, err := fuse.Inherit(n.guardian, n.cfg.Fuse.Dir, n.store.FilesDir(), n.logger)
	if err != nil {
		return err
	}
	fd, locked := n.guardian.Kept(keptLock)
	var lock *os.File
	if locked {
		lock = os.NewFile(uintptr(fd), "LOCK")
	}
	if in == nil {
		if lock != nil {
			return errors.Join(lock.Close(), n.guardian.Drop(keptLock))
		}
		return nil
	}
	n.inherited = in
	var files []litefs.OpenFile
	for _, f := range in.Files() {
		files = append(files, litefs.OpenFile{
			Path: f.Path, Handles: f.Handles, Writable: f.Writable,
			Passthrough: f.Mode == fuse.Passthrough, Sized: f.Sized,
		})
	}
	n.store.TakeOver(n.cfg.Fuse.Dir, in.Passthrough(), files, lock)
	return nil
}

// outliveOthers waits until daemons before this one are gone: the mount, which
// answers now, is what they wait for. Their writes to it may come until then,
// so nothing of this process writes to it before.
func (n *Node) outliveOthers() error {
	if n.guardian == nil {
		return nil
	}
	for _, pid := range n.guardian.Dying() {
		if err := awaitDeath(pid); err != nil {
			return err
		}
	}
	return nil
}

// keepLock lets the lock of the data directory outlive this process: nobody
// else is to open it while the mount waits for the next daemon.
func (n *Node) keepLock() error {
	if n.guardian == nil {
		return nil
	}
	if err := n.guardian.Keep(keptLock, int(n.store.LockFile().Fd())); err != nil {
		return fmt.Errorf("keep the lock of the data directory: %w", err)
	}
	return nil
}

func (n *Node) keeper() fuse.Keeper {
	if n.guardian == nil {
		return nil
	}
	return n.guardian
}

// listenerName is the name of a listener on addr. One that is to be bound in
// another way, by a configuration that has changed, has another name.
func (n *Node) listenerName(kind, addr string) string {
	bound := fmt.Sprintf("%s %t", addr, n.cfg.HTTP.Token == "")
	return fmt.Sprintf("%s%x", kind, sha256.Sum256([]byte(bound)))
}

// inheritedListener returns the listener that the daemon before was bound to,
// nil if there is none. A killed process may hold the address for as long as it
// waits for the mount.
func (n *Node) inheritedListener(kind, addr string) net.Listener {
	if n.guardian == nil {
		return nil
	}
	fd, ok := n.guardian.Kept(n.listenerName(kind, addr))
	if !ok {
		return nil
	}
	f := os.NewFile(uintptr(fd), "listener")
	ln, err := net.FileListener(f)
	if err = errors.Join(err, f.Close()); err != nil {
		n.logger.Warn("the listener of the daemon before is of no use", "address", addr, "error", err)
		return nil
	}
	return ln
}

func (n *Node) keepListener(kind, addr string, ln net.Listener) error {
	tcp, ok := ln.(*net.TCPListener)
	if n.guardian == nil || !ok {
		return nil
	}
	// Not File().Fd(), which would have every copy of the socket block.
	raw, err := tcp.SyscallConn()
	if err == nil {
		var kerr error
		err = raw.Control(func(fd uintptr) { kerr = n.guardian.Keep(n.listenerName(kind, addr), int(fd)) })
		err = errors.Join(err, kerr)
	}
	if err != nil {
		return fmt.Errorf("keep the listener on %s: %w", addr, err)
	}
	return nil
}

// dropKept makes the guardian let go of what the node itself has kept.
func (n *Node) dropKept() error {
	if n.guardian == nil {
		return nil
	}
	var errs []error
	for _, name := range n.guardian.Names() {
		if name == keptLock || strings.HasPrefix(name, keptHTTP) || strings.HasPrefix(name, keptProxy) {
			errs = append(errs, n.guardian.Drop(name))
		}
	}
	return errors.Join(errs...)
}
