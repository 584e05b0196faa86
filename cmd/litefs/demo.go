package main

import (
	"context"

	"github.com/litefs/litefs/internal/demo"
	"github.com/litefs/litefs/internal/sqlapp"
)

func runDemo(ctx context.Context, args []string, std stdio) error {
	f := newFlags("demo", "litefs demo [flags]",
		"Runs two nodes on this machine in a temporary directory, writes through SQLite\n"+
			"on one and reads the rows on the other, in place. Ctrl-C verifies both and\n"+
			"removes everything.",
		"litefs demo")
	interval := f.Duration("interval", 0, "`TIME` between two lines, 1s if 0")
	lines := f.Int("lines", 0, "end after so many lines, `N`; 0: at Ctrl-C")
	positional, err := f.parse(args, std)
	if err != nil {
		return err
	}
	switch {
	case len(positional) > 0:
		return usagef("demo takes no arguments")
	case *interval < 0 || *lines < 0:
		return usagef("-interval and -lines must not be negative")
	}
	return demo.Run(ctx, demo.Options{
		Out:      std.out,
		App:      sqlapp.Command{Args: []string{sqlAppCommand}},
		Interval: *interval,
		Lines:    *lines,
	})
}
