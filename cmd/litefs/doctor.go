package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/doctor"
)

func runDoctor(ctx context.Context, args []string, std stdio) error {
	f := newFlags("doctor", "litefs doctor [flags] [DIR]",
		"Looks at this machine as a node with the configuration would find it: kernel, FUSE,\n"+
			"privileges, disk, limits, clock, ports, the lease server and the primary. It says what\n"+
			"to change, and changes nothing: a trial mount is removed again. The exit code is 1 when\n"+
			"a node would not run.",
		"litefs doctor -config /etc/litefs.yml")
	var c configFlags
	c.register(f)
	asJSON := f.Bool("json", false, "print one JSON object a line")
	dirs, err := f.parse(args, std)
	if err != nil {
		return err
	}
	cfg, err := c.load(dirs)
	if err != nil {
		return err
	}
	token, err := nodeToken(cfg)
	if err != nil {
		return err
	}
	var written error
	worst := doctor.Examine(ctx, doctor.Options{Config: cfg, Token: token, Logger: slog.New(slog.DiscardHandler)}, func(f doctor.Finding) {
		if written == nil {
			written = printFinding(std, f, *asJSON)
		}
	})
	if written != nil {
		return written
	}
	if worst == doctor.Fail {
		return fmt.Errorf("a node would not run here: mend what is marked fail")
	}
	return nil
}

func printFinding(std stdio, f doctor.Finding, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(std.out).Encode(f)
	}
	_, err := fmt.Fprintf(std.out, "%-5s %-12s %s\n", f.Level, f.Check, f.Text)
	if err == nil && f.Do != "" {
		_, err = fmt.Fprintf(std.out, "%-5s %-12s do: %s\n", "", "", f.Do)
	}
	return err
}

// nodeToken is what the node shows to others: from the configuration, or what it keeps of the lease server's.
func nodeToken(cfg *config.Config) (string, error) {
	if cfg.HTTP.Token != "" || cfg.Lease.Type == config.LeaseStatic {
		return string(cfg.HTTP.Token), nil
	}
	return litefs.ReadSecret(cfg.Data.Dir)
}
