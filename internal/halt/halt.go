// Package halt decides who holds the write lock of a database of the primary, which transactions of its holder are let
// in, and what became of one whose answer was lost. It is pure: time is a number that the caller passes, and what is to
// be done is a value. docs/write-forwarding.md has the states and the messages.
//
// A transaction has no name but its position. That is enough because of two rules that the caller keeps:
//
//   - a TXID is given once within an epoch;
//   - a hold that ends otherwise than by its holder's release is fenced: an entry that changes nothing takes the TXID
//     that the holder's next transaction would have had. Without it somebody else could make the very same pages of
//     the same position (two nodes that add one to one counter do), and a lost transaction would pass for done.
package halt

import (
	"errors"
	"fmt"
)

// Time is nanoseconds of a monotonic clock of the caller's.
type Time int64

// Millisecond and Second are lengths of time.
const (
	Millisecond Time = 1e6
	Second           = 1000 * Millisecond
)

// Pos is a position of a database: its newest transaction, and the checksum of its pages after it.
type Pos struct{ TXID, Sum uint64 }

// Config are the bounds of a hold.
type Config struct {
	TTL     Time // from the last renewal; then the holder counts as dead
	First   Time // instead of TTL, until the first renewal: the answer that gave the lock may be lost
	Longest Time // of one hold, however often it is renewed
	Turn    Time // how long the lock is free between two holds, at most: the primary's own writers get it
}

var (
	// ErrLost says that the lock is not, or not any more, of the one who names it.
	ErrLost = errors.New("the lock is not held any more")
	// ErrPosition says that a transaction does not join the database.
	ErrPosition = errors.New("the transaction does not join the database")
)

// Hold is the lock in the hands of a node.
type Hold struct {
	Token  string // drawn by the holder
	Epoch  uint64 // of the primary's reign
	Since  Time
	Until  Time // the holder counts as dead then; moved by Renew
	Latest Time // no renewal goes beyond
}

// Lock is the write lock of one database, on the primary. The zero value with a Config is free.
type Lock struct {
	Config
	queue []string // tokens of those who wait, in the order in which they came
	hold  *Hold
	turn  Time // until then it is the turn of the primary's own writers
}

// Enter puts a token into the queue. Who is there, or holds the lock, stays where it is.
func (l *Lock) Enter(token string) {
	if l.hold != nil && l.hold.Token == token {
		return
	}
	for _, t := range l.queue {
		if t == token {
			return
		}
	}
	l.queue = append(l.queue, token)
}

// Leave takes a token out of the queue.
func (l *Lock) Leave(token string) {
	for i, t := range l.queue {
		if t == token {
			l.queue = append(l.queue[:i:i], l.queue[i+1:]...)
			return
		}
	}
}

// Grant gives the lock to a token that waits for it, if it is its turn. Otherwise it says how long nothing can change
// without a call of this Lock. Asked again by the holder, whose answer may have been lost, it says yes again.
func (l *Lock) Grant(now Time, token string, epoch uint64) (ok bool, wait Time) {
	switch {
	case l.hold != nil && l.hold.Token == token:
		return true, 0
	case l.hold != nil:
		return false, max(0, l.hold.Until-now)
	case len(l.queue) == 0 || l.queue[0] != token:
		return false, max(0, l.turn-now)
	case now < l.turn:
		return false, l.turn - now
	}
	l.queue = l.queue[1:]
	l.hold = &Hold{Token: token, Epoch: epoch, Since: now, Until: now + l.First, Latest: now + l.Longest}
	return true, 0
}

// Start begins the time of a hold anew: it took a while to get what the lock stands for.
func (l *Lock) Start(now Time, token string) {
	if h := l.hold; h != nil && h.Token == token {
		h.Since, h.Until, h.Latest = now, now+l.First, now+l.Longest
	}
}

// Renew prolongs a hold. ErrLost: there is none of this token, or it is over.
func (l *Lock) Renew(now Time, token string) error {
	h := l.hold
	if h == nil || h.Token != token || now >= h.Until {
		return ErrLost
	}
	h.Until = min(now+l.TTL, h.Latest)
	return nil
}

