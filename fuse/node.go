package fuse

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// rootID is the nodeid of the root directory, fixed by the protocol.
const rootID = 1

// node is one inode of the tree shown. Its id is the inode number of the file, which cannot be given to another file
// while fd pins it.
type node struct {
	id   uint64
	kind uint32 // S_IFMT bits
	fd   int    // O_PATH|O_NOFOLLOW

	// Guarded by table.mu. A node with neither is freed.
	lookups uint64 // that the kernel has not forgotten
	handles uint64 // open

	// inherited: found when the mount was taken over. How many lookups the kernel remembers is not known, so the first
	// FORGET counts for all of them; if the kernel did remember more, the node is found again by its number.
	inherited bool

	path  atomic.Pointer[pathAt]
	moves atomic.Uint64 // counts renames and unlinks of this inode; counted after they happened

	madeIn  atomic.Uint64 // directory in which this session has made the file, until its first sync; 0: none
	changes atomic.Uint64 // of names in a directory; counted after they happened
	synced  atomic.Uint64 // changes that are durable, plus one; 0: not known

	// order is held over a change of the open handles or of the name and the Opened, Released, Renamed or Unlinked that
	// tells it, so that the Backend hears them in the order they happened. Taken before mu; of two, the lower id first.
	order sync.Mutex

	mu      sync.Mutex
	opens   int  // handles open, on both mounts; mode holds while it is not 0
	mode    Mode // in force
	seats   [2]seat
	sized   bool // the size was set since the first open
	kept    bool // the Keeper has fd, for the file has no name
	refused bool // the kernel did not take the file as a backing: cached for as long as the node lives
}

// seat is what one mount has of an inode: Options.Beside.
type seat struct {
	opens   int   // handles open
	backing int32 // id registered with this mount's kernel connection, while opens is not 0; 0: none
}

// pathAt is a path that was right when table.moves plus node.moves, which only grow, had this sum.
type pathAt struct {
	moves uint64
	path  string
	ok    bool
}

// table holds the nodes the kernel knows.
type table struct {
	root     *node
	dev      uint64        // device of the root; other devices are not shown, their inode numbers could collide
	moves    atomic.Uint64 // counts what can change the paths of many nodes: a renamed directory, a change from outside
	rootPath atomic.Pointer[string]

	// inherited: the kernel knows nodes from before this session, which are found when it names them.
	inherited bool
	searching sync.Mutex // one search of the tree at a time; before mu

	mu    sync.RWMutex
	nodes map[uint64]*node

	// unpinned are descriptors that closeUnpinned closes. The last one of a file that was removed frees its blocks, which
	// may wait for the disk, and no request waits for that.
	unpinned chan int
}

// maxUnpinned bounds the descriptors that wait to be closed; more are closed at once.
const maxUnpinned = 256

func newTable(dir string) (*table, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("stat %s: %w", dir, err)
	}
	root := &node{id: rootID, kind: unix.S_IFDIR, fd: fd, lookups: 1}
	return &table{root: root, dev: st.Dev, nodes: map[uint64]*node{rootID: root}, unpinned: make(chan int, maxUnpinned)}, nil
}

// get returns a node the kernel knows.
func (t *table) get(id uint64) (*node, error) {
	if n := t.known(id); n != nil {
		return n, nil
	}
	if t.inherited {
		return t.find(id)
	}
	return nil, syscall.ESTALE
}

// known returns the node of an inode without a new reference, or nil.
func (t *table) known(ino uint64) *node {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.nodes[ino]
}

// lookup finds name in the directory dir and takes a reference on its node.
func (t *table) lookup(dir *node, name string) (*node, unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, st, err
	}
	if err := t.check(&st); err != nil {
		return nil, st, err
	}
	if n := t.ref(st.Ino); n != nil {
		return n, st, nil
	}
	fd, err := unix.Openat(dir.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, st, err
	}
	return t.adopt(fd)
}

