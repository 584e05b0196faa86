package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	node "github.com/litefs/litefs/http"
)

// defaultScrubRate is in MB/s: applications that read from the same disk hardly notice.
const defaultScrubRate = 50

func runScrub(ctx context.Context, args []string, std stdio) error {
	f := newFlags("scrub", "litefs scrub [flags] [DATABASE ...]",
		"Reads databases of the running node, all without names: pages against their\n"+
			"checksums, checksums against the log, the log, and on a replica the primary.\n"+
			"Applications go on. The exit code is 1 when something is wrong: on a replica\n"+
			"litefs repair mends it.",
		"litefs scrub -config litefs.yml -rate 20 app.db")
	var c targetFlags
	c.register(f)
	rate := f.Float64("rate", defaultScrubRate, "read at most so many `MB/s`; 0: as fast as it goes")
	asJSON := f.Bool("json", false, "print one JSON object a database")
	names, err := f.parse(args, std)
	if err != nil {
		return err
	}
	if *rate < 0 || *rate > 1<<20 {
		return usagef("-rate %v: want MB a second, 0 for no bound", *rate)
	}
	t, err := c.target()
	if err != nil {
		return err
	}
	if len(names) == 0 {
		info, err := t.client.Info(ctx, t.url)
		if err != nil {
			return err
		}
		for _, db := range info.Databases {
			names = append(names, db.Name)
		}
	}
	faults := 0
	for _, name := range names {
		bar := newProgress(std.err, "scrubbing "+name)
		info, err := t.client.Scrub(ctx, t.url, name, int64(*rate*1e6), bar.report)
		bar.end()
		if err != nil {
			return err
		}
		if err := printScrub(std.out, info, *asJSON); err != nil {
			return err
		}
		faults += len(info.Faults)
	}
	if faults > 0 {
		return fmt.Errorf("%d faults", faults)
	}
	return nil
}

func printScrub(w io.Writer, r node.ScrubInfo, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(r)
	}
	text := fmt.Sprintf("%q: %d pages, %d log entries, at transaction %s: ", r.Name, r.Pages, r.Entries, r.TXID)
	if len(r.Faults) == 0 {
		text += "ok\n"
	} else {
		text += fmt.Sprintf("%d faults\n", len(r.Faults))
	}
	for _, fault := range r.Faults {
		text += "  " + fault + "\n"
	}
	if r.Primary != "" {
		text += "  primary: " + r.Primary + "\n"
	}
	if r.Writing > 0 {
		text += fmt.Sprintf("  %d pages could not be looked at: a transaction was changing them\n", r.Writing)
	}
	_, err := io.WriteString(w, text)
	return err
}
