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
	Ready  func(isPrimary roleQuestion) // called once the mount can be used

	guardian *guardian.Client // nil: none
}

// roleQuestion asks the node whether it is the primary now.
type roleQuestion func(context.Context) (bool, error)

// runDaemon runs a node until ctx ends. The tests of the mount command put
// another function in its place.
func runDaemon(ctx context.Context, o daemonOptions) error {
	if err := calmMonitor(); err != nil {
		o.Logger.Debug("the monitor of Go's scheduler wakes as often as ever", "error", err)
	}
	do := daemon.Options{
		Config: o.Config,
		Logger: o.Logger,
		Ready: func(n *daemon.Node) {
			o.Ready(func(context.Context) (bool, error) { return n.Store().IsPrimary(), nil })
		},
	}
	if o.guardian != nil {
		do.Guardian = o.guardian
	}
	return daemon.Run(ctx, do)
}
