// Package role decides what a node may do: follow, wait for its turn, write, or hand over. It is a
// state machine with no clock, network, disk or goroutine: events with the time at which they came go
// in, actions come out, and whoever runs it carries them out and reports how they ended.
//
// docs/failover.md has the states, the rules and why they are what they are.
package role

import "cmp"

// Time is a moment on this node's monotonic clock, and the distance of two, in nanoseconds.
type Time int64

// Units of Time.
const (
	Millisecond Time = 1_000_000
	Second           = 1000 * Millisecond
)

// Never is later than every moment.
const Never Time = 1<<63 - 1

// State is the role of a node.
type State uint8

// States of a node.
const (
	Follower State = iota
	Candidate
	Primary
	Draining
)

func (s State) String() string {
	return [...]string{"follower", "candidate", "primary", "draining"}[s]
}

// Bounds that no configuration changes.
const (
	// Turn is how long a candidate waits for each equally full one that comes before it, and how
	// often it looks again.
	Turn = 250 * Millisecond

	// Yield is how long a candidate waits for a named successor, or for a fuller node that cannot
	// reach the lease service.
	Yield = 5 * Second

	// forceFor is how long the word of an operator who forces a promotion counts.
	forceFor = 30 * Second

	maxMargin = 3 * Second
)

// Margin is how long before the end of a lease of ttl the primary stops to admit writes.
func Margin(ttl Time) Time { return min(ttl/5, maxMargin) }

// Config is what a node is told about itself.
type Config struct {
	NodeID    string
	Candidate bool // may become the primary

	// Promote makes the node ask for the role once it has had everything of its primary.
	Promote bool

	Retry       Time // between two attempts to find or to follow a primary
	DemoteDelay Time // after a hand-over, before the node is a candidate again
}

// Fullness orders nodes by how much of the history they have.
type Fullness struct{ Epoch, Txns uint64 }

// Compare returns -1, 0 or +1 as f is less full than g, as full, or fuller.
func (f Fullness) Compare(g Fullness) int {
	return cmp.Or(cmp.Compare(f.Epoch, g.Epoch), cmp.Compare(f.Txns, g.Txns))
}

// Record is what the last primary has left beside the lease. The zero value stands for none.
type Record struct {
	Epoch     uint64
	Position  Fullness
	InSync    []string // only these may win, if there are any
	Successor string
}

// Peer is another node that has just answered.
type Peer struct {
	ID        string
	Candidate bool
	Able      bool // it reached the lease service lately
	Primary   bool // it takes itself for the primary
	Fullness  Fullness
}

// Event is something that has happened.
type Event interface{ event() }

type (
	// Tick says that the time of Machine.Due has come.
	Tick struct{}

	// Seen answers Look.
	Seen struct {
		Failed  bool   // the lease service did not answer; of the rest, only Peers and Own are known
		Primary string // URL of the node that has the lease, "" for none or this one
		Record  Record
		Peers   []Peer
		Own     Fullness
	}

	// StreamEnded answers Follow, when there is nothing to follow any more.
	StreamEnded struct{}

	// Vacant says that nobody has the lease any more, whatever the service tells of its holder.
	Vacant struct{}

	// CaughtUp says that this node has had everything of its primary.
	CaughtUp struct{}

	// Acquired and NotAcquired answer Acquire.
	Acquired struct {
		From, TTL Time   // the lease is this node's from From on, for TTL
		Record    Record // read since then
	}
	NotAcquired struct{}

	// Renewed and NotRenewed answer Renew.
	Renewed struct {
		Reign uint64
		From  Time
	}
	NotRenewed struct {
		Reign uint64
		Lost  bool // the service says that the lease is gone
	}

	// Resumed says, before anything else is said, that this node goes on with the lease under which the
	// process before it admitted writers: they are in.
	Resumed struct{ From, TTL Time }

	// Prepared answers Prepare.
	Prepared struct{ Failed bool }

	// Fenced answers Fence and HandOver: the locks are taken, the lease is given back.
	Fenced struct{}

	// Drained answers Drain. To is the successor; "": it could not be done.
	Drained struct{ To string }

	// Handoff tells this node that it is the successor and the lease is free.
	Handoff struct{}

	// Promote is the wish of an operator that this node write. With Force, even if others are fuller.
	Promote struct{ Force bool }

	// Demote is the wish of an operator that To write, or "" for whoever is best.
	Demote struct{ To string }

	// Stop ends it all, after a hand-over if it can be.
	Stop struct{}
)

// Action is something to be done. Those that say so are answered by an event, exactly one.
type Action interface{ action() }

type (
	// Look asks the lease service and, if nobody has the lease, all known nodes. Answer: Seen.
	Look struct{}

	// Follow connects to the primary at URL. Answer: StreamEnded.
	Follow struct{ URL string }

	// Unfollow ends Follow.
	Unfollow struct{}

	// Acquire asks for the lease. Answer: Acquired or NotAcquired.
	Acquire struct{}

	// Renew renews the lease and its record. Answer: Renewed or NotRenewed, of the same reign.
	Renew struct{ Reign uint64 }

	// Prepare readies this node to write, as Epoch or a later one. Answer: Prepared.
	Prepare struct{ Epoch uint64 }

	// Admit lets writers in.
	Admit struct{}

	// Fence shuts writers out, at once where it can be, and gives the lease back then. Answer: Fenced.
	Fence struct{}

	// Release gives back a lease under which nothing was written.
	Release struct{}

	// Drain holds writers back and waits until To, or "" for whoever is best, has everything. Answer:
	// Drained.
	Drain struct{ To string }

	// Resume lets writers in again after a Drain that failed.
	Resume struct{}

	// HandOver shuts writers out for good and gives the lease to To. Answer: Fenced.
	HandOver struct{ To string }

	// AskPrimary asks the primary at URL to hand over to this node.
	AskPrimary struct{ URL string }

	// Stopped says that nothing will follow. A lease that is held still is to be given back once all
	// files are closed.
	Stopped struct{}
)

func (Tick) event()        {}
func (Seen) event()        {}
func (StreamEnded) event() {}
func (Vacant) event()      {}
func (CaughtUp) event()    {}
func (Acquired) event()    {}
func (NotAcquired) event() {}
func (Renewed) event()     {}
func (NotRenewed) event()  {}
func (Prepared) event()    {}
func (Resumed) event()     {}
func (Fenced) event()      {}
func (Drained) event()     {}
func (Handoff) event()     {}
func (Promote) event()     {}
func (Demote) event()      {}
func (Stop) event()        {}

func (Look) action()       {}
func (Follow) action()     {}
func (Unfollow) action()   {}
func (Acquire) action()    {}
func (Renew) action()      {}
func (Prepare) action()    {}
func (Admit) action()      {}
func (Fence) action()      {}
func (Release) action()    {}
func (Drain) action()      {}
func (Resume) action()     {}
func (HandOver) action()   {}
func (AskPrimary) action() {}
func (Stopped) action()    {}
