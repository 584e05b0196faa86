//go:build !cgo

package sqlapp

import "io"

// Available reports whether this binary has SQLite in it.
const Available = false

// Serve returns ErrNoSQLite: this binary has no SQLite.
func Serve(io.Reader, io.Writer) error { return ErrNoSQLite }
