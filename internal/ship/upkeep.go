package ship

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/archive"
	"github.com/litefs/litefs/internal/catalog"
	"github.com/litefs/litefs/internal/objstore"
)

// upkeep puts objects together, makes snapshots, and removes what is old. An object that is damaged holds up none
// of the others: it cannot be put together with others, and leaves when a snapshot has come that makes it superfluous.
func (t *target) upkeep(ctx context.Context, c *chain, u *tidying, now time.Time) error {
	compact := func() error {
		for level := archive.LevelRaw + 1; level <= archive.LevelTop; level++ {
			if err := t.compact(ctx, &u.chain, level, now); err != nil {
				return err
			}
		}
		return nil
	}
	var errs []error
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"put objects of %s together", compact},
		{"snapshot of %s", func() error { return t.snapshot(ctx, c, &u.chain, now) }},
		{"remove old objects of %s", func() error { return t.expire(ctx, &u.chain, now) }},
		{"remove old histories of %s", func() error { return t.expireHistories(ctx, &u.chain, now) }},
	} {
		err := step.do()
		if err == nil {
			continue
		}
		errs = append(errs, fmt.Errorf(step.what+": %w", c.name, err))
		if !errors.Is(err, archive.ErrCorrupt) && !errors.Is(err, objstore.ErrNotFound) {
			u.unsure = true
			break
		}
	}
	return errors.Join(errs...)
}

// at returns the objects of a level, ascending.
func (c *chain) at(level int) []archive.Object {
	var out []archive.Object
	for _, o := range c.objects {
		if o.Level == level {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b archive.Object) int { return cmp.Compare(a.Max, b.Max) })
	return out
}

// maxRun bounds how many objects are put together as one: each is an open file.
const maxRun = 256

// compact makes the next object of a level of those below it that it does not have yet. Levels are
// aligned: an object begins where the one before it ends, and ends where one of the level below ends.
// Anybody would make the same object, so that it exists already is as good as having made it.
func (t *target) compact(ctx context.Context, c *chain, level int, now time.Time) (err error) {
	var done archive.Object
	if have := c.at(level); len(have) > 0 {
		done = have[len(have)-1]
	}
	if now.Sub(done.Modified) < t.opt.levels[level-1] {
		return nil
	}
	var run []archive.Object
	next := done.Max + 1
	for _, o := range c.at(level - 1) {
		if o.Max < next {
			continue
		}
		if o.Min != next && (done.Max > 0 || len(run) > 0) {
			break // there is a hole: nothing is made over it
		}
		run = append(run, o)
		if next = o.Max + 1; len(run) == maxRun {
			break
		}
	}
	if run, err = t.cutBack(ctx, c, level, run); err != nil {
		return err
	}
	if len(run) < t.opt.minMerge || run[0].Modified.After(now.Add(-t.opt.levels[level-1])) {
		return nil // too little, or too new, to be worth a request
	}
	f, err := t.merge(ctx, c, run)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	o := archive.Object{Level: level, Min: f.header.Min, Max: f.header.Max, Size: f.size, Modified: now}
	key := c.folder + t.place.Layout.Key(o)
	if err := t.put(ctx, c, key, f); err != nil && !errors.Is(err, errNotOurs) {
		return err
	}
	t.cache.add(key, f)
	c.objects = append(c.objects, o)
	return nil
}

// cutBack leaves moments out at the end of a run that are, or may be, taken back by the one after them: they would be
// moments for good then, and only those of level 0 say what was refused.
func (t *target) cutBack(ctx context.Context, c *chain, level int, run []archive.Object) ([]archive.Object, error) {
	if level != archive.LevelRaw+1 {
		return run, nil
	}
	for len(run) >= t.opt.minMerge {
		last := run[len(run)-1].Max
		if last == c.tail.Max {
			if c.tail.State.TXID == c.db.Pos().TXID {
				return run, nil // decided
			}
			run = run[:len(run)-1]
			continue
		}
		back, err := t.takesBack(ctx, c, last+1)
		if err != nil || !back {
			return run, err
		}
		run = run[:len(run)-1]
	}
	return run, nil
}

