package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/verify"
)

func runVerify(ctx context.Context, args []string, std stdio) error {
	f := newFlags("verify", "litefs verify [flags] [DATABASE ...]",
		"Checks that the log, the checksums and the database files of a node agree, and\n"+
			"runs PRAGMA integrity_check on copies. Nothing of the node is changed; it may\n"+
			"run meanwhile. A fault is told with the first bad TXID, and the exit code is 1.",
		"litefs verify -config litefs.yml app.db")
	var n nodeFlags
	n.register(f)
	n.registerKeys(f)
	temp := f.String("temp", "", "`DIR` for copies, each as large as its database (default the system's)")
	asJSON := f.Bool("json", false, "print one JSON object a database")
	names, err := f.parse(args, std)
	if err != nil {
		return err
	}
	dir, err := n.dataDir(ctx)
	if err != nil {
		return err
	}
	keys, err := n.logKeys(ctx)
	if err != nil {
		return err
	}
	o := verify.Options{DataDir: dir, Keys: keys, Names: names, TempDir: *temp}
	if sqlapp.Available {
		o.Integrity = integrityCheck
	}
	bar := newProgress(std.err, "verifying")
	o.Progress = func(name string, done, total int64) {
		bar.what = "verifying " + name
		bar.report(done, total)
	}
	report, err := verify.Run(ctx, o)
	bar.end()
	if err != nil {
		return n.blame(err)
	}
	write := report.Print
	if *asJSON {
		write = report.PrintJSON
	}
	if err := write(std.out); err != nil {
		return fmt.Errorf("print the report: %w", err)
	}
	for _, db := range report.Databases {
		if !db.OK() {
			return fmt.Errorf("%s: %w", db.Name, db.Faults[0])
		}
	}
	return nil
}

// integrityCheck runs PRAGMA integrity_check on a file.
func integrityCheck(ctx context.Context, path string) ([]string, error) {
	return askFile(ctx, path, "integrity_check")
}

// askFile runs a PRAGMA on a file in the SQLite of this binary, in a process of its own.
func askFile(ctx context.Context, path, pragma string) (rows []string, err error) {
	app, err := sqlapp.Start(ctx, sqlapp.Command{Args: []string{sqlAppCommand}})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, app.Close(ctx)) }()
	conn, err := app.Open(ctx, path, sqlapp.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	table, err := conn.Query(ctx, "PRAGMA "+pragma)
	if err != nil {
		return nil, err
	}
	for _, row := range table {
		rows = append(rows, fmt.Sprint(row...))
	}
	return rows, nil
}
