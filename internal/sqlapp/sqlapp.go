// Package sqlapp runs real SQLite in a child process and drives it over a pipe.
//
// A process that serves a FUSE mount must not open databases of that mount itself: a page fault or a
// lock of SQLite would wait for the very process that has to answer it. So every connection of the
// demonstration, the benchmark and the tests lives in a child: the same binary, started again, which
// calls [Serve] instead of its own main. The parent talks to it in JSON, one request and one answer a
// line, through [Process] and [Conn]; a child may be killed at any moment, as applications are.
//
// SQLite is the C library (mattn/go-sqlite3). A binary built without cgo has none: [Serve] then
// returns [ErrNoSQLite].
package sqlapp

import (
	"errors"
	"fmt"
)

// ErrNoSQLite is returned by Serve in a binary that was built without cgo.
var ErrNoSQLite = errors.New("this binary was built without cgo and has no SQLite in it: build it with CGO_ENABLED=1 and a C compiler")

// ErrGone is returned when the child has ended before it answered.
var ErrGone = errors.New("the SQLite child process has ended")

// SQLite's primary result codes that callers decide on (sqlite.org/rescode.html).
const (
	CodeBusy     = 5
	CodeLocked   = 6
	CodeReadOnly = 8
	CodeIOErr    = 10
	CodeFull     = 13
	CodeCantOpen = 14
)

// Error is an error that SQLite returned in the child.
type Error struct {
	Code     int    `json:"code"`     // primary result code
	Extended int    `json:"extended"` // extended result code
	Message  string `json:"message"`
}

func (e *Error) Error() string {
	return fmt.Sprintf("sqlite: %s (code %d, extended %d)", e.Message, e.Code, e.Extended)
}

// IsCode reports whether err is SQLite's, with one of the given primary result codes.
func IsCode(err error, codes ...int) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	for _, code := range codes {
		if e.Code == code {
			return true
		}
	}
	return false
}

// Step is one statement of a repeated sequence.
type Step struct {
	SQL   string `json:"sql"`
	Times int    `json:"times,omitempty"` // executions in a row; 0 is 1
}

// Repeated says what a repeated sequence did.
type Repeated struct {
	Rounds int   `json:"rounds"` // complete sequences
	Nanos  int64 `json:"nanos"`  // from the first statement to the end of the last
	CPU    int64 `json:"cpu"`    // nanoseconds that a processor was at it, in the program or in the kernel

	// Ends is when each sequence ended, of Pace: nanoseconds since 1970.
	Ends []int64 `json:"ends,omitempty"`
}

// Seen is a value that Watch saw, and when it saw it first: nanoseconds since 1970.
type Seen struct {
	Value int64 `json:"value"`
	Nanos int64 `json:"nanos"`
}

// op names what a request asks for.
type op string

const (
	opOpen       op = "open"
	opClose      op = "close"
	opExec       op = "exec"
	opQuery      op = "query"
	opRepeat     op = "repeat"
	opWatch      op = "watch"
	opPersistWAL op = "persist-wal"
)

// request is one line to the child.
type request struct {
	Op     op     `json:"op"`
	Conn   int    `json:"conn"`
	Path   string `json:"path,omitempty"`
	SQL    string `json:"sql,omitempty"`
	Args   []any  `json:"args,omitempty"`
	BusyMS int    `json:"busy_ms,omitempty"`
	Steps  []Step `json:"steps,omitempty"`
	Rounds int    `json:"rounds,omitempty"`
	Millis int    `json:"millis,omitempty"`
	On     bool   `json:"on,omitempty"`

	EveryMicros int   `json:"every_micros,omitempty"` // between two sequences, or two looks
	Stamp       bool  `json:"stamp,omitempty"`        // tell when each sequence ended
	Until       int64 `json:"until,omitempty"`        // of Watch
}

// response is one line from the child.
type response struct {
	Rows     [][]any   `json:"rows,omitempty"`
	Changes  int64     `json:"changes,omitempty"`
	Repeated *Repeated `json:"repeated,omitempty"`
	Seen     []Seen    `json:"seen,omitempty"`
	Err      *Error    `json:"err,omitempty"`   // SQLite's
	Fault    string    `json:"fault,omitempty"` // anything else
}
