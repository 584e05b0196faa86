package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	node "github.com/litefs/litefs/http"
)

func runRepair(ctx context.Context, args []string, std stdio) error {
	f := newFlags("repair", "litefs repair [flags] DATABASE ...",
		"On a replica that runs: compares every page of a database with the primary and\n"+
			"fetches those that differ, in one step under open readers. Damaged pages are kept\n"+
			"in the data directory first. Other databases go on; this one waits meanwhile.",
		"litefs repair -config litefs.yml -dry-run app.db")
	var c targetFlags
	c.register(f)
	dry := f.Bool("dry-run", false, "compare only, and exit with code 1 when something differs")
	asJSON := f.Bool("json", false, "print one JSON object a database")
	names, err := f.parse(args, std)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return usagef("name the databases to repair: litefs status lists them")
	}
	s, err := c.target()
	if err != nil {
		return err
	}
	differ := 0
	for _, name := range names {
		info, err := s.client.Repair(ctx, s.url, name, *dry)
		if err != nil {
			return err
		}
		if err := printRepair(std.out, info, *asJSON); err != nil {
			return err
		}
		differ += info.Differ
	}
	if *dry && differ > 0 {
		return fmt.Errorf("%d pages differ from the primary's: run it without -dry-run", differ)
	}
	return nil
}

func printRepair(w io.Writer, r node.RepairInfo, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(r)
	}
	verb := "fetched"
	if r.DryRun {
		verb = "differ from the primary's"
	}
	text := fmt.Sprintf("%q: %d of %d pages %s, %d damaged, at transaction %s, %s over the network\n", r.Name, r.Differ, r.Pages, verb, r.Damaged, r.TXID, size(r.Bytes))
	if r.Kept != "" {
		text += fmt.Sprintf("  the damaged pages are kept in %s\n", r.Kept)
	}
	if r.Snapshot != "" {
		text += fmt.Sprintf("  a whole snapshot is on its way instead: %s\n", r.Snapshot)
	}
	_, err := io.WriteString(w, text)
	return err
}
