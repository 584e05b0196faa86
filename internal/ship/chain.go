package ship

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/archive"
	"github.com/litefs/litefs/internal/catalog"
)

var (
	// errNotOurs: the name of an object that this node was about to write is taken.
	errNotOurs = errors.New("the next moment of the history has been written already")
	// errNotPrimary: this node may not write any more.
	errNotPrimary = errors.New("not the primary any more")
)

// chain is the history of one database in one target, as this node writes it. It is used by one
// goroutine at a time, which has idle, but for the fields that target.mu guards. Upkeep works on a copy.
type chain struct {
	db    Database
	name  string
	epoch uint64 // of the node, when it began to write

	// Guarded by target.mu:
	idle     chan struct{} // closed when whoever is at it has ended; nil: nobody is
	behind   time.Time     // since when the target lacks something; zero: it lacks nothing
	wanted   bool          // a commit waited for it when it was looked at; used by run alone
	tailTXID uint64        // the target has everything up to it
	tried    uint64        // the end of the last moment that was put, perhaps in vain
	stale    bool          // upkeep has left the history otherwise than is known here
	upkeep   time.Time     // when something other than shipping is to be done
	untidy   error         // of the last upkeep: what is damaged
	untidied time.Duration // the last pause after such an error
	tidied   *tidying      // what upkeep has done since the last visit
	cutting  bool          // a snapshot is made: only what commits wait for is written, and noted
	noted    []archive.Header
	dropped  bool      // the database is not there any more: what is left to do is to say so in the archive
	err      error     // of this database, at the last attempt
	resume   time.Time // nothing is tried before
	pause    time.Duration

	attached bool
	seen     time.Time        // the target said at this time or later that the newest moment is tail
	folder   string           // of the history, with a slash at its end
	tail     archive.Header   // of the newest moment; Max 0: there is none yet
	objects  []archive.Object // of the history, with the times of moments where those are known

	others    []uint64  // histories that nobody continues, perhaps
	othersDue time.Time // when they are looked at next
}

// attach finds the history that this node's log continues, the newest first, or the name of a new one.
func (t *target) attach(ctx context.Context, c *chain) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout+time.Minute)
	defer cancel()
	// One listing of all of the database: a primary that begins asks this for each.
	c.seen = time.Now()
	objects, err := catalog.All(ctx, t.store, t.place.Layout, c.name)
	if err != nil {
		return err
	}
	numbers := slices.Sorted(maps.Keys(objects))
	for _, n := range slices.Backward(numbers) {
		ok, err := t.attachTo(ctx, c, n, objects[n])
		if err != nil {
			return err
		}
		if ok {
			c.noteOthers(numbers)
			return nil
		}
	}
	next := uint64(1)
	if len(numbers) > 0 {
		next = numbers[len(numbers)-1] + 1
	}
	c.folder, c.tail, c.objects, c.attached = catalog.Folder(c.name, next), archive.Header{}, nil, true
	c.noteOthers(append(numbers, next))
	t.shipped(c, 0)
	t.logger.Info("a history begins in the archive", "db", c.name, "history", catalog.Name(next))
	return nil
}

