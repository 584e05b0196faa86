package fuse

import (
	"sync"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// dirStream reads a directory. Offsets are the cookies of getdents64(2), so they mean the same to a later daemon.
type dirStream struct {
	mu  sync.Mutex
	buf []byte // made when it is first read: SQLite opens its directory only to sync it
	pos int64  // where the next getdents64 continues

	// virtual are the synthetic files still to be listed once the real ones are: nil before. They all carry the cookie of
	// the end, for a directory's own cookies use every value up to it.
	virtual []string
}

const dirBufferSize = 32 << 10

func (fs *loopback) OpenDir(_ <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	n, err := fs.nodes.get(in.NodeId)
	if err != nil {
		return status(err)
	}
	fd, err := unix.Openat(n.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return status(err)
	}
	h := &handle{node: n, fd: fd, dir: &dirStream{}}
	fs.addHandle(h, unix.O_RDONLY)
	out.Fh = h.fh
	return gofuse.OK
}

// ReadDir lists names from an offset on. Entries read from the directory that do not fit into the reply are read again.
func (fs *loopback) ReadDir(_ <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	h, err := fs.handle(in.NodeId, in.Fh)
	if err != nil {
		return status(err)
	}
	if h.dir == nil {
		return gofuse.ENOTDIR
	}
	d := h.dir
	d.mu.Lock()
	defer d.mu.Unlock()
	if off := int64(in.Offset); off != d.pos {
		if _, err := unix.Seek(h.fd, off, unix.SEEK_SET); err != nil {
			return status(err)
		}
		d.pos, d.virtual = off, nil
	}
	if d.buf == nil {
		d.buf = make([]byte, dirBufferSize)
	}
	for d.virtual == nil {
		n, err := unix.Getdents(h.fd, d.buf)
		if err != nil {
			return status(err)
		}
		if n == 0 {
			d.virtual = append([]string{}, fs.virtualNames(h.node)...)
			break
		}
		for rest := d.buf[:n]; len(rest) > 0; {
			var e gofuse.DirEntry
			rest = rest[e.Parse(rest):]
			if !out.AddDirEntry(e) {
				_, err := unix.Seek(h.fd, d.pos, unix.SEEK_SET)
				return status(err)
			}
			d.pos = int64(e.Off)
		}
	}
	for len(d.virtual) > 0 {
		name := d.virtual[0]
		if !out.AddDirEntry(gofuse.DirEntry{Name: name, Mode: unix.S_IFREG, Ino: virtualIno, Off: uint64(d.pos)}) {
			break
		}
		d.virtual = d.virtual[1:]
	}
	return gofuse.OK
}

// virtualIno stands for the inode number of a virtual file in a listing: it has none before it is looked up.
const virtualIno = 1<<32 - 1

func (fs *loopback) virtualNames(dir *node) []string {
	path, named := fs.nodes.pathOf(dir)
	if !named {
		return nil
	}
	if path == "." {
		path = ""
	}
	return fs.backend.Virtuals(path)
}

func (fs *loopback) ReleaseDir(in *gofuse.ReleaseIn) {
	if h := fs.removeHandle(in.Fh); h != nil {
		h.close()
	}
}