// Holder returns the hold, if there is one.
func (l *Lock) Holder() (Hold, bool) {
	if l.hold == nil {
		return Hold{}, false
	}
	return *l.hold, true
}

// Waiting is how many wait.
func (l *Lock) Waiting() int { return len(l.queue) }

// Cut ends the time of a hold, whose end may take longer.
func (l *Lock) Cut(now Time, token string) {
	if h := l.hold; h != nil && h.Token == token {
		h.Until, h.Latest = now, now
	}
}

// Expired reports whether the holder counts as dead.
func (l *Lock) Expired(now Time) bool { return l.hold != nil && now >= l.hold.Until }

// End frees the lock. The turn of the primary's own writers is as long as the hold was, up to Config.Turn.
func (l *Lock) End(now Time, token string) bool {
	if l.hold == nil || l.hold.Token != token {
		return false
	}
	l.turn = now + min(l.Turn, now-l.hold.Since)
	l.hold = nil
	return true
}

// Tx is a transaction that a holder has made and nobody else has seen.
type Tx struct {
	Epoch     uint64 // of the hold
	Pre, Post Pos
}

// Check reports whether a transaction of the holder of token may be made one of the database, which is at head, in the
// reign of epoch.
func (l *Lock) Check(now Time, token string, epoch uint64, head Pos, tx Tx) error {
	h := l.hold
	switch {
	case h == nil || h.Token != token || now >= h.Until:
		return ErrLost
	case h.Epoch != epoch || tx.Epoch != epoch:
		return fmt.Errorf("%w: it is of epoch %d, the primary is in epoch %d", ErrLost, tx.Epoch, epoch)
	case tx.Pre != head || tx.Post.TXID != head.TXID+1:
		return fmt.Errorf("%w: it leads from %016x/%016x to %016x, the database is at %016x/%016x", ErrPosition, tx.Pre.TXID, tx.Pre.Sum, tx.Post.TXID, head.TXID, head.Sum)
	}
	return nil
}

// Outcome is what became of a transaction.
type Outcome int

const (
	// Unknown: nobody can say.
	Unknown Outcome = iota
	// Committed: it is in the history of the database.
	Committed
	// Void: it is not, and never will be.
	Void
)

func (o Outcome) String() string {
	return [...]string{"unknown", "committed", "void"}[o]
}

// Entry is an entry of the log.
type Entry struct {
	Min, Max uint64
	Post     uint64
	Epoch    uint64

	TakenBack bool // the entry behind it brings back what was before it: its commit was refused
}

// Resolve says what became of a transaction that can be committed no more, from the log of the primary of today, which
// ends with head. entry is the one that has its TXID; false: the log does not have it any more, or not yet.
func Resolve(tx Tx, head Pos, entry Entry, found bool) Outcome {
	switch {
	case head.TXID < tx.Post.TXID:
		return Void
	case !found || entry.Max != tx.Post.TXID:
		return Unknown // merged into a larger one
	case entry.Epoch == tx.Epoch && entry.Post == tx.Post.Sum && !entry.TakenBack:
		return Committed
	}
	return Void
}

// Lease is a hold as its holder knows it.
type Lease struct {
	Token string
	Epoch uint64
	TTL   Time

	sent  Time // of the newest renewal that was answered, or of the request for the lock: when it was sent
	first Time // TTL until then
	lost  bool
}

// NewLease is the hold that a request which was sent at a time has got.
func NewLease(token string, epoch uint64, sent, ttl, first Time) *Lease {
	return &Lease{Token: token, Epoch: epoch, TTL: ttl, sent: sent, first: first}
}

// Renewed notes the answer to a renewal.
func (l *Lease) Renewed(sent Time) {
	if sent > l.sent {
		l.sent, l.first = sent, l.TTL
	}
}

// Until is when the primary may take the lock back. By its own clock it counts later, from the arrival of what was
// sent; that a holder stops before is courtesy, for the primary checks each transaction.
func (l *Lease) Until() Time { return l.sent + l.first }

// Usable reports whether there is a point in sending a transaction.
func (l *Lease) Usable(now Time) bool { return !l.lost && now < l.Until() }

// Lose ends it.
func (l *Lease) Lose() { l.lost = true }
