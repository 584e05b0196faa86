package main

import (
	"context"
	"log/slog"

	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/daemon"
	"github.com/litefs/litefs/internal/guardian"
)

// daemonOptions say what a node is made of.
type daemonOptions struct {
	Config *config.Config
	Logger *slog.Logger
	Ready  func() // called once the mount can be used

	guardian *guardian.Client // nil: none
}

// runDaemon runs a node until ctx ends. The tests of the mount command put
// another function in its place.
func runDaemon(ctx context.Context, o daemonOptions) error {
	do := daemon.Options{
		Config: o.Config,
		Logger: o.Logger,
		Ready:  func(*daemon.Node) { o.Ready() },
	}
	if o.guardian != nil {
		do.Guardian = o.guardian
	}
	return daemon.Run(ctx, do)
}
