package main

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/internal/demo"
	"github.com/litefs/litefs/internal/sqlapp"
)

func runDemo(ctx context.Context, args []string, std stdio) error {
	f := newFlags("demo", "litefs demo [flags]",
		"Runs three nodes on this machine in a temporary directory, writes through SQLite\n"+
			"on one and reads the rows on the others, in place, with the lag of each. Ctrl-C\n"+
			"verifies and compares them and removes everything.",
		"litefs demo")
	interval := f.Duration("interval", 0, "`TIME` between two reports; 0: 1s, on a terminal 200ms")
	lines := f.Int("lines", 0, "end after so many reports, `N`; 0: at Ctrl-C")
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
		Terminal: isTerminal(std.out),
	})
}

// isTerminal reports whether f is a terminal, which understands more than lines.
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil && os.Getenv("TERM") != "dumb"
}
