package main

import (
	"context"
	"fmt"
)

func runConfig(_ context.Context, args []string, std stdio) error {
	f := newFlags("config", "litefs config [flags] [DIR]",
		"Checks a configuration as mount would and prints it with every key as it is in\n"+
			"force: variables expanded, defaults filled in. The credential is not shown.\n"+
			"Nothing is mounted and no directory is touched.",
		"litefs config -config litefs.yml")
	var c configFlags
	c.register(f)
	check := f.Bool("check", false, "print nothing: the exit code says whether it is valid")
	positional, err := f.parse(args, std)
	if err != nil {
		return err
	}
	cfg, err := c.load(positional)
	if err != nil {
		return err
	}
	if *check {
		return nil
	}
	text, err := cfg.YAML()
	if err != nil {
		return err
	}
	if _, err := std.out.Write(text); err != nil {
		return fmt.Errorf("print configuration: %w", err)
	}
	return nil
}
