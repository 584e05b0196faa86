package main

import (
	"context"

	"github.com/litefs/litefs/internal/sqlapp"
)

// sqlAppCommand starts this binary as an application that runs SQL for its
// parent. It is not listed: only demo, bench and verify start it.
const sqlAppCommand = "sqlapp"

func runSQLApp(_ context.Context, args []string, std stdio) error {
	if len(args) > 0 {
		return usagef("%s takes no arguments", sqlAppCommand)
	}
	return sqlapp.Serve(std.in, std.out)
}
