package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/adopt"
	"github.com/litefs/litefs/internal/config"
)

func runAdopt(_ context.Context, args []string, std stdio) error {
	f := newFlags("adopt", "litefs adopt [flags] DIR",
		"Takes over DIR, the data directory of a LiteFS 0.5 that is stopped. Databases are renamed,\n"+
			"so that not a byte of them changes, and a new history begins with them. What LiteFS has\n"+
			"beside them stays in DIR/litefs-0.5 until -clean. Cut off, it is run again. Do this on one\n"+
			"node, the one that was the primary; the others start with empty directories.",
		"litefs adopt -dry-run /var/lib/litefs")
	dry := f.Bool("dry-run", false, "say what would be done, and change nothing")
	clean := f.Bool("clean", false, "remove what an adoption before has kept in DIR/litefs-0.5")
	asJSON := f.Bool("json", false, "print JSON: the plan, or what -clean removed")
	dirs, err := f.parse(args, std)
	if err != nil {
		return err
	}
	if len(dirs) != 1 || *dry && *clean {
		return usagef("want: litefs adopt [-dry-run | -clean] DIR")
	}
	if *clean {
		return cleanAdopted(dirs[0], std, *asJSON)
	}
	plan, err := adopt.Examine(dirs[0])
	if errors.Is(err, adopt.ErrNothing) {
		return config.Invalid(err)
	}
	if err != nil {
		return err
	}
	if err := printPlan(std, plan, *asJSON); err != nil || *dry {
		return err
	}
	if err := plan.Run(litefs.MarkDataDir); err != nil {
		return fmt.Errorf("adopt %s: %w", dirs[0], err)
	}
	_, err = fmt.Fprintf(std.err, "adopted: start this litefs with data.dir %s; litefs adopt -clean %s removes what LiteFS kept beside the databases\n", dirs[0], dirs[0])
	return err
}

func printPlan(std stdio, p adopt.Plan, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(std.out)
		enc.SetIndent("", "  ")
		return enc.Encode(p)
	}
	if p.Resumed {
		if _, err := fmt.Fprintln(std.out, "an adoption was cut off: it goes on"); err != nil {
			return err
		}
	}
	for _, db := range p.Databases {
		line := fmt.Sprintf("%s: %d bytes, page size %d, LiteFS's last TXID %s", db.Name, db.Bytes, db.PageSize, db.TXID)
		switch {
		case db.Dropped:
			line = db.Name + ": was dropped, only its log is there: not taken over"
		case db.WAL > 0:
			line += fmt.Sprintf(", with a write-ahead log of %d bytes", db.WAL)
		case db.Journal > 0:
			line += fmt.Sprintf(", with a rollback journal of %d bytes", db.Journal)
		}
		if _, err := fmt.Fprintln(std.out, line); err != nil {
			return err
		}
	}
	return nil
}

func cleanAdopted(dir string, std stdio, asJSON bool) error {
	n, err := adopt.Kept(dir)
	if err != nil {
		return err
	}
	if err := adopt.Clean(dir); err != nil {
		return err
	}
	if asJSON {
		return json.NewEncoder(std.out).Encode(map[string]int64{"removedBytes": n})
	}
	_, err = fmt.Fprintf(std.out, "removed %d bytes\n", n)
	return err
}
