package main

import (
	"context"
	"errors"
	"os"

	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/guardian"
)

// runGuarded runs the node in a child process that may die: this process holds
// the mount and starts another one.
func runGuarded(std stdio) func(context.Context, daemonOptions) error {
	return func(ctx context.Context, o daemonOptions) error {
		o.Logger.Info("a guardian holds the mount: it outlives the daemon", "guardian", os.Getpid())
		err := guardian.Run(ctx, guardian.Options{
			Argv:   os.Args,
			Stdout: std.out,
			Stderr: std.err,
			Logger: o.Logger,
			Ready:  func() { o.Ready(askRole(o.Config)) },

			Control: o.Config.Data.Dir,
		})
		var exit *guardian.ExitError
		if errors.As(err, &exit) {
			return &exitError{exit.Code} // the daemon has said why
		}
		return err
	}
}

// askRole asks the daemon as another process does.
func askRole(cfg *config.Config) roleQuestion {
	return func(ctx context.Context) (bool, error) {
		t, err := targetOf(cfg)
		if err != nil {
			return false, err
		}
		info, err := t.client.Info(ctx, t.url)
		return info.IsPrimary, err
	}
}

// runWard runs the node in this process, the guardian's child.
func runWard(c *guardian.Client) func(context.Context, daemonOptions) error {
	return func(ctx context.Context, o daemonOptions) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		ended := make(chan struct{})
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			select {
			case <-c.Gone():
				o.Logger.Error("the guardian has ended: so does the daemon")
				cancel()
			case <-ended:
			}
		}()
		var readyErr error
		ready := o.Ready
		o.guardian = c
		o.Ready = func(isPrimary roleQuestion) {
			ready(isPrimary)
			readyErr = c.Ready()
		}
		err := runDaemon(ctx, o)
		close(ended)
		<-watched
		// Whatever the error is, the daemon has ended of itself.
		return errors.Join(err, readyErr, c.Bye())
	}
}
