package main

import (
	"context"
	"fmt"

	"github.com/litefs/litefs/internal/config"
)

func runConfig(_ context.Context, args []string, std stdio) error {
	f := newFlags("config", "litefs config [flags] [DIR]",
		"Checks a configuration as mount would and prints it with every key as it is in\n"+
			"force: variables expanded, defaults filled in. Credentials are not shown.\n"+
			"Nothing is mounted and no directory is touched.",
		"litefs config -config litefs.yml")
	var c configFlags
	c.register(f)
	check := f.Bool("check", false, "print nothing: the exit code says whether it is valid")
	reference := f.Bool("reference", false, "print what every key means, as docs/configuration.md")
	asJSON := f.Bool("json", false, "print JSON")
	positional, err := f.parse(args, std)
	if err != nil {
		return err
	}
	if *reference && *asJSON {
		return usagef("-reference is text: leave -json out")
	}
	if *reference {
		return printConfig(std, config.Reference())
	}
	cfg, err := c.load(positional)
	if err != nil {
		return err
	}
	if *check {
		return nil
	}
	write := cfg.YAML
	if *asJSON {
		write = cfg.JSON
	}
	text, err := write()
	if err != nil {
		return err
	}
	return printConfig(std, text)
}

func printConfig(std stdio, text []byte) error {
	if _, err := std.out.Write(text); err != nil {
		return fmt.Errorf("print configuration: %w", err)
	}
	return nil
}
