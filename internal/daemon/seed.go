package daemon

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/catalog"
	"github.com/litefs/litefs/internal/restore"
	"github.com/litefs/litefs/internal/ship"
)

// seeder finds the databases of the archive for a node whose data directory is empty.
type seeder struct {
	places []ship.Target
	match  []string // patterns of the databases that the node has; none: all
}

// seedTimeout bounds how long a place may take to say what it has.
const seedTimeout = time.Minute

// Databases asks one place after the other until one answers.
func (s seeder) Databases(ctx context.Context) ([]litefs.ArchivedDB, error) {
	var errs []error
	for _, place := range s.places {
		dbs, err := s.databasesOf(ctx, place)
		if err == nil {
			return dbs, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", place.Store, err))
	}
	return nil, errors.Join(errs...)
}

func (s seeder) databasesOf(ctx context.Context, place ship.Target) ([]litefs.ArchivedDB, error) {
	ctx, cancel := context.WithTimeout(ctx, seedTimeout)
	defer cancel()
	names, err := catalog.Databases(ctx, place.Store)
	if err != nil {
		return nil, err
	}
	var dbs []litefs.ArchivedDB
	for _, name := range names {
		if !s.wanted(name) {
			continue
		}
		h, err := restore.Open(ctx, place.Store, place.Layout, name, 0)
		if errors.Is(err, restore.ErrNoHistory) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if !h.Dropped.IsZero() {
			continue // where it is there again, another history says so
		}
		m, err := h.Newest(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		dbs = append(dbs, litefs.ArchivedDB{
			Name: name, ID: m.State.DB, Pos: litefs.Pos{TXID: m.State.TXID, Chksum: m.State.Sum}, Epoch: m.State.Epoch,
			PageSize: m.PageSize, Count: m.Commit, Time: m.Time,
			Restore: func(ctx context.Context, path string) error {
				_, err := h.Restore(ctx, m, path, nil)
				return err
			},
		})
	}
	return dbs, nil
}

func (s seeder) wanted(name string) bool {
	for _, pattern := range s.match {
		if ok, err := path.Match(pattern, name); err == nil && ok {
			return true
		}
	}
	return len(s.match) == 0
}
