package main

import "context"

func runVerify(_ context.Context, args []string, std stdio) error {
	f := newFlags("verify", "litefs verify [flags]",
		"Checks the logs, the checksums and the databases of a node.",
		"litefs verify")
	if _, err := f.parse(args, std); err != nil {
		return err
	}
	return notBuilt("verification")
}
