package cas

import (
	"context"
	"errors"
)

// Store keeps a few small documents under names: LockName, StateName, and those that SetOnce is called
// with. It is safe for concurrent use.
type Store interface {
	// Get reads a document. The zero value is one that was never there.
	Get(ctx context.Context, name string) (Doc, error)

	// Put replaces the document if it is still the one that has version, as Get or Put has returned it,
	// and returns its new version. With ErrConflict it is another one by now, perhaps by this very call,
	// when it was tried again on the way. After any other error the value may have been written, or may
	// be later. No document has the same value twice: a version may be a hash of it.
	Put(ctx context.Context, name string, value []byte, version string) (newVersion string, err error)

	// Close lets go of connections; a later call makes new ones.
	Close()

	// String names the lease: the document and the server, without a credential.
	String() string
}

// Checker is implemented by a Store that can find out whether the service refuses a Put of another version.
// What it writes for a trial it removes.
type Checker interface {
	Check(ctx context.Context) error
}

// Doc is a document and what tells it from the one before and the one after.
type Doc struct {
	Value   []byte // nil: there is none
	Version string // another one for each value; "" where there never was a document
}

// ErrConflict: the document has not the version any more.
var ErrConflict = errors.New("the document has changed")

// Names of documents.
const (
	LockName  = "" // beside which the others lie
	StateName = "record"
)
