package fuse

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Inherited is a mount that outlived its session: the kernel still has the connection, and queues what applications ask
// until Mount serves it.
type Inherited struct {
	dev     *device
	estate  *estate
	nodes   *table
	handles []inheritedHandle
	logger  *slog.Logger
}

type inheritedHandle struct {
	slot uint32
	s    slot
	node *node
}

// OpenFile is a file that applications have open on an inherited mount.
type OpenFile struct {
	Path     string // relative to the root
	Mode     Mode
	Handles  int
	Writable int  // of Handles
	Sized    bool // its size was set since it was first opened
}

// Inherit returns the mount at dir that a session before this one has left with keeper; nil when there is none that
// lives. root is the directory that it shows.
func Inherit(keeper Keeper, dir, root string, logger *slog.Logger) (*Inherited, error) {
	devFD, hasDevice := keeper.Kept(keptDevice)
	memFD, hasEstate := keeper.Kept(keptEstate)
	if !hasDevice || !hasEstate {
		return nil, nil
	}
	if !isConnected(devFD) {
		logger.Warn("the mount was taken away while no daemon served it", "mount", dir)
		return nil, errors.Join(unix.Close(devFD), unix.Close(memFD), dropKept(keeper))
	}
	full, err := resolve(dir)
	if err != nil {
		return nil, err
	}
	e, err := openEstate(memFD)
	if err != nil {
		return nil, fmt.Errorf("take over the mount %s: %w", dir, err)
	}
	in := &Inherited{estate: e, logger: logger.With("mount", full)}
	if err := in.take(keeper, devFD, full, root); err != nil {
		return nil, errors.Join(fmt.Errorf("take over the mount %s: %w", dir, err), in.Close())
	}
	return in, nil
}

// Close lets go of a mount that is not to be served: it stays as it is, for the next session or for nobody.
func (in *Inherited) Close() error {
	if in == nil {
		return nil
	}
	if in.nodes != nil {
		in.nodes.closeAll()
	}
	return in.estate.close()
}

// dropKept forgets what a mount that is gone has left.
func dropKept(keeper Keeper) error {
	var errs []error
	for _, name := range keeper.Names() {
		if name == keptDevice || name == keptEstate || strings.HasPrefix(name, keptNode) {
			errs = append(errs, keeper.Drop(name))
		}
	}
	return errors.Join(errs...)
}

// isConnected reports whether the connection behind a FUSE device lives (linux: fuse_dev_poll).
func isConnected(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(p, 0)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		return err == nil && p[0].Revents&(unix.POLLERR|unix.POLLNVAL) == 0
	}
}

func (in *Inherited) take(keeper Keeper, devFD int, dir, root string) error {
	m, ok, err := mountAt(dir)
	if err != nil {
		return err
	}
	if dev := fmt.Sprintf("0:%d", in.estate.head.minor); !ok || m.dev != dev {
		return fmt.Errorf("the mount with the device number %s is not there", dev)
	}
	in.dev = &device{fd: devFD, dir: dir, mount: m, helper: in.estate.head.live&liveHelper != 0, logger: in.logger}
	if in.nodes, err = newTable(root); err != nil {
		return err
	}
	in.nodes.inherited = true
	for _, name := range keeper.Names() {
		id, isNode := strings.CutPrefix(name, keptNode)
		if !isNode {
			continue
		}
		if _, err := strconv.ParseUint(id, 10, 64); err != nil {
			return fmt.Errorf("descriptor %q: %w", name, err)
		}
		fd, ok := keeper.Kept(name)
		if !ok {
			continue
		}
		n, _, err := in.nodes.adopt(fd)
		if err != nil {
			return fmt.Errorf("descriptor %q: %w", name, err)
		}
		n.inherited, n.kept = true, true
	}
	return in.takeHandles()
}

// takeHandles opens again what applications have open.
func (in *Inherited) takeHandles() error {
	wanted := make(map[uint64]bool)
	in.estate.inherited(func(i uint32, s *slot) {
		in.handles = append(in.handles, inheritedHandle{slot: i, s: *s})
		wanted[s.node] = true
	})
	if err := in.nodes.adoptTree(wanted); err != nil {
		return err
	}
	found := in.handles[:0]
	for _, h := range in.handles {
		if h.node = in.nodes.known(h.s.node); h.node == nil {
			// Removed while its name was being taken: nothing but the kernel has it, and only for passthrough.
			in.logger.Error("a file that is open is not in the tree any more", "node", h.s.node)
			in.estate.closed(h.slot)
			continue
		}
		found = append(found, h)
	}
	in.handles = found
	return nil
}

