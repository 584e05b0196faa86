package ship

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/litefs/litefs/internal/archive"
	"github.com/litefs/litefs/internal/catalog"
	"github.com/litefs/litefs/internal/objstore"
)

// historiesEvery is how often the histories that nobody continues are looked at: what they cost is a listing.
const historiesEvery = 24 * time.Hour

// others notes which histories of the database there are beside the one that is written: all but the newest, for
// that one may be another node's who takes itself for the primary as well.
func (c *chain) noteOthers(numbers []uint64) {
	c.others, c.othersDue = nil, time.Time{}
	for i, n := range numbers {
		if i < len(numbers)-1 && catalog.Folder(c.name, n) != c.folder {
			c.others = append(c.others, n)
		}
	}
}

// expireHistories removes the histories whose last moment is older than moments are kept for. Nobody writes to
// them any more: what is written to is never that old.
func (t *target) expireHistories(ctx context.Context, c *chain, now time.Time) error {
	age := t.opt.Retention.Age
	if age == 0 || len(c.others) == 0 || now.Before(c.othersDue) {
		return nil
	}
	var left []uint64
	for _, n := range c.others {
		keys, last, err := t.contentOf(ctx, catalog.Folder(c.name, n))
		if err != nil {
			return err
		}
		if last.IsZero() || !last.Before(now.Add(-age)) {
			left = append(left, n)
			continue
		}
		t.logger.Info("an old history leaves the archive", "db", c.name, "history", catalog.Name(n), "last", last.Format(time.RFC3339), "objects", len(keys),
			"reason", fmt.Sprintf("its last moment is older than %s, and %s is the one that is written", age, c.folder))
		if err := t.remove(ctx, c, keys); err != nil {
			return err
		}
	}
	c.others, c.othersDue = left, now.Add(historiesEvery)
	return nil
}

// noteDrop says in a history that its database was dropped. The history stays.
func (t *target) noteDrop(ctx context.Context, c *chain) error {
	if !t.opt.Source.IsPrimary() || t.opt.Source.Epoch() != c.epoch {
		return errNotPrimary
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err := catalog.PutDrop(ctx, t.store, c.folder, catalog.Drop{Time: time.Now().UTC(), TXID: c.tail.State.TXID}); err != nil {
		return fmt.Errorf("note that %s was dropped: %w", c.name, err)
	}
	t.logger.Info("a database was dropped: its history stays in the archive", "db", c.name, "history", c.folder)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.chains[c.db.ID()] == c {
		delete(t.mu.chains, c.db.ID())
	}
	return nil
}

// contentOf returns everything below the folder of a history, and when its last object was written.
func (t *target) contentOf(ctx context.Context, folder string) (keys []string, last time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout+time.Minute)
	defer cancel()
	for info, err := range t.store.List(ctx, folder, "") {
		if err != nil {
			return nil, last, err
		}
		keys = append(keys, info.Key)
		if info.Modified.After(last) {
			last = info.Modified
		}
	}
	return keys, last, nil
}

// remove removes objects, as long as this node is the primary that it was.
func (t *target) remove(ctx context.Context, c *chain, keys []string) error {
	for part := range slices.Chunk(keys, objstore.MaxDelete) {
		if !t.opt.Source.IsPrimary() || t.opt.Source.Epoch() != c.epoch {
			return errNotPrimary
		}
		ctx, cancel := context.WithTimeout(ctx, 2*askTimeout)
		err := t.store.DeleteAll(ctx, part)
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// keysOf are the keys of objects of the history that is written.
func (t *target) keysOf(c *chain, objects []archive.Object) []string {
	keys := make([]string, 0, len(objects))
	for _, o := range objects {
		keys = append(keys, c.folder+t.place.Layout.Key(o))
	}
	return keys
}
