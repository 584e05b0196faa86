package main

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/litefs/litefs/internal/bench"
	"github.com/litefs/litefs/internal/sqlapp"
)

func runBench(ctx context.Context, args []string, std stdio) error {
	f := newFlags("bench", "litefs bench [flags]",
		"Measures the same SQLite in a plain directory and in a mount on the same disk,\n"+
			"in turns, and prints medians, ratios and FUSE requests for each transaction.\n"+
			"Then two nodes on this machine: lag, and what replication costs. The workload\n"+
			"soak runs only when it is named; -duration is then all of its time. So does archive\n"+
			"(or archive-file, archive-s3): a node that archives beside one that does not.",
		"litefs bench -only delete,read -rounds 7")
	only := f.String("only", "", "workloads, `NAME,NAME`; all if empty")
	duration := f.Duration("duration", 2*time.Second, "`TIME` of one measurement")
	rounds := f.Int("rounds", 5, "measurements of each side, `N`")
	dir := f.String("dir", "", "directory on the disk to measure, `DIR`; the temporary one if empty")
	size := f.Int("size", 256, "megabytes of the database of catchup, `N`")
	asJSON := f.Bool("json", false, "print what was found as JSON; the report goes to standard error")
	cached := f.Bool("no-passthrough", false, "measure the mount without kernel passthrough")
	positional, err := f.parse(args, std)
	if err != nil {
		return err
	}
	switch {
	case len(positional) > 0:
		return usagef("bench takes no arguments")
	case *duration <= 0 || *rounds <= 0 || *size <= 0:
		return usagef("-duration, -rounds and -size must be positive")
	}
	o := bench.Options{
		Out:           std.out,
		App:           sqlapp.Command{Args: []string{sqlAppCommand}},
		Dir:           *dir,
		Duration:      *duration,
		Rounds:        *rounds,
		NoPassthrough: *cached,
		CatchupSize:   int64(*size) << 20,
	}
	if *asJSON {
		o.Out = std.err
	}
	if *only != "" {
		o.Only = strings.Split(*only, ",")
	}
	report, err := bench.Run(ctx, o)
	if err != nil || !*asJSON {
		return err
	}
	enc := json.NewEncoder(std.out)
	enc.SetIndent("", "  ")
	return enc.Encode(report.Summary())
}
