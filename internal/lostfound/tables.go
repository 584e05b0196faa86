package lostfound

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/litefs/litefs/internal/logkey"
	"github.com/litefs/litefs/sqlitefile"
)

// Table is a table of a kept database.
type Table struct {
	Name  string
	Rows  int64 // at the end of the tail; -1 when its b-tree cannot be read
	Pages int   // of it and its indexes that the tail changed
}

// Tables returns the tables that the tail changed, by name. It walks the b-trees of a copy of the
// database, made in dir for the time. Pages that belong to no table (free ones, maps of pointers) are
// left out.
func (k Kept) Tables(ctx context.Context, dir string, keys *logkey.Keys) (tables []Table, err error) {
	tmp, err := os.MkdirTemp(dir, "litefs-lost-*")
	if err != nil {
		return nil, fmt.Errorf("tables of %s: %w", k.Key, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	path := filepath.Join(tmp, "copy.db")
	if err := k.Export(path, keys); err != nil {
		return nil, err
	}
	changed, err := k.Changed(keys)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	if tables, err = changedTables(ctx, f, k.PageSize, changed); err != nil {
		return nil, fmt.Errorf("tables of %s: %w", k.Key, err)
	}
	return tables, nil
}

// changedTables walks every b-tree of a database.
func changedTables(ctx context.Context, f io.ReaderAt, pageSize uint32, changed []uint32) ([]Table, error) {
	page := make([]byte, pageSize)
	tree, err := sqlitefile.NewTree(func(pgno uint32) ([]byte, error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		_, err := f.ReadAt(page, int64(pgno-1)*int64(pageSize))
		return page, err
	})
	if err != nil {
		return nil, err
	}
	objects, err := tree.Schema()
	if err != nil {
		return nil, err
	}
	byName := map[string]*Table{}
	for _, o := range objects {
		if o.Root == 0 {
			continue
		}
		t := byName[o.Table]
		if t == nil {
			t = &Table{Name: o.Table}
			byName[o.Table] = t
		}
		rows, err := tree.Walk(o.Root, func(pgno uint32) {
			if _, ok := slices.BinarySearch(changed, pgno); ok {
				t.Pages++
			}
		})
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			t.Rows = -1
		case o.Type == "table" && t.Rows >= 0:
			t.Rows = rows
		}
	}
	var tables []Table
	for _, t := range byName {
		if t.Pages > 0 {
			tables = append(tables, *t)
		}
	}
	slices.SortFunc(tables, func(a, b Table) int { return cmp.Compare(a.Name, b.Name) })
	return tables, nil
}
