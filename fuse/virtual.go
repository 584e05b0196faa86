package fuse

import (
	"sync"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// virtualBit marks the nodeids of virtual files; no inode number of the file systems we show has it (table.check).
const virtualBit = 1 << 63

// isVirtual tells the nodeid of a virtual file. All bits set is a nodeid of the ProtocolServer's own.
func isVirtual(id uint64) bool { return id&virtualBit != 0 }

// virtualTable numbers the virtual files the kernel knows.
type virtualTable struct {
	mu     sync.Mutex
	last   uint64
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
		t.last++
		v = &virtualNode{id: virtualBit | t.last, path: path}
		t.byID[v.id], t.byPath[path] = v, v
	}
	v.lookups++
	return v.id
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
	fs.fillVirtual(&out.Attr, id, len(content))
	return true
}

func (fs *loopback) virtualAttr(id uint64, a *gofuse.Attr) gofuse.Status {
	content, ok := fs.virtualContent(fs.virtuals.path(id))
	if !ok {
		return gofuse.ENOENT
	}
	fs.fillVirtual(a, id, len(content))
	return gofuse.OK
}

// fillVirtual gives a virtual file the owner and the times of the root directory.
func (fs *loopback) fillVirtual(a *gofuse.Attr, id uint64, size int) {
	var st unix.Stat_t
	if err := unix.Fstat(fs.nodes.root.fd, &st); err != nil {
		fs.logger.Error("stat of the root directory", "err", err)
	}
	st.Ino, st.Size, st.Blocks, st.Nlink = id, int64(size), 0, 1
	st.Mode = unix.S_IFREG | 0o444
	fillAttr(a, &st)
}