// attachTo makes c the continuation of a history, if it is one.
func (t *target) attachTo(ctx context.Context, c *chain, n uint64, objects []archive.Object) (bool, error) {
	folder := catalog.Folder(c.name, n)
	if len(objects) == 0 {
		return false, nil
	}
	last := newest(objects)
	h, err := catalog.Header(ctx, t.store, t.place.Layout, folder, last, true)
	if errors.Is(err, archive.ErrCorrupt) {
		t.logger.Error("the newest object of a history is damaged: the history is not continued", "db", c.name, "error", err)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	s := h.State
	if s.DB != c.db.ID() || !c.db.Descends(litefs.Pos{TXID: s.TXID, Chksum: s.Sum}, s.Epoch) {
		return false, nil
	}
	c.folder, c.tail, c.objects, c.attached = folder, h, objects, true
	t.shipped(c, s.TXID)
	t.logger.Info("a history goes on in the archive", "db", c.name, "history", catalog.Name(n), "moment", h.Max, "txid", fmt.Sprintf("%016x", s.TXID))
	return true, nil
}

// newest is an object that ends with the last moment.
func newest(objects []archive.Object) archive.Object {
	var last archive.Object
	for _, o := range objects {
		if o.Max > last.Max {
			last = o
		}
	}
	return last
}

// maxMoments is how many moments of one database are written before others have their turn.
const maxMoments = 64

// ship writes what the target lacks of one database.
func (t *target) ship(ctx context.Context, c *chain) error {
	t.mu.Lock()
	dropped := c.dropped
	t.mu.Unlock()
	if dropped {
		return t.noteDrop(ctx, c)
	}
	// By the name of a moment that is taken one sees that another primary has written; but names of moments that were put
	// together with others are free again after keepRaw.
	if t.adopt(c); !c.attached || time.Since(c.seen) > t.opt.keepRaw/2 {
		if err := t.attach(ctx, c); err != nil {
			return fmt.Errorf("look for the history of %s: %w", c.name, err)
		}
	}
	for range maxMoments {
		more, err := t.shipMoment(ctx, c)
		if err != nil {
			return err
		}
		if !more {
			break
		}
	}
	return nil
}

// shipMoment writes the next moment; false when the target has everything that the log had.
func (t *target) shipMoment(ctx context.Context, c *chain) (bool, error) {
	parts, err := c.db.LogAfter(c.tail.State.TXID)
	if errors.Is(err, litefs.ErrDatabaseNotFound) {
		return false, nil
	}
	lost := errors.Is(err, litefs.ErrSnapshotNeeded)
	if err != nil && !lost {
		return false, err
	}
	if !lost && len(parts) == 0 {
		return false, nil
	}
	var f *made
	switch {
	case lost && c.tail.Max > 0:
		t.logger.Warn("the log does not reach back to the archive's last moment: the next one is all of the database, and the transactions between are one step", "db", c.name)
		fallthrough
	case lost:
		f, err = t.makeImage(ctx, c)
	case parts[0].Commit == 0:
		return false, nil // dropped
	case c.tail.Max > 0 && parts[0].PageSize != c.tail.PageSize:
		return false, t.newHistory(ctx, c, "the page size has changed")
	default:
		f, err = t.makeMoment(c, parts)
	}
	if errors.Is(err, litefs.ErrLogChanged) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if c.tail.Max > 0 && f.header.PageSize != c.tail.PageSize {
		return false, errors.Join(f.close(), t.newHistory(ctx, c, "the page size has changed"))
	}
	err = t.putMoment(ctx, c, f)
	// What has been committed since the log was listed waits for the next moment: an interval is one
	// request, however busy the database is.
	return lost || c.tail.State.TXID < parts[len(parts)-1].Max, err
}

// putMoment writes a moment and makes it the last one.
func (t *target) putMoment(ctx context.Context, c *chain, f *made) (err error) {
	defer func() { err = errors.Join(err, f.close()) }()
	o := archive.Object{Level: archive.LevelRaw, Min: f.header.Max, Max: f.header.Max, Size: f.size, Modified: f.header.Time}
	key := c.folder + t.place.Layout.Key(o)
	t.mu.Lock()
	c.tried = f.header.State.TXID
	t.mu.Unlock()
	sent := time.Now()
	err = t.put(ctx, c, key, f)
	if errors.Is(err, errNotOurs) && t.wrote(ctx, c, o, f.header) {
		err = nil
	}
	if err != nil {
		return err
	}
	t.cache.add(key, f)
	c.tail, c.seen = f.header, sent
	t.note(c, f.header)
	c.objects = append(c.objects, o)
	t.shipped(c, f.header.State.TXID)
	return nil
}

// wrote reports whether an object that is there already is the one that was to be written: an earlier
// attempt of the same put, whose answer got lost.
func (t *target) wrote(ctx context.Context, c *chain, o archive.Object, want archive.Header) bool {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	got, err := catalog.Header(ctx, t.store, t.place.Layout, c.folder, o, true)
	want.Time = want.Time.Truncate(time.Millisecond).UTC()
	return err == nil && got == want
}

// newHistory begins a history after the newest one. Its name is taken by its first moment.
func (t *target) newHistory(ctx context.Context, c *chain, why string) error {
	numbers, err := catalog.Histories(ctx, t.store, c.name)
	if err != nil {
		return err
	}
	next := uint64(1)
	if len(numbers) > 0 {
		next = numbers[len(numbers)-1] + 1
	}
	t.logger.Info("a history begins in the archive", "db", c.name, "history", catalog.Name(next), "reason", why)
	c.folder, c.tail, c.objects = catalog.Folder(c.name, next), archive.Header{}, nil
	c.noteOthers(append(numbers, next))
	t.shipped(c, 0)
	return nil
}

// clearDir removes what an earlier run left of files that were being made.
func clearDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