// takesBack reports whether a moment takes the one before it back.
func (t *target) takesBack(ctx context.Context, c *chain, moment uint64) (bool, error) {
	if moment == c.tail.Max {
		return c.tail.State.Count == 0, nil
	}
	o := archive.Object{Level: archive.LevelRaw, Min: moment, Max: moment}
	if r, ok := t.cache.get(c.folder + t.place.Layout.Key(o)); ok {
		b := make([]byte, archive.HeaderSize)
		if _, err := io.ReadFull(r, b); err == nil {
			h, err := archive.ParseHeader(b, true)
			return h.State.Count == 0, err
		}
	}
	h, err := catalog.Header(ctx, t.store, t.place.Layout, c.folder, o, true)
	if errors.Is(err, objstore.ErrNotFound) || errors.Is(err, archive.ErrCorrupt) {
		return false, nil // it is put together with others already, or lost; what takes back is neither
	}
	return h.State.Count == 0, err
}

// merge fetches objects and puts them together.
func (t *target) merge(ctx context.Context, c *chain, run []archive.Object) (_ *made, err error) {
	parts := make([]io.Reader, 0, len(run))
	var files []*os.File
	defer func() {
		for _, f := range files {
			err = errors.Join(err, f.Close())
		}
	}()
	for _, o := range run {
		key := c.folder + t.place.Layout.Key(o)
		if r, ok := t.cache.get(key); ok {
			parts = append(parts, r)
			continue
		}
		f, err := t.fetch(ctx, key, o.Size)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
		parts = append(parts, f)
	}
	return t.create(func(w io.Writer) (archive.Header, int64, error) { return archive.Merge(w, parts) })
}

// fetch copies an object into a file without a name.
func (t *target) fetch(ctx context.Context, key string, size int64) (_ *os.File, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout+transferTime(size))
	defer cancel()
	o, err := t.store.Get(ctx, key, objstore.Range{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, o.Body.Close()) }()
	f, err := os.CreateTemp(t.opt.Dir, "fetched-")
	if err != nil {
		return nil, err
	}
	if err = os.Remove(f.Name()); err == nil {
		w := bufio.NewWriterSize(f, 256<<10)
		_, err = io.Copy(w, o.Body)
		err = errors.Join(err, w.Flush())
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("fetch %s: %w", key, err), f.Close())
	}
	return f, nil
}

