package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/litefs/litefs/internal/archive"
	"github.com/litefs/litefs/internal/catalog"
	"github.com/litefs/litefs/internal/restore"
	"github.com/litefs/litefs/internal/ship"
)

func runHistory(ctx context.Context, args []string, std stdio) error {
	f := newFlags("history", "litefs history [flags]",
		"Lists what an archive has: the histories of each database, or with -name of one,\n"+
			"from when to when, and how large they are. A database has more than one history\n"+
			"when nodes wrote to it that did not know of each other, when its page size has\n"+
			"changed, or when it was dropped and made again. In a folder that Litestream 0.5\n"+
			"wrote it finds one database, without a name.",
		"litefs history -from /backup/litefs -name app.db")
	var a archiveFlags
	a.register(f)
	asJSON := f.Bool("json", false, "print one JSON object a history")
	if rest, err := f.parse(args, std); err != nil {
		return err
	} else if len(rest) > 0 {
		return usagef("history takes no arguments: name the archive with -from, the database with -name")
	}
	place, err := a.open(ctx)
	if err != nil {
		return err
	}
	names := []string{a.name}
	if a.name == "" {
		if names, err = catalog.Databases(ctx, place.Store); err != nil {
			return err
		}
	}
	var found []*restore.History
	for _, name := range names {
		more, err := historiesOf(ctx, place, name, a.history)
		if err != nil {
			return err
		}
		found = append(found, more...)
	}
	if len(found) == 0 && a.name == "" {
		h, err := restore.OpenForeign(ctx, place.Store, place.Layout)
		if err != nil && !errors.Is(err, restore.ErrNoHistory) {
			return err
		}
		if err == nil {
			found = append(found, h)
		}
	}
	if len(found) == 0 {
		return fmt.Errorf("%w: there are none in %s", restore.ErrNoHistory, place.Store)
	}
	return printHistories(ctx, std.out, found, *asJSON)
}

// historiesOf opens the histories of a database; n: that one only.
func historiesOf(ctx context.Context, place ship.Target, name string, n uint64) ([]*restore.History, error) {
	numbers := []uint64{n}
	if n == 0 {
		var err error
		if numbers, err = catalog.Histories(ctx, place.Store, name); err != nil {
			return nil, err
		}
	}
	var out []*restore.History
	for _, n := range numbers {
		h, err := restore.Open(ctx, place.Store, place.Layout, name, n)
		if err != nil {
			return nil, err
		}
		out = append(out, h)
	}
	return out, nil
}

// historyLine is what is told of a history.
type historyLine struct {
	Database string         `json:"database"` // "": Litestream's
	History  uint64         `json:"history"`  // 0: Litestream's
	Moments  int            `json:"moments"`  // that can be restored
	Objects  int            `json:"objects"`
	Bytes    int64          `json:"bytes"` // of the objects
	Snapshot *time.Time     `json:"snapshot,omitempty"`
	Dropped  *time.Time     `json:"dropped,omitempty"` // the database was, then
	First    restoredMoment `json:"first"`
	Last     restoredMoment `json:"last"`
}

func describeHistory(ctx context.Context, h *restore.History) (historyLine, error) {
	moments := h.Moments()
	first, err := h.Moment(ctx, moments[0])
	if err != nil {
		return historyLine{}, err
	}
	line := historyLine{
		Database: h.Database, History: h.Number, Moments: len(moments), Objects: len(h.Objects),
		First: momentJSON(first.N, first.Header), Last: momentJSON(h.Last.Max, h.Last),
	}
	if !h.Dropped.IsZero() {
		line.Dropped = &h.Dropped
	}
	for _, o := range h.Objects {
		line.Bytes += o.Size
		if o.Level == archive.LevelSnapshot && (line.Snapshot == nil || o.Modified.After(*line.Snapshot)) {
			line.Snapshot = &o.Modified
		}
	}
	return line, nil
}

func printHistories(ctx context.Context, w io.Writer, histories []*restore.History, asJSON bool) error {
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if !asJSON {
		fmt.Fprintln(tab, "DATABASE\tHISTORY\tFROM\tTO\tTRANSACTION\tMOMENTS\tSIZE")
	}
	for _, h := range histories {
		line, err := describeHistory(ctx, h)
		if err != nil {
			return err
		}
		if asJSON {
			if err := json.NewEncoder(w).Encode(line); err != nil {
				return err
			}
			continue
		}
		dropped := ""
		if line.Dropped != nil {
			dropped = "\tdropped " + line.Dropped.Format(time.RFC3339)
		}
		fmt.Fprintf(tab, "%s\t%d\t%s\t%s\t%s\t%d\t%s%s\n", cmp.Or(line.Database, "(Litestream's)"), line.History,
			line.First.Time.Format(time.RFC3339), line.Last.Time.Format(time.RFC3339), line.Last.TXID, line.Moments, size(line.Bytes), dropped)
	}
	return tab.Flush()
}
