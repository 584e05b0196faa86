package fuse

import (
	"hash/fnv"
	"sync"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// virtualBit marks the nodeids of virtual files; no inode number of the file systems we show has it (table.check).
const virtualBit = 1 << 63

// isVirtual tells the nodeid of a virtual file. All bits set is a nodeid of the ProtocolServer's own.
func isVirtual(id uint64) bool { return id&virtualBit != 0 }

// virtualTable numbers the virtual files the kernel knows, by their paths: a session that takes the mount over finds the
// same numbers.
type virtualTable struct {
	mu     sync.Mutex
	byID   map[uint64]*virtualNode
	byPath map[string]*virtualNode
}

type virtualNode struct {
	id      uint64
	path    string
	lookups uint64
}

func (t *virtualTable) lookup(path string) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.byPath[path]
	if v == nil {
		if t.byID == nil {
			t.byID, t.byPath = make(map[uint64]*virtualNode), make(map[string]*virtualNode)
		}
		id := virtualID(path)
		for t.byID[id] != nil {
			id = virtualBit | (id + 1)
		}
		v = &virtualNode{id: id, path: path}
		t.byID[v.id], t.byPath[path] = v, v
	}
	v.lookups++
	return v.id
}

// virtualID is the nodeid of a path, unless another path has it.
func virtualID(path string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(path))
	return virtualBit | h.Sum64()>>2 // never all bits
}

func (t *virtualTable) forget(id, lookups uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.byID[id]
	if v == nil {
		return
	}
	if v.lookups -= min(lookups, v.lookups); v.lookups == 0 {
		delete(t.byID, id)
		delete(t.byPath, v.path)
	}
}

func (t *virtualTable) path(id uint64) (string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.byID[id]
	if v == nil {
		return "", false
	}
	return v.path, true
}

// virtualPath returns the path of a virtual file that the kernel knows, perhaps from a session before this one.
func (fs *loopback) virtualPath(id uint64) (path string, ok bool) {
	if path, ok = fs.virtuals.path(id); ok || !fs.nodes.inherited {
		return path, ok
	}
	look := func(dir string) bool {
		for _, name := range fs.backend.Virtuals(dir) {
			if dir != "" {
				name = dir + "/" + name
			}
			if virtualID(name) == id {
				path = name
				return true
			}
		}
		return false
	}
	if look("") {
		return path, true
	}
	err := fs.nodes.walk(func(_ int, _ string, st *unix.Stat_t) (bool, error) {
		n := fs.nodes.known(st.Ino)
		if n == nil || n.kind != unix.S_IFDIR {
			return true, nil
		}
		dir, named := fs.nodes.pathOf(n)
		return !named || !look(dir), nil
	})
	return path, err == nil && path != ""
}

// virtualContent asks the Backend for the content of a virtual file.
func (fs *loopback) virtualContent(path string, named bool) ([]byte, bool) {
	if !named {
		return nil, false
	}
	return fs.backend.Virtual(path)
}

// lookupVirtual fills the reply for a virtual file, which the kernel must not remember: it changes by itself.
func (fs *loopback) lookupVirtual(path string, out *gofuse.EntryOut) bool {
	content, ok := fs.backend.Virtual(path)
	if !ok {
		return false
	}
	id := fs.virtuals.lookup(path)
	out.NodeId = id
	fs.fillVirtual(&out.Attr, id, path, len(content))
	return true
}

func (fs *loopback) virtualAttr(id uint64, a *gofuse.Attr) gofuse.Status {
	path, named := fs.virtualPath(id)
	content, ok := fs.virtualContent(path, named)
	if !ok {
		return gofuse.ENOENT
	}
	fs.fillVirtual(a, id, path, len(content))
	return gofuse.OK
}

// fillVirtual gives a virtual file the owner and the times of the root directory. Who may write the file that a lock file
// is for may lock it.
func (fs *loopback) fillVirtual(a *gofuse.Attr, id uint64, path string, size int) {
	var st unix.Stat_t
	if err := unix.Fstat(fs.nodes.root.fd, &st); err != nil {
		fs.logger.Error("stat of the root directory", "err", err)
	}
	mode := uint32(0o444)
	if like, ok := fs.lockFile(path); ok {
		var of unix.Stat_t
		if err := unix.Fstatat(fs.nodes.root.fd, like, &of, unix.AT_SYMLINK_NOFOLLOW); err == nil {
			st.Uid, st.Gid, mode = of.Uid, of.Gid, of.Mode&0o666
		}
	}
	st.Ino, st.Size, st.Blocks, st.Nlink = id, int64(size), 0, 1
	st.Mode = unix.S_IFREG | mode
	fillAttr(a, &st)
}