// Files lists what applications have open, as far as it has a name.
func (in *Inherited) Files() []OpenFile {
	byNode := make(map[*node]int)
	var files []OpenFile
	for _, h := range in.handles {
		i, seen := byNode[h.node]
		if !seen {
			path, named := in.nodes.pathOf(h.node)
			if !named {
				continue
			}
			i = len(files)
			byNode[h.node] = i
			files = append(files, OpenFile{Path: path, Mode: h.s.mode()})
		}
		f := &files[i]
		f.Handles++
		if openFlags(h.s.fh)&unix.O_ACCMODE != unix.O_RDONLY {
			f.Writable++
		}
		f.Sized = f.Sized || h.s.used&slotSized != 0
	}
	return files
}

// Passthrough reports whether the mount has Passthrough.
func (in *Inherited) Passthrough() bool { return in.estate.head.live&livePassthrough != 0 }

func (s *slot) mode() Mode {
	switch {
	case s.used&slotPassthrough != 0:
		return Passthrough
	case s.used&slotDirect != 0:
		return Direct
	}
	return Cached
}

// restore makes the inherited handles those of fs.
func (in *Inherited) restore(fs *loopback) error {
	for _, h := range in.handles {
		fd, err := unix.Open(procPath(h.node.fd), openFlags(h.s.fh)|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		if err != nil {
			return fmt.Errorf("open node %d again: %w", h.node.id, err)
		}
		n := h.node
		fs.nodes.hold(n)
		n.opens++
		n.seats[0].opens++
		n.mode, n.seats[0].backing = h.s.mode(), h.s.backing
		n.sized = n.sized || h.s.used&slotSized != 0
		fs.handles.open[h.s.fh] = &handle{
			fh: h.s.fh, slot: h.slot, node: n, fd: fd,
			writable: openFlags(h.s.fh)&unix.O_ACCMODE != unix.O_RDONLY,
		}
	}
	return nil
}

// dropLostBackings releases files that a session was cut off from recording between their registration and their first
// handle: the kernel counts the ids up.
func (s *Session) dropLostBackings(handles []inheritedHandle) (err error) {
	if !s.passthrough {
		return nil
	}
	used := make(map[int32]bool)
	for _, h := range handles {
		used[h.s.backing] = true
	}
	fd, err := s.probeFile()
	if err != nil {
		return fmt.Errorf("a temporary file for passthrough: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	newest, err := s.dev.openBacking(fd)
	if err != nil {
		return fmt.Errorf("ask for the newest passthrough file: %w", err)
	}
	const most = 64 // each was a request under way when its session ended
	for id := max(s.estate.head.backing, newest-most, 1); id < newest; id++ {
		if used[id] {
			continue
		}
		if err := s.dev.closeBacking(id); err != nil && !errors.Is(err, syscall.ENOENT) {
			return fmt.Errorf("release the passthrough file %d: %w", id, err)
		}
	}
	return s.dev.closeBacking(newest)
}

// maxAdopted bounds the nodes of a tree that are pinned when a mount is taken over. Others are found when they are named.
const maxAdopted = 4096

// adoptTree pins the nodes of the tree: those wanted, and of the others as many as are cheap.
func (t *table) adoptTree(wanted map[uint64]bool) error {
	adopted := 0
	return t.walk(func(dir int, name string, st *unix.Stat_t) (bool, error) {
		if !wanted[st.Ino] && adopted >= maxAdopted {
			return true, nil
		}
		if _, err := t.inherit(dir, name); err != nil {
			return false, err
		}
		adopted++
		return true, nil
	})
}

// find searches the tree for a node that the kernel knows and this session does not yet. ESTALE: it is not there.
func (t *table) find(id uint64) (*node, error) {
	t.searching.Lock()
	defer t.searching.Unlock()
	if n := t.known(id); n != nil {
		return n, nil
	}
	var found *node
	err := t.walk(func(dir int, name string, st *unix.Stat_t) (bool, error) {
		if st.Ino != id {
			return true, nil
		}
		n, err := t.inherit(dir, name)
		found = n
		return false, err
	})
	if err == nil && (found == nil || found.id != id) {
		err = syscall.ESTALE
	}
	return found, err
}

// inherit pins the node of a name. nil: the name is gone.
func (t *table) inherit(dir int, name string) (*node, error) {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, syscall.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open %s in the tree: %w", name, err)
	}
	n, _, err := t.adopt(fd)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n.inherited = true
	return n, nil
}

// walk calls f for everything in the tree, a directory before what is in it, until f says no or fails. What vanishes
// meanwhile is passed over; so is what Lookup would not show.
func (t *table) walk(f func(dir int, name string, st *unix.Stat_t) (more bool, err error)) error {
	fd, err := unix.Openat(t.root.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("list the tree: %w", err)
	}
	_, err = t.walkDir(os.NewFile(uintptr(fd), "/"), f)
	return err
}

// walkDir owns dir.
func (t *table) walkDir(dir *os.File, f func(dir int, name string, st *unix.Stat_t) (bool, error)) (more bool, err error) {
	defer func() { err = errors.Join(err, dir.Close()) }()
	for {
		names, err := dir.Readdirnames(256)
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ENOENT) {
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("list the tree: %w", err)
		}
		for _, name := range names {
			if more, err := t.walkName(dir, name, f); !more || err != nil {
				return false, err
			}
		}
	}
}

func (t *table) walkName(dir *os.File, name string, f func(dir int, name string, st *unix.Stat_t) (bool, error)) (bool, error) {
	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, syscall.ENOENT) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("list the tree: %w", err)
	}
	if t.check(&st) != nil {
		return true, nil
	}
	if more, err := f(int(dir.Fd()), name, &st); !more || err != nil {
		return false, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return true, nil
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, syscall.ENOENT) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("list the tree: %w", err)
	}
	return t.walkDir(os.NewFile(uintptr(fd), filepath.Join(dir.Name(), name)), f)
}

