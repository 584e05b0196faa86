package ship

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/archive"
	"github.com/litefs/litefs/internal/objstore"
)

// made is an object that is ready to be written: a file without a name.
type made struct {
	file   *os.File
	size   int64
	header archive.Header
}

func (f *made) close() error { return f.file.Close() }

func (f *made) attrs() objstore.Attrs {
	s := f.header.State
	return objstore.Attrs{Time: f.header.Time, Meta: map[string]string{
		"litefs-txid": fmt.Sprintf("%016x", s.TXID), "litefs-checksum": fmt.Sprintf("%016x", s.Sum),
		"litefs-epoch": strconv.FormatUint(s.Epoch, 10), "litefs-db": fmt.Sprintf("%016x", s.DB),
	}}
}

// create makes an object in a file that is gone once it is closed, also by a crash.
func (t *target) create(write func(w io.Writer) (archive.Header, int64, error)) (*made, error) {
	f, err := os.CreateTemp(t.opt.Dir, "object-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	w := bufio.NewWriterSize(f, 256<<10)
	h, size, err := write(w)
	if err = errors.Join(err, w.Flush()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &made{file: f, size: size, header: h}, nil
}

// Bounds of what is put into one moment in memory; an entry of the log that is larger goes by itself,
// from the disk.
const (
	maxPart  = 256 << 10 // bytes of an entry, compressed
	maxPages = 16 << 20  // bytes of pages
)

// makeMoment makes the next moment of the entries at the front of parts.
func (t *target) makeMoment(c *chain, parts []litefs.LogPart) (*made, error) {
	back := c.tail.Max > 0 && parts[0].TakesBack && parts[0].Min == c.tail.State.TXID+1
	if back {
		parts = parts[:1] // by itself, so that both have one time
	}
	if parts[0].Size > maxPart {
		return t.create(func(w io.Writer) (archive.Header, int64, error) { return c.encodeOne(w, parts[0], back) })
	}
	g := group{floor: c.tail.Commit, pages: map[uint32][]byte{}}
	for i, p := range parts {
		if i > 0 && (p.Size > maxPart || p.Commit == 0 || p.PageSize != parts[0].PageSize || g.bytes >= maxPages) {
			break
		}
		if err := g.add(c.db, p); err != nil {
			return nil, err
		}
	}
	return t.create(func(w io.Writer) (archive.Header, int64, error) {
		if back {
			g.count = 0
		}
		return g.encode(w, c.nextHeader(g.last, g.count))
	})
}

// nextHeader is the header of the moment that ends with a part.
func (c *chain) nextHeader(last litefs.LogPart, count uint64) archive.Header {
	h := archive.Header{
		Min: c.tail.Max + 1, Max: c.tail.Max + 1, PageSize: last.PageSize, Commit: last.Commit, Time: last.Time.Truncate(time.Millisecond),
		State: archive.State{TXID: last.Max, Count: uint32(min(count, 1<<31-1)), DB: c.db.ID(), Sum: last.Post, Epoch: last.Epoch},
	}
	// Moments are found by their times: a clock that goes back between two primaries must not show.
	if h.Time.Before(c.tail.Time) {
		h.Time = c.tail.Time
	}
	return h
}

// encodeOne makes a moment of one entry, however large.
func (c *chain) encodeOne(w io.Writer, p litefs.LogPart, back bool) (archive.Header, int64, error) {
	h := c.nextHeader(p, p.Max-c.tail.State.TXID)
	if back {
		h.State.Count = 0
	}
	out, err := archive.NewWriter(w, h, c.tail.Commit)
	if err != nil {
		return h, 0, err
	}
	if err := c.db.LogPages(p, out.Page); err != nil {
		return h, 0, err
	}
	size, err := out.Close()
	return h, size, err
}

// group is the newest content of the pages of several entries.
type group struct {
	floor uint32 // fewest pages that the database had
	pages map[uint32][]byte
	bytes int
	last  litefs.LogPart
	count uint64
}

func (g *group) add(db Database, p litefs.LogPart) error {
	g.floor = min(g.floor, p.Commit)
	for pgno := range g.pages {
		if pgno > p.Commit {
			delete(g.pages, pgno) // cut off: if the database grows again it is another page
		}
	}
	err := db.LogPages(p, func(pgno uint32, data []byte) error {
		if have := g.pages[pgno]; have != nil {
			copy(have, data)
			return nil
		}
		g.pages[pgno] = slices.Clone(data)
		g.bytes += len(data)
		return nil
	})
	g.last = p
	g.count += p.Max - p.Min + 1
	return err
}

func (g *group) encode(w io.Writer, h archive.Header) (archive.Header, int64, error) {
	out, err := archive.NewWriter(w, h, g.floor)
	if err != nil {
		return h, 0, err
	}
	pgnos := make([]uint32, 0, len(g.pages))
	for pgno := range g.pages {
		pgnos = append(pgnos, pgno)
	}
	slices.Sort(pgnos)
	for _, pgno := range pgnos {
		if err := out.Page(pgno, g.pages[pgno]); err != nil {
			return h, 0, err
		}
	}
	size, err := out.Close()
	return h, size, err
}

// makeImage makes the next moment of all pages of the database.
func (t *target) makeImage(ctx context.Context, c *chain) (_ *made, err error) {
	snap, err := c.db.DecidedSnapshot(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, snap.Close()) }()
	return t.create(func(w io.Writer) (archive.Header, int64, error) {
		in, epoch, err := archive.NewLogReader(snap)
		if err != nil {
			return archive.Header{}, 0, err
		}
		h := c.nextHeader(litefs.LogPart{
			Max: snap.MaxTXID, Post: snap.Post, Epoch: epoch, Commit: in.Header.Commit, PageSize: in.Header.PageSize, Time: in.Header.Time,
		}, snap.MaxTXID-c.tail.State.TXID)
		if c.tail.Max > 0 && h.PageSize != c.tail.PageSize {
			return h, 0, nil // a history of its own; the caller sees to it
		}
		size, err := writePages(w, h, in)
		return h, size, err
	})
}

// copyPages makes an object of a snapshot of the database.
func copyPages(w io.Writer, h archive.Header, snap io.Reader) (int64, error) {
	in, _, err := archive.NewLogReader(snap)
	if err != nil {
		return 0, err
	}
	return writePages(w, h, in)
}

func writePages(w io.Writer, h archive.Header, in *archive.Reader) (int64, error) {
	out, err := archive.NewWriter(w, h, 0)
	if err != nil {
		return 0, err
	}
	for {
		pgno, data, err := in.Next()
		if errors.Is(err, io.EOF) {
			return out.Close()
		}
		if err == nil {
			err = out.Page(pgno, data)
		}
		if err != nil {
			return 0, fmt.Errorf("copy a snapshot: %w", err)
		}
	}
}

// Bounds of the cache.
const (
	maxCached      = 16 << 20  // bytes in all
	maxCachedEntry = 512 << 10 // bytes of an object
)

// cache holds the newest small objects that were written, so that those of the next level are made
// without asking for them.
type cache struct {
	mu    sync.Mutex
	data  map[string][]byte
	order []string
	bytes int
}

func (c *cache) add(key string, f *made) {
	if f.size > maxCachedEntry {
		return
	}
	b := make([]byte, f.size)
	if _, err := f.file.ReadAt(b, 0); err != nil {
		return // asked for, then
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.data == nil {
		c.data = map[string][]byte{}
	}
	c.data[key] = b
	c.order = append(c.order, key)
	c.bytes += len(b)
	for c.bytes > maxCached {
		c.bytes -= len(c.data[c.order[0]])
		delete(c.data, c.order[0])
		c.order = c.order[1:]
	}
}

func (c *cache) get(key string) (io.Reader, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, ok := c.data[key]
	return bytes.NewReader(b), ok
}
