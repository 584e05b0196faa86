package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/litefs/litefs/internal/dbfile"
	"github.com/litefs/litefs/internal/durable"
)

func runExport(ctx context.Context, args []string, std stdio) error {
	f := newFlags("export", "litefs export -name DB [flags] FILE",
		"Writes a database of the running node to FILE, as it is at one moment: a file that\n"+
			"SQLite opens. Every page is checked against the database's checksum before FILE\n"+
			"is put in place, in one step; a FILE that is there stays until then.",
		"litefs export -name app.db -config litefs.yml /backup/app.db")
	var c copyFlags
	t, file, err := c.parse(f, args, std)
	if err != nil {
		return err
	}
	bar := newProgress(std.err, "exporting "+c.name)
	got, err := exportTo(ctx, t, c.name, file, bar.report)
	bar.end()
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return fmt.Errorf("export of %s: interrupted: %s is as it was", c.name, file)
	}
	if err != nil {
		return err
	}
	if c.asJSON {
		return json.NewEncoder(std.out).Encode(got)
	}
	_, err = fmt.Fprintf(std.out, "%s at %s is in %s\n", got.Name, got.Pos, got.File)
	return err
}

// nameUsage is the help of the flag -name.
const nameUsage = "the `DB`: its path in the mount"

// exported is what an export has done.
type exported struct {
	Name string `json:"name"`
	Pos  string `json:"pos"`
	File string `json:"file"`
	Size int64  `json:"size"` // bytes
}

// exportTo puts a checked copy of a database at path. Whatever fails leaves path as it was.
func exportTo(ctx context.Context, t target, name, path string, progress dbfile.Progress) (got exported, err error) {
	e, err := t.client.Export(ctx, t.url, name)
	if err != nil {
		return got, err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	write := func(f *os.File) error {
		if err := dbfile.Copy(f, e, e.Size, e.Pos.Chksum, progress); err != nil {
			return fmt.Errorf("export of %s: %w", name, err)
		}
		// A -wal or journal of the file that is replaced would be taken for the new one's.
		for _, suffix := range []string{"-wal", "-shm", "-journal"} {
			if _, err := os.Lstat(path + suffix); err == nil {
				return fmt.Errorf("%s belongs to the database at %s, which may be in use: choose another file, or close it first", path+suffix, path)
			}
		}
		return f.Chmod(0o644)
	}
	if err := durable.Put(path, "."+filepath.Base(path)+".*.tmp", write, os.Rename); err != nil {
		return got, err
	}
	return exported{name, e.Pos.String(), path, e.Size}, nil
}
