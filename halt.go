package litefs

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/litefs/litefs/internal/halt"
)

// This file has the words in which nodes speak of the write lock of a database that a replica borrows from the primary:
// docs/write-forwarding.md.

var (
	// ErrHaltLost says that the write lock is not held any more: a transaction that is not committed yet will not be.
	ErrHaltLost = errors.New("the primary's write lock is not held any more")

	// ErrNotJoined says that a transaction does not join the database of the primary.
	ErrNotJoined = errors.New("the transaction does not join the primary's database")

	// ErrNotLent says that the write lock of a database cannot be borrowed, and why.
	ErrNotLent = errors.New("the write lock cannot be borrowed")
)

// HaltGrant is the answer to who may have the write lock.
type HaltGrant struct {
	Epoch uint64
	Pos   Pos           // of the database; nobody else moves it now
	TTL   time.Duration // from each renewal
	First time.Duration // instead, until the first renewal
}

// HaltNews is what the primary tells a holder with its answers.
type HaltNews struct {
	Wanted bool // somebody else waits for the lock
}

// HaltTx names a transaction of a holder: it leads from one position to the next.
type HaltTx struct {
	Epoch     uint64 // of the grant
	Pre, Post Pos
}

func (t HaltTx) pure() halt.Tx {
	return halt.Tx{Epoch: t.Epoch, Pre: halt.Pos{TXID: t.Pre.TXID, Sum: t.Pre.Chksum}, Post: halt.Pos{TXID: t.Post.TXID, Sum: t.Post.Chksum}}
}

// HaltOutcome is what became of a transaction.
type HaltOutcome int

// Outcomes.
const (
	HaltUnknown   = HaltOutcome(halt.Unknown)   // nobody can say
	HaltCommitted = HaltOutcome(halt.Committed) // it is in the database
	HaltVoid      = HaltOutcome(halt.Void)      // it is not, and never will be
)

func (o HaltOutcome) String() string { return halt.Outcome(o).String() }

// ParseHaltOutcome parses what HaltOutcome.String returns.
func ParseHaltOutcome(text string) (HaltOutcome, error) {
	for _, o := range []HaltOutcome{HaltUnknown, HaltCommitted, HaltVoid} {
		if o.String() == text {
			return o, nil
		}
	}
	return HaltUnknown, errors.New("no outcome of a transaction: " + text)
}

// HaltLink is a connection to a primary that lends a write lock. An error that is not ErrHaltLost, ErrNotLent or
// ErrNotJoined leaves open whether the call has arrived.
type HaltLink interface {
	// Acquire waits for the lock until ctx ends. With the same token it may be asked again.
	Acquire(ctx context.Context, dbID uint32, token string) (HaltGrant, error)
	Renew(ctx context.Context, dbID uint32, token string) (HaltNews, error)
	// Commit sends a transaction as an LTX file of size bytes. It renews as well.
	Commit(ctx context.Context, dbID uint32, token string, tx HaltTx, ltx io.Reader, size int64) (HaltNews, error)
	// Outcome asks what became of a transaction. After HaltVoid the lock is lost.
	Outcome(ctx context.Context, dbID uint32, token string, tx HaltTx) (HaltOutcome, error)
	Release(ctx context.Context, dbID uint32, token string) error
	Close()
}

// HaltClient is a Client that can borrow write locks.
type HaltClient interface {
	HaltLink(rawurl string) HaltLink
}

// Bounds of a hold: docs/write-forwarding.md says why.
var haltBounds = halt.Config{
	TTL:     10 * halt.Second,
	First:   3 * halt.Second,
	Longest: 600 * halt.Second,
	Turn:    120 * halt.Millisecond,
}

func haltNow() halt.Time { return halt.Time(bootNow()) }
