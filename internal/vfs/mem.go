package vfs

import (
	"cmp"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Mem is a file system in memory that knows what a power cut would leave of it. The zero value is
// not usable; see NewMem.
//
// What it promises after a cut is what the journaling file systems of Linux promise, and no more:
// the content of a file as of its last Sync, and names as of the last SyncDir. Later changes of names
// survive in their order up to some point; later content survives block by block.
type Mem struct {
	mu      sync.Mutex
	names   map[string]*memNode // cleaned path; directories too
	durable map[string]*memNode // names as of the last SyncDir
	pending []nameChange        // since then, in order
}

type memNode struct {
	dir    bool
	mode   fs.FileMode
	data   []byte
	synced []byte // content as of the last Sync

	lost map[int]bool // pages that LoseSync has left in data alone
}

// nameChange gives path a node, or takes its name away (nil).
type nameChange []struct {
	path string
	node *memNode
}

// NewMem returns an empty file system.
func NewMem() *Mem {
	root := &memNode{dir: true, mode: fs.ModeDir | 0o700}
	return &Mem{
		names:   map[string]*memNode{"/": root, ".": root},
		durable: map[string]*memNode{"/": root, ".": root},
	}
}

// Cut returns the file system as a power cut now could leave it, chosen by rnd. m is unchanged and
// shares nothing with the result.
func (m *Mem) Cut(rnd *rand.Rand) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := maps.Clone(m.durable)
	for _, c := range m.pending[:rnd.IntN(len(m.pending)+1)] {
		c.apply(names)
	}
	return clone(names, func(n *memNode) []byte { return n.cut(rnd) })
}

// Clone returns a copy of the file system as it is: what a process that dies leaves behind. All of
// it is durable in the copy.
func (m *Mem) Clone() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	return clone(m.names, func(n *memNode) []byte { return slices.Clone(n.data) })
}

// LoseSync makes a sync of a file fail as the kernel does: what was written since the last one stays in its cache, but does
// not come to the disk any more unless it is written again.
func (m *Mem) LoseSync(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.names[filepath.Clean(name)]
	if n == nil {
		return pathError("sync", name, syscall.ENOENT)
	}
	n.lost = make(map[int]bool)
	for page := range (len(n.data) + memPage - 1) / memPage {
		n.lost[page] = true
	}
	return nil
}

// Evict takes from the cache what LoseSync has left there alone.
func (m *Mem) Evict() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range m.names {
		n.data, n.lost = n.toWrite(), nil
	}
}

const memPage = 4096 // bytes of a page of the cache

// toWrite is the content as it comes to the disk with the next sync.
func (n *memNode) toWrite() []byte {
	if len(n.lost) == 0 {
		return n.data
	}
	out := slices.Clone(n.data)
	for page := range n.lost {
		from, to := min(page*memPage, len(out)), min((page+1)*memPage, len(out))
		clear(out[from:to])
		copy(out[from:to], n.synced[min(from, len(n.synced)):])
	}
	return out
}

// written notes that pages from one byte to another are to be written to the disk again.
func (n *memNode) written(from, to int) {
	for page := from / memPage; page*memPage < to; page++ {
		delete(n.lost, page)
	}
}

func clone(names map[string]*memNode, content func(*memNode) []byte) *Mem {
	after := &Mem{names: map[string]*memNode{}, durable: map[string]*memNode{}}
	copies := map[*memNode]*memNode{}
	for _, path := range slices.Sorted(maps.Keys(names)) { // sorted: the order of questions to rnd is fixed
		n := names[path]
		if copies[n] == nil {
			data := content(n)
			copies[n] = &memNode{dir: n.dir, mode: n.mode, data: data, synced: slices.Clone(data)}
		}
		after.names[path] = copies[n]
		after.durable[path] = copies[n]
	}
	return after
}

const memBlock = 512

// cut returns a content between the synced and the current one: block by block either, with zeros
// where the file had grown before the block was written.
func (n *memNode) cut(rnd *rand.Rand) []byte {
	switch rnd.IntN(4) {
	case 0:
		return slices.Clone(n.synced)
	case 1:
		return slices.Clone(n.toWrite())
	}
	data := n.toWrite()
	lo, hi := min(len(n.synced), len(data)), max(len(n.synced), len(data))
	out := make([]byte, lo+rnd.IntN(hi-lo+1))
	for off := 0; off < len(out); off += memBlock {
		from := n.synced
		if rnd.IntN(2) == 0 {
			from = data
		}
		if off < len(from) {
			copy(out[off:min(off+memBlock, len(out))], from[off:])
		}
	}
	return out
}

func (c nameChange) apply(names map[string]*memNode) {
	for _, n := range c {
		if n.node == nil {
			delete(names, n.path)
		} else {
			names[n.path] = n.node
		}
	}
}

// change: the caller holds mu.
func (m *Mem) change(c nameChange) {
	c.apply(m.names)
	m.pending = append(m.pending, c)
}

func pathError(op, path string, err error) error { return &fs.PathError{Op: op, Path: path, Err: err} }

func (m *Mem) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name = filepath.Clean(name)
	n := m.names[name]
	switch {
	case n == nil && flag&os.O_CREATE == 0:
		return nil, pathError("open", name, syscall.ENOENT)
	case n == nil:
		if d := m.names[filepath.Dir(name)]; d == nil || !d.dir {
			return nil, pathError("open", name, syscall.ENOENT)
		}
		n = &memNode{mode: perm}
		m.change(nameChange{{name, n}})
	case flag&(os.O_CREATE|os.O_EXCL) == os.O_CREATE|os.O_EXCL:
		return nil, pathError("open", name, syscall.EEXIST)
	case n.dir:
		return nil, pathError("open", name, syscall.EISDIR)
	case flag&os.O_TRUNC != 0:
		n.data = nil
	}
	return &memFile{fs: m, node: n, name: name, writable: flag&(os.O_WRONLY|os.O_RDWR) != 0, dsync: flag&O_DSYNC != 0}, nil
}

