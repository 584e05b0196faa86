package main

import (
	"context"
	"log/slog"

	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/daemon"
)

// daemonOptions say what a node is made of.
type daemonOptions struct {
	Config *config.Config
	Logger *slog.Logger
	Ready  func() // called once the mount can be used
}

// runDaemon runs a node until ctx ends. The tests of the mount command put
// another function in its place.
func runDaemon(ctx context.Context, o daemonOptions) error {
	return daemon.Run(ctx, daemon.Options{
		Config: o.Config,
		Logger: o.Logger,
		Ready:  func(*daemon.Node) { o.Ready() },
	})
}
