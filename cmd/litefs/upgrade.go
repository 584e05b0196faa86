package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/guardian"
)

func runUpgrade(ctx context.Context, args []string, std stdio) error {
	f := newFlags("upgrade", "litefs upgrade [flags] [BINARY]",
		"Replaces the daemon of a running node by one of another binary: BINARY, or the\n"+
			"one of this command. The mount stays, applications wait for a moment, and no call\n"+
			"fails. When the new daemon does not serve, the old binary goes on. The node must\n"+
			"run with fuse.guardian: true.",
		"litefs upgrade -config litefs.yml")
	var n nodeFlags
	n.register(f)
	asJSON := f.Bool("json", false, "print JSON")
	positional, err := f.parse(args, std)
	if err != nil {
		return err
	}
	if len(positional) > 1 {
		return usagef("want one BINARY at most")
	}
	binary, err := os.Executable()
	if len(positional) == 1 {
		binary, err = filepath.Abs(positional[0])
	}
	if err != nil {
		return err
	}
	dir, err := n.dataDir(ctx)
	if err != nil {
		return err
	}
	if err := guardian.Upgrade(ctx, dir, binary); err != nil {
		if errors.Is(err, guardian.ErrNoGuardian) {
			return config.Invalid(fmt.Errorf("%w: start the node with fuse.guardian: true", err))
		}
		return fmt.Errorf("upgrade: %w", err)
	}
	if *asJSON {
		return json.NewEncoder(std.out).Encode(map[string]string{"binary": binary})
	}
	_, err = fmt.Fprintln(std.out, "upgraded: the daemon runs", binary)
	return err
}
