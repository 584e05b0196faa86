package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	node "github.com/litefs/litefs/http"
	"github.com/litefs/litefs/internal/supervise"
)

func runRun(ctx context.Context, args []string, std stdio, signals *signals) error {
	args, program := cutCommand(args)
	f := newFlags("run", "litefs run [flags] -- COMMAND ARGS",
		"Runs a command on a node that runs already, such as a migration on the primary:\n"+
			"with -promote the node becomes the primary first, with -if-candidate nothing\n"+
			"happens, and the exit code is 0, on a node that may not. With -with-halt-lock-on\n"+
			"the node stays a replica, and what the command writes to that database is\n"+
			"committed on the primary first, under its write lock. The command gets the\n"+
			"signals, and its exit code is ours.",
		"litefs run -config /etc/litefs.yml -if-candidate -promote -- myapp migrate")
	var c targetFlags
	c.register(f)
	promote := f.Bool("promote", false, "make the node the primary first; it stays it")
	ifCandidate := f.Bool("if-candidate", false, "do nothing on a node that may not become the primary")
	halt := f.String("with-halt-lock-on", "", "borrow the primary's write lock of this `DB`, its path below the mount, while the command runs")
	haltWait := f.Duration("halt-lock-timeout", 30*time.Second, "give up after this `duration` without the lock")
	grace := f.Duration("grace", supervise.DefaultGrace, "`TIME` a command has to end before it is killed")
	verbose := f.Bool("v", false, "say on standard error what happens")
	rest, err := f.parse(args, std)
	if err != nil {
		return err
	}
	switch {
	case *halt != "" && *haltWait <= 0:
		return usagef("-halt-lock-timeout %s must be more than 0", *haltWait)
	case len(rest) > 0, len(program) == 0, program[0] == "":
		return usagef("want: litefs run [flags] -- COMMAND ARGS")
	case *grace <= 0:
		return usagef("-grace %s must be more than 0", *grace)
	}
	logger := slog.New(slog.DiscardHandler)
	if *verbose {
		logger = slog.New(slog.NewTextHandler(std.err, nil))
	}
	if *promote || *ifCandidate {
		goOn, err := readyToRun(ctx, c, *promote, *ifCandidate, std)
		if err != nil || !goOn {
			return err
		}
	}
	if *halt != "" {
		held, err := holdFor(ctx, c, *halt, *haltWait)
		if err != nil {
			return err
		}
		defer held.Close()
		ended := make(chan struct{})
		defer close(ended)
		go func() { // ends with the command, or with the lock
			select {
			case <-held.Done():
				if _, err := fmt.Fprintf(std.err, "litefs: the write lock of %s is lost, what the command commits from here on fails: %v\n", *halt, held.Err()); err != nil {
					logger.Warn("the lock is lost", "error", held.Err())
				}
			case <-ended:
			}
		}()
	}
	if ctx.Err() != nil {
		return errors.New("interrupted: the command was not started")
	}
	// The program is told to end by the signals that it gets, not by the context.
	return programs{signals: signals, std: std, grace: *grace, logger: logger}.run(context.WithoutCancel(ctx), program)
}

// holdFor has the node borrow the primary's write lock of a database.
func holdFor(ctx context.Context, c targetFlags, name string, wait time.Duration) (*node.Held, error) {
	t, err := c.target()
	if err != nil {
		return nil, err
	}
	if filepath.IsAbs(name) {
		if c.url != "" {
			return nil, usagef("-with-halt-lock-on %s: with -url give the path below the mount", name)
		}
		cfg, err := c.load(nil)
		if err != nil {
			return nil, err
		}
		dir := cfg.Fuse.Dir
		if second := cfg.Fuse.ForwardDir; second != "" && strings.HasPrefix(name, second+"/") {
			dir = second
		}
		if name, err = filepath.Rel(dir, name); err != nil {
			return nil, usagef("-with-halt-lock-on: %v", err)
		}
	}
	return t.client.Hold(ctx, t.url, name, wait)
}

// readyToRun asks the node, and makes it the primary. false: the command is not
// for this node.
func readyToRun(ctx context.Context, c targetFlags, promote, ifCandidate bool, std stdio) (bool, error) {
	t, err := c.target()
	if err != nil {
		return false, err
	}
	info, err := t.client.Info(ctx, t.url)
	if err != nil {
		return false, err
	}
	if ifCandidate && !info.Candidate {
		_, err := fmt.Fprintln(std.err, "litefs: this node may not become the primary: the command is left out")
		return false, err
	}
	if promote && !info.IsPrimary {
		if err := t.client.Promote(ctx, t.url, ""); err != nil {
			return false, err
		}
	}
	return true, nil
}
