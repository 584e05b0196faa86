package main

import "context"

func runBench(_ context.Context, args []string, std stdio) error {
	f := newFlags("bench", "litefs bench [flags]",
		"Measures the same SQLite in a plain directory and in a mount, alternating.",
		"litefs bench")
	if _, err := f.parse(args, std); err != nil {
		return err
	}
	return notBuilt("the benchmark")
}
