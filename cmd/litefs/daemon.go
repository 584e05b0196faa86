package main

import (
	"context"
	"log/slog"

	"github.com/litefs/litefs/internal/config"
)

// daemonOptions say what a node is made of.
type daemonOptions struct {
	Config *config.Config
	Logger *slog.Logger
	Ready  func() // called once the mount can be used
}

func runDaemon(context.Context, daemonOptions) error { return notBuilt("the daemon") }