func (m *Mem) Rename(oldName, newName string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	oldName, newName = filepath.Clean(oldName), filepath.Clean(newName)
	n := m.names[oldName]
	if n == nil {
		return pathError("rename", oldName, syscall.ENOENT)
	}
	m.change(nameChange{{oldName, nil}, {newName, n}})
	return nil
}

func (m *Mem) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	name = filepath.Clean(name)
	if m.names[name] == nil {
		return pathError("remove", name, syscall.ENOENT)
	}
	if len(m.list(name)) > 0 {
		return pathError("remove", name, syscall.ENOTEMPTY)
	}
	m.change(nameChange{{name, nil}})
	return nil
}

func (m *Mem) Mkdir(name string, perm fs.FileMode) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mkdir(filepath.Clean(name), perm)
}

func (m *Mem) mkdir(name string, perm fs.FileMode) error {
	if m.names[name] != nil {
		return pathError("mkdir", name, syscall.EEXIST)
	}
	if d := m.names[filepath.Dir(name)]; d == nil || !d.dir {
		return pathError("mkdir", name, syscall.ENOENT)
	}
	m.change(nameChange{{name, &memNode{dir: true, mode: fs.ModeDir | perm}}})
	return nil
}

func (m *Mem) MkdirAll(name string, perm fs.FileMode) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var missing []string
	for name = filepath.Clean(name); m.names[name] == nil; name = filepath.Dir(name) {
		missing = append(missing, name)
	}
	if !m.names[name].dir {
		return pathError("mkdir", name, syscall.ENOTDIR)
	}
	for _, dir := range slices.Backward(missing) {
		if err := m.mkdir(dir, perm); err != nil {
			return err
		}
	}
	return nil
}

// list returns the paths in a directory. The caller holds mu.
func (m *Mem) list(dir string) []string {
	var paths []string
	for path := range m.names {
		if filepath.Dir(path) == dir && path != dir {
			paths = append(paths, path)
		}
	}
	return paths
}

func (m *Mem) ReadDir(name string) ([]fs.DirEntry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name = filepath.Clean(name)
	if n := m.names[name]; n == nil || !n.dir {
		return nil, pathError("open", name, syscall.ENOENT)
	}
	var entries []fs.DirEntry
	for _, path := range m.list(name) {
		entries = append(entries, fs.FileInfoToDirEntry(m.names[path].info(path)))
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	return entries, nil
}

func (m *Mem) Stat(name string) (fs.FileInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name = filepath.Clean(name)
	n := m.names[name]
	if n == nil {
		return nil, pathError("stat", name, syscall.ENOENT)
	}
	return n.info(name), nil
}

// SyncDir makes all names durable, not only those of one directory, as a commit of the journal does.
func (m *Mem) SyncDir(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.names[filepath.Clean(name)]; n == nil || !n.dir {
		return pathError("open", name, syscall.ENOENT)
	}
	m.durable = maps.Clone(m.names)
	m.pending = nil
	return nil
}

type memFile struct {
	fs       *Mem
	node     *memNode
	name     string
	writable bool
	dsync    bool  // opened with O_DSYNC
	off      int64 // of Read and Write
}

func (f *memFile) Name() string { return f.name }
func (f *memFile) Close() error { return nil }

func (f *memFile) ReadAt(b []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if off >= int64(len(f.node.data)) {
		return 0, io.EOF
	}
	n := copy(b, f.node.data[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	n, err := f.ReadAt(b, f.off)
	f.off += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

func (f *memFile) WriteAt(b []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if !f.writable {
		return 0, pathError("write", f.name, syscall.EBADF)
	}
	f.node.data = overwrite(f.node.data, b, off)
	f.node.written(int(off), int(off)+len(b))
	if f.dsync {
		size := len(f.node.data) // of all of the file: there is one
		f.node.synced = overwrite(f.node.synced, b, off)
		f.node.synced = append(f.node.synced, make([]byte, max(0, size-len(f.node.synced)))...)[:size]
	}
	return len(b), nil
}

// overwrite puts b at the offset, with zeros before it where data is shorter.
func overwrite(data, b []byte, off int64) []byte {
	if need := int(off) + len(b); need > len(data) {
		data = append(data, make([]byte, need-len(data))...)
	}
	copy(data[off:], b)
	return data
}

func (f *memFile) Write(b []byte) (int, error) {
	n, err := f.WriteAt(b, f.off)
	f.off += int64(n)
	return n, err
}

func (f *memFile) Truncate(size int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if !f.writable {
		return pathError("truncate", f.name, syscall.EBADF)
	}
	for int64(len(f.node.data)) < size {
		f.node.data = append(f.node.data, 0)
	}
	f.node.data = f.node.data[:size:size]
	return nil
}

func (f *memFile) Sync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	f.node.synced = slices.Clone(f.node.toWrite())
	return nil
}

func (f *memFile) StartSync() error { return nil }

func (f *memFile) Stat() (fs.FileInfo, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return f.node.info(f.name), nil
}

func (n *memNode) info(path string) fs.FileInfo {
	return memInfo{name: filepath.Base(path), size: int64(len(n.data)), mode: n.mode}
}

type memInfo struct {
	name string
	size int64
	mode fs.FileMode
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return i.size }
func (i memInfo) Mode() fs.FileMode  { return i.mode }
func (i memInfo) ModTime() time.Time { return time.Time{} }
func (i memInfo) IsDir() bool        { return i.mode.IsDir() }
func (i memInfo) Sys() any           { return nil }