// adopt makes fd, an O_PATH descriptor, the pin of its node, or closes it when the node has one, and takes a reference.
func (t *table) adopt(fd int) (*node, unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	if err == nil {
		err = t.check(&st)
	}
	if err != nil {
		unix.Close(fd)
		return nil, st, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.nodes[st.Ino]; n != nil {
		unix.Close(fd)
		n.lookups++
		return n, st, nil
	}
	n := &node{id: st.Ino, kind: st.Mode & unix.S_IFMT, fd: fd, lookups: 1}
	t.nodes[n.id] = n
	return n, st, nil
}

func (t *table) check(st *unix.Stat_t) error {
	if st.Dev != t.dev {
		return syscall.EXDEV
	}
	if st.Ino == rootID || st.Ino&virtualBit != 0 {
		return fmt.Errorf("inode number %d is reserved: %w", st.Ino, syscall.EIO)
	}
	return nil
}

// ref takes a reference, as of a lookup, on the node of an inode if there is one.
func (t *table) ref(id uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[id]
	if n != nil {
		n.lookups++
	}
	return n
}

// forget drops lookups.
func (t *table) forget(id uint64, lookups uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[id]
	if n == nil || n == t.root {
		return
	}
	n.lookups -= min(lookups, n.lookups)
	if n.inherited {
		n.lookups, n.inherited = 0, false
	}
	t.freeUnused(n)
}

// hold counts an open handle, if the node is still there.
func (t *table) hold(n *node) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.nodes[n.id] != n {
		return false
	}
	n.handles++
	return true
}

// letGo counts a handle that was closed.
func (t *table) letGo(n *node) (freed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.handles--
	return t.freeUnused(n)
}

// freeUnused closes the pin of a node that nobody refers to. t.mu is held.
func (t *table) freeUnused(n *node) (freed bool) {
	if n == t.root || n.handles > 0 || n.lookups > 0 || t.nodes[n.id] != n {
		return false
	}
	delete(t.nodes, n.id)
	select {
	case t.unpinned <- n.fd:
	default:
		unix.Close(n.fd)
	}
	return true
}

// closeUnpinned closes the pins of nodes that were freed, until closeAll.
func (t *table) closeUnpinned() {
	for fd := range t.unpinned {
		unix.Close(fd)
	}
}

// nameless unpins an inherited node that has lost its name and is not open, so that its space is free: the kernel may not
// know the node at all, and then nobody would forget it.
func (t *table) nameless(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.nodes[id]; n != nil && n.inherited && n.handles == 0 {
		n.lookups = 0
		t.freeUnused(n)
	}
}

// closeAll closes every pin but those that closeUnpinned is to close. Nothing may use the table afterwards.
func (t *table) closeAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.nodes == nil {
		return
	}
	for _, n := range t.nodes {
		unix.Close(n.fd)
	}
	t.nodes = nil
	close(t.unpinned)
}

// pathOf returns the path of a node relative to the root ("" for the root itself), false when it has no name any more.
// Reading the link costs a microsecond, so it is kept until something moves.
func (t *table) pathOf(n *node) (string, bool) {
	moves := t.moves.Load() + n.moves.Load() // before the link is read: a move in between makes the entry stale, not wrong
	if p := n.path.Load(); p != nil && p.moves == moves {
		return p.path, p.ok
	}
	path, ok := t.readPath(n)
	n.path.Store(&pathAt{moves: moves, path: path, ok: ok})
	return path, ok
}

const deletedSuffix = " (deleted)"

func (t *table) readPath(n *node) (string, bool) {
	if n == t.root {
		return "", true
	}
	link, err := os.Readlink(procPath(n.fd))
	if err != nil {
		return "", false
	}
	if strings.HasSuffix(link, deletedSuffix) {
		var st unix.Stat_t // a file may be named so
		if err := unix.Fstat(n.fd, &st); err != nil || st.Nlink == 0 || n.kind == unix.S_IFDIR {
			return "", false
		}
	}
	if root := t.rootPath.Load(); root != nil {
		if path, ok := strings.CutPrefix(link, *root); ok {
			return path, true
		}
	}
	root, err := os.Readlink(procPath(t.root.fd)) // the root may have been renamed
	if err != nil {
		return "", false
	}
	root = strings.TrimSuffix(root, "/") + "/"
	t.rootPath.Store(&root)
	return strings.CutPrefix(link, root)
}

// childPath returns the path of a name in a directory, false when the directory has been removed.
func (t *table) childPath(dir *node, name string) (string, bool) {
	parent, ok := t.pathOf(dir)
	if !ok {
		return "", false
	}
	if parent == "" {
		return name, true
	}
	return parent + "/" + name, true
}

// moved makes the path of an inode be read again. Called after the rename or unlink.
func (t *table) moved(ino uint64) {
	if n := t.known(ino); n != nil {
		n.moves.Add(1)
	}
}

// procPath names an open descriptor of this process; system calls follow it to the inode itself, whatever its name.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// validName refuses what the kernel never sends, so that a name can be handed to the *at calls as it is.
func validName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsRune(name, '/') {
		return errors.Join(fmt.Errorf("name %q", name), syscall.EINVAL)
	}
	return nil
}
