package ship

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/litefs/litefs/internal/archive"
)

// Upkeep of a history takes as long as the upload of the whole database. It works on a copy of what is known of the
// history, so that new moments, which a commit may wait for, go on beside it. Both leave each other's objects alone:
// upkeep writes other names, and removes only what was there when it began.

// tidying is an upkeep of a history.
type tidying struct {
	chain // as it was when the upkeep began, and then with what the upkeep did

	objects0 []archive.Object
	others0  []uint64
	unsure   bool // what has become of a request is not known
}

// tidying begins an upkeep. The caller has the chain.
func (c *chain) tidying() *tidying {
	return &tidying{objects0: slices.Clone(c.objects), others0: slices.Clone(c.others), chain: chain{
		db: c.db, name: c.name, epoch: c.epoch, attached: true, folder: c.folder, tail: c.tail,
		objects: slices.Clone(c.objects), others: slices.Clone(c.others), othersDue: c.othersDue,
	}}
}

// tidy does the upkeep. Nobody has the chain.
func (t *target) tidy(ctx context.Context, c *chain, u *tidying) {
	if isUrgent(ctx) { // the commit's visit did not wait for its turn: this does
		select {
		case t.slots <- struct{}{}:
			defer func() { <-t.slots }()
		case <-ctx.Done():
		}
		ctx = patient(ctx)
	}
	began := time.Now()
	err := t.upkeep(ctx, c, u, began)
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.mu.tidying, c.db.ID())
	known := c
	if other := t.mu.chains[c.db.ID()]; other != nil && other != c {
		known, other.stale = other, true // the history was looked at again meanwhile
	}
	if ctx.Err() != nil || errors.Is(err, errNotPrimary) {
		return
	}
	c.tidied = u
	known.upkeep = began.Add(t.opt.levels[0])
	if err == nil {
		known.untidy, known.untidied = nil, 0
		return
	}
	if known.untidy == nil {
		t.logger.Error("cannot keep a history in order; tried again, and new moments are archived meanwhile", "db", c.name, "error", err)
	}
	known.untidy, known.untidied = err, t.longer(known.untidied)
	known.upkeep = began.Add(max(t.opt.levels[0], known.untidied))
	known.stale = known.stale || u.unsure
}

// adopt takes over what upkeep has done. The caller has the chain.
func (t *target) adopt(c *chain) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.stale {
		c.stale, c.attached = false, false
	}
	u := c.tidied
	c.tidied = nil
	if u == nil || u.folder != c.folder {
		return
	}
	began, left := setOf(u.objects0), setOf(u.objects)
	c.objects = slices.DeleteFunc(c.objects, func(o archive.Object) bool { return began[o] && !left[o] })
	for _, o := range u.objects {
		if !began[o] && !c.has(o) {
			c.objects = append(c.objects, o)
		}
	}
	c.others = slices.DeleteFunc(c.others, func(n uint64) bool { return slices.Contains(u.others0, n) && !slices.Contains(u.others, n) })
	c.othersDue = u.othersDue
}

func setOf(objects []archive.Object) map[archive.Object]bool {
	set := make(map[archive.Object]bool, len(objects))
	for _, o := range objects {
		set[o] = true
	}
	return set
}

// has reports whether an object is known, whatever its time.
func (c *chain) has(o archive.Object) bool {
	return slices.ContainsFunc(c.objects, func(have archive.Object) bool {
		return have.Level == o.Level && have.Min == o.Min && have.Max == o.Max
	})
}

// take waits until nobody has the chain, and has it then; false when it is not used any more.
func (t *target) take(ctx context.Context, c *chain) bool {
	for {
		if t.begin(c) {
			return true
		}
		t.mu.Lock()
		idle, used := c.idle, t.mu.chains[c.db.ID()] == c
		t.mu.Unlock()
		if !used {
			return false
		}
		if idle == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return false
		case <-idle:
		}
	}
}