// snapshot writes an object with every page, once in an interval in which something changed.
func (t *target) snapshot(ctx context.Context, c, u *chain, now time.Time) (err error) {
	// Where there is no snapshot yet, the first object is one.
	last := slices.MinFunc(u.objects, func(a, b archive.Object) int { return a.Modified.Compare(b.Modified) })
	if have := u.at(archive.LevelSnapshot); len(have) > 0 {
		last = have[len(have)-1]
	}
	if now.Sub(last.Modified) < t.opt.SnapshotInterval || last.Max >= u.tail.Max {
		return nil
	}
	snap, h, err := t.snapshotAtMoment(ctx, c, u.folder)
	if snap == nil || err != nil {
		return err
	}
	defer func() { err = errors.Join(err, snap.Close()) }()
	f, err := t.create(func(w io.Writer) (archive.Header, int64, error) {
		first := h
		first.Min = 1
		size, err := copyPages(w, first, snap)
		return first, size, err
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	o := archive.Object{Level: archive.LevelSnapshot, Min: 1, Max: h.Max, Size: f.size, Modified: now}
	if err := t.put(ctx, u, u.folder+t.place.Layout.Key(o), f); err != nil && !errors.Is(err, errNotOurs) {
		return err
	}
	u.objects, u.tail = append(u.objects, o), h // what follows is the next upkeep's
	return nil
}

// snapshotAtMoment returns all of the database as it was at the end of a moment of a history; nil: not now. From before
// to after it nothing is written to the history but what commits wait for, lest a moment goes past the one that is wanted.
func (t *target) snapshotAtMoment(ctx context.Context, c *chain, folder string) (_ *litefs.LTXReader, h archive.Header, err error) {
	t.cut(c, true)
	defer t.cut(c, false)
	snap, err := c.db.DecidedSnapshot(ctx)
	if errors.Is(err, litefs.ErrDatabaseNotFound) || errors.Is(err, litefs.ErrLogChanged) {
		return nil, h, nil // at the next visit, perhaps
	}
	if err != nil {
		return nil, h, err
	}
	if t.take(ctx, c) {
		err := t.shipUntil(urgent(ctx), c, snap.MaxTXID)
		t.mu.Lock()
		h = c.momentAt(folder, snap.MaxTXID, snap.Post)
		t.ended(ctx, c, err)
		t.mu.Unlock()
	}
	if h.Max == 0 {
		return nil, h, snap.Close() // a new history has begun, or the log went on to where no moment ends; at the next visit
	}
	return snap, h, nil
}

// cut has only that shipped what commits wait for, and what is shipped noted; or ends it.
func (t *target) cut(c *chain, on bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c.cutting, c.noted = on, nil
}

// maxNoted is how many moments are noted while a snapshot is made: the one that is wanted is among the last.
const maxNoted = 4096

// note notes a moment that was written, if somebody wants that.
func (t *target) note(c *chain, h archive.Header) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.cutting {
		c.noted = append(c.noted[len(c.noted)/maxNoted:], h)
	}
}

// momentAt is the moment of a history that ends with a transaction, the last one or one of those that were noted; Max is
// 0 when there is none. The caller has the chain; mu is held.
func (c *chain) momentAt(folder string, txid, sum uint64) archive.Header {
	if c.folder != folder {
		return archive.Header{}
	}
	for _, h := range append(c.noted, c.tail) {
		if h.State.TXID == txid && h.State.Sum == sum {
			return h
		}
	}
	return archive.Header{}
}

// shipUntil writes moments until one ends with transaction txid, or later. The caller has the chain.
func (t *target) shipUntil(ctx context.Context, c *chain, txid uint64) error {
	for folder := c.folder; c.tail.State.TXID < txid && c.folder == folder; {
		parts, err := c.db.LogAfter(c.tail.State.TXID)
		if errors.Is(err, litefs.ErrDatabaseNotFound) || errors.Is(err, litefs.ErrSnapshotNeeded) {
			return nil // shipMoment deals with it
		}
		if err != nil {
			return err
		}
		parts = slices.DeleteFunc(parts, func(p litefs.LogPart) bool { return p.Max > txid })
		if len(parts) == 0 || parts[0].Commit == 0 || parts[0].PageSize != c.tail.PageSize {
			return nil
		}
		f, err := t.makeMoment(c, parts)
		if errors.Is(err, litefs.ErrLogChanged) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := t.putMoment(ctx, c, f); err != nil {
			return err
		}
	}
	return nil
}

// expire removes what is older than wanted.
func (t *target) expire(ctx context.Context, c *chain, now time.Time) error {
	r := t.opt.Retention
	l := archive.Limits{Count: r.Count, Size: r.Size, RawBefore: now.Add(-t.opt.keepRaw)}
	if r.Age > 0 {
		l.Before = now.Add(-r.Age)
	}
	gone := archive.Expired(c.objects, l)
	// A request for a few objects is not worth it: they wait for others.
	if len(gone) == 0 || len(gone) < t.opt.minMerge && !slices.ContainsFunc(gone, isSnapshot) {
		return nil
	}
	left := slices.DeleteFunc(slices.Clone(c.objects), func(o archive.Object) bool { return slices.Contains(gone, o) })
	if _, err := archive.Plan(left, c.tail.Max); err != nil {
		return fmt.Errorf("nothing is removed: %w", err)
	}
	if err := t.remove(ctx, c, t.keysOf(c, gone)); err != nil {
		return err
	}
	c.objects = left
	return nil
}

func isSnapshot(o archive.Object) bool { return o.Level == archive.LevelSnapshot }
