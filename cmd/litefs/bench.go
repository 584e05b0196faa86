package main

import "context"

func runBench(_ context.Context, args []string, std stdio) error {
	f := newFlags("bench", "litefs bench [flags]",
		"Measures the same SQLite in a plain directory and in a mount, alternating.",
		"litefs bench")
	positional, err := f.parse(args, std)
	if err != nil {
		return err
	}
	if len(positional) > 0 {
		return usagef("bench takes no arguments")
	}
	return notBuilt("the benchmark")
}
