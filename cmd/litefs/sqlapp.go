package main

import (
	"context"
	"errors"
	"io/fs"

	"github.com/litefs/litefs/internal/sqlapp"
)

// sqlAppCommand starts this binary as an application that runs SQL for its
// parent. It is not listed: only demo, bench and verify start it.
const sqlAppCommand = "sqlapp"

func runSQLApp(_ context.Context, args []string, std stdio) error {
	if len(args) > 0 {
		return usagef("%s takes no arguments", sqlAppCommand)
	}
	// Sixteen of them beside two nodes would measure Go's scheduler. An application need not be allowed to.
	if err := calmMonitor(); err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return sqlapp.Serve(std.in, std.out)
}