// takeOver makes the session that of an inherited mount. The kernel sends no second INIT: the first one is answered once
// more, to nobody.
func (s *Session) takeOver(in *Inherited) error {
	b := s.buffers.get()
	defer b.put()
	n := copy(b.in, in.estate.head.init[:in.estate.head.initSize])
	if _, status := s.server.HandleRequest([][]byte{b.in[:n]}, [][]byte{b.out}); !status.Ok() {
		return fmt.Errorf("INIT of the session before: %w", syscall.Errno(status))
	}
	s.passthrough = in.Passthrough()
	if !s.passthrough {
		s.why = "the mount was made without"
	}
	if err := in.restore(s.fs); err != nil {
		return err
	}
	if err := s.dropLostBackings(in.handles); err != nil {
		return err
	}
	if err := s.resend(); err != nil {
		return err
	}
	s.logger.Info("mount taken over", "root", s.opt.Root, "io", s.ioMode().String(), "open_files", len(in.handles))
	s.serveAll()
	return nil
}

// bequeath readies a new mount for the session after this one. init is the kernel's INIT request. Without
// FUSE_NOTIFY_RESEND (Linux 6.9) requests under way would never be answered, so nothing is left then.
func (s *Session) bequeath(init []byte) error {
	if s.opt.Keeper == nil {
		return nil
	}
	var in gofuse.InitIn
	copy(bytesOf(&in), init)
	if in.Flags64()&gofuse.CAP_HAS_RESEND == 0 {
		s.logger.Warn("the mount goes with the daemon: this kernel cannot send requests again (6.9 or newer is needed)")
		return nil
	}
	var minor uint32
	if _, err := fmt.Sscanf(s.dev.mount.dev, "0:%d", &minor); err != nil {
		return fmt.Errorf("device number %q: %w", s.dev.mount.dev, err)
	}
	e, err := newEstate()
	if err != nil {
		return err
	}
	if len(init) > len(e.head.init) {
		return errors.Join(fmt.Errorf("INIT of %d bytes, want %d at most", len(init), len(e.head.init)), e.close())
	}
	e.head.minor = minor
	e.head.initSize = uint32(copy(e.head.init[:], init))
	if s.dev.helper {
		e.head.live |= liveHelper
	}
	e.begun()
	s.estate, s.fs.estate = e, e
	s.fs.handles.last = e.firstHandle()
	return nil
}

// leave gives the mount to the Keeper, for the session after this one.
func (s *Session) leave() error {
	if s.estate == nil {
		return nil
	}
	if s.passthrough {
		s.estate.head.live |= livePassthrough
	}
	if err := s.opt.Keeper.Keep(keptEstate, s.estate.fd); err != nil {
		return fmt.Errorf("keep the mount: %w", err)
	}
	if err := s.opt.Keeper.Keep(keptDevice, s.dev.fd); err != nil {
		return fmt.Errorf("keep the mount: %w", err)
	}
	return nil
}
