package main

import "context"

func runDemo(_ context.Context, args []string, std stdio) error {
	f := newFlags("demo", "litefs demo [flags]",
		"Runs two nodes on this machine in a temporary directory, writes on one, readsnon the other.",
		"litefs demo")
	if _, err := f.parse(args, std); err != nil {
		return err
	}
	return notBuilt("the demo")
}
