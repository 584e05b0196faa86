package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
)

func runVersion(_ context.Context, args []string, std stdio) error {
	f := newFlags("version", "litefs version", "Prints the version of this program, of Go, and the platform.", "litefs version")
	positional, err := f.parse(args, std)
	if err != nil {
		return err
	}
	if len(positional) > 0 {
		return usagef("version takes no arguments")
	}
	if _, err := fmt.Fprintf(std.out, "litefs %s %s %s/%s\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH); err != nil {
		return fmt.Errorf("print version: %w", err)
	}
	return nil
}

// version is what the build recorded: a release, or the commit it was built at.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "(unknown)"
	}
	return info.Main.Version
}
