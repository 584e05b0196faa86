package main

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"
)

func runVersion(_ context.Context, args []string, std stdio) error {
	f := newFlags("version", "litefs version [flags]", "Prints the version of this program, of Go, and the platform.", "litefs version -json")
	asJSON := f.Bool("json", false, "print JSON")
	positional, err := f.parse(args, std)
	if err != nil {
		return err
	}
	if len(positional) > 0 {
		return usagef("version takes no arguments")
	}
	if *asJSON {
		return json.NewEncoder(std.out).Encode(struct {
			Version string `json:"version"`
			Go      string `json:"go"`
			OS      string `json:"os"`
			Arch    string `json:"arch"`
		}{version(), runtime.Version(), runtime.GOOS, runtime.GOARCH})
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
