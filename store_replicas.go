package litefs

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"
)

// ReplicaRegistry is what a primary knows of its replicas. The zero value is
// ready for use.
type ReplicaRegistry struct {
	// has reports whether this node has a database: what a replica tells of others is not kept. nil: all.
	// It is called without mu.
	has func(dbID uint32) bool

	mu       sync.Mutex
	replicas map[string]*replica // by node id
	notify   chan struct{}       // closed at the next change; nil: nobody waits

	// ofDB are closed at the next change that concerns a database. Commits of many databases wait at once, and each is to
	// be woken by its own acknowledgements alone.
	ofDB    map[uint32]chan struct{}
	version uint64 // of the list of nodes
	reign   uint64 // counts the reigns of this node
}

// Bounds of the registry: what replicas tell is remembered, but not for ever,
// and not of any number of them.
const (
	maxReplicas = 1024

	// replicaMemory is how long a replica that does not answer any more is
	// listed, and keeps its place in the logs.
	replicaMemory = time.Hour
)

type replica struct {
	remote      string
	url         string // where other nodes reach it; "": nowhere
	candidate   bool
	handoff     chan struct{} // closed when the lease is handed to it
	connections int
	contact     time.Time
	dbs         map[uint32]AckStreamFrame
	live        map[uint32]AckStreamFrame // of dbs: told since it last connected, in this reign
	transfers   map[uint32]Transfer
}

// Transfer is a snapshot, or a base, on its way to a replica.
type Transfer struct {
	From       Pos   // the log is needed from here on
	Sent, Size int64 // bytes
}

// ReplicaStatus is one replica as its primary knows it.
type ReplicaStatus struct {
	NodeID    string
	Remote    string // address of its connection
	URL       string // where other nodes reach it; may be empty
	Candidate bool   // it may become the primary
	Connected bool
	Contact   time.Time                 // when it was last heard of
	Databases map[uint32]AckStreamFrame // by database id
	Transfers map[uint32]Transfer       // by database id
}

// ReplicaConn notes what one connection of a replica tells. It is safe for
// concurrent use.
type ReplicaConn struct {
	registry *ReplicaRegistry
	r        *replica
	reign    uint64 // in which it began
}

// Connect notes that a replica is connected. Close ends it.
func (g *ReplicaRegistry) Connect(nodeID, remote string) *ReplicaConn {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.expire(time.Now())
	r := g.replicas[nodeID]
	if r == nil {
		r = &replica{handoff: make(chan struct{}), dbs: make(map[uint32]AckStreamFrame), transfers: make(map[uint32]Transfer)}
		if g.replicas == nil {
			g.replicas = make(map[string]*replica)
		}
		if len(g.replicas) < maxReplicas {
			g.replicas[nodeID] = r
		}
	}
	r.connections++
	r.remote, r.contact = remote, time.Now()
	r.handoff = make(chan struct{})
	r.live = make(map[uint32]AckStreamFrame)
	g.wake()
	return &ReplicaConn{g, r, g.reign}
}

// newReign forgets what replicas have told of where they are: they may have followed somebody else since.
func (g *ReplicaRegistry) newReign() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reign++
	for _, r := range g.replicas {
		r.live = make(map[uint32]AckStreamFrame)
	}
	g.wake()
}

// acksOf returns what replicas have told of a database in this reign, by node id.
func (g *ReplicaRegistry) acksOf(dbID uint32) map[string]AckStreamFrame {
	g.mu.Lock()
	defer g.mu.Unlock()
	acks := make(map[string]AckStreamFrame, len(g.replicas))
	for id, r := range g.replicas {
		if ack, ok := r.live[dbID]; ok {
			acks[id] = ack
		}
	}
	return acks
}

// ackOf returns what a replica has told of a database in this reign.
func (g *ReplicaRegistry) ackOf(nodeID string, dbID uint32) AckStreamFrame {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r := g.replicas[nodeID]; r != nil {
		return r.live[dbID]
	}
	return AckStreamFrame{}
}

// acksFrom returns what a replica has told in this reign, by database.
func (g *ReplicaRegistry) acksFrom(nodeID string) map[uint32]AckStreamFrame {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r := g.replicas[nodeID]; r != nil {
		return maps.Clone(r.live)
	}
	return nil
}

// poke wakes who waits for a change: something else than a replica has changed.
func (g *ReplicaRegistry) poke() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wake()
}

// Describe notes where others reach the replica, "" for nowhere, and whether it
// may become the primary.
func (c *ReplicaConn) Describe(url string, candidate bool) {
	c.registry.mu.Lock()
	defer c.registry.mu.Unlock()
	if c.r.url != url || c.r.candidate != candidate {
		c.r.url, c.r.candidate = url, candidate
		c.registry.version++
	}
	c.registry.wake()
}

// Alive notes that the replica was heard of.
func (c *ReplicaConn) Alive() {
	c.registry.mu.Lock()
	defer c.registry.mu.Unlock()
	c.r.contact = time.Now()
}

// Acked notes the positions of a database.
func (c *ReplicaConn) Acked(ack AckStreamFrame) {
	known := c.registry.has == nil || c.registry.has(ack.DBID)
	c.registry.mu.Lock()
	defer c.registry.mu.Unlock()
	c.r.contact = time.Now()
	if known {
		c.r.dbs[ack.DBID] = ack
		if c.reign == c.registry.reign {
			c.r.live[ack.DBID] = ack
		}
		c.registry.wakeDB(ack.DBID)
	}
}

// Handoff is closed when this replica is to take the lease.
func (c *ReplicaConn) Handoff() <-chan struct{} {
	c.registry.mu.Lock()
	defer c.registry.mu.Unlock()
	return c.r.handoff
}

// wake tells who waits for a change of any kind. g.mu is held.
func (g *ReplicaRegistry) wake() {
	for _, ch := range g.ofDB {
		close(ch)
	}
	clear(g.ofDB)
	if g.notify != nil {
		close(g.notify)
		g.notify = nil
	}
}

// wakeDB tells who waits for what concerns a database. g.mu is held.
func (g *ReplicaRegistry) wakeDB(dbID uint32) {
	if ch, ok := g.ofDB[dbID]; ok {
		close(ch)
		delete(g.ofDB, dbID)
	}
	if g.notify != nil {
		close(g.notify)
		g.notify = nil
	}
}

// changedFor is closed at the next change that concerns a database.
func (g *ReplicaRegistry) changedFor(dbID uint32) <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	ch, ok := g.ofDB[dbID]
	if !ok {
		ch = make(chan struct{})
		if g.ofDB == nil {
			g.ofDB = make(map[uint32]chan struct{})
		}
		g.ofDB[dbID] = ch
	}
	return ch
}

// changed is closed at the next change.
func (g *ReplicaRegistry) changed() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.notify == nil {
		g.notify = make(chan struct{})
	}
	return g.notify
}

// candidates returns the connected candidates; only the one with this node id,
// if it is not empty.
func (g *ReplicaRegistry) candidates(nodeID string) []ReplicaStatus {
	return slices.DeleteFunc(g.List(), func(r ReplicaStatus) bool {
		return !r.Connected || !r.Candidate || nodeID != "" && r.NodeID != nodeID
	})
}

// handOff tells a replica that the lease is free.
func (g *ReplicaRegistry) handOff(nodeID string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r := g.replicas[nodeID]; r != nil && r.connections > 0 {
		select {
		case <-r.handoff:
		default:
			close(r.handoff)
		}
	}
}

// Version changes with the nodes that are known.
func (g *ReplicaRegistry) Version() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.version
}

// Forget removes a database that was dropped.
func (c *ReplicaConn) Forget(dbID uint32) {
	c.registry.mu.Lock()
	defer c.registry.mu.Unlock()
	delete(c.r.dbs, dbID)
	delete(c.r.live, dbID)
}

// Sending notes how far a snapshot or base of a database is; the zero Transfer,
// that none is on its way any more.
func (c *ReplicaConn) Sending(dbID uint32, t Transfer) {
	c.registry.mu.Lock()
	defer c.registry.mu.Unlock()
	if t == (Transfer{}) {
		delete(c.r.transfers, dbID)
	} else {
		c.r.transfers[dbID] = t
	}
}

// Close notes the end of the connection.
func (c *ReplicaConn) Close() {
	c.registry.mu.Lock()
	defer c.registry.mu.Unlock()
	c.r.connections--
}

// expire forgets replicas that have not been heard of. g.mu is held.
func (g *ReplicaRegistry) expire(now time.Time) {
	maps.DeleteFunc(g.replicas, func(_ string, r *replica) bool {
		return r.connections == 0 && now.Sub(r.contact) > replicaMemory
	})
}

// List returns the replicas, sorted by node id.
func (g *ReplicaRegistry) List() []ReplicaStatus {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.expire(time.Now())
	list := make([]ReplicaStatus, 0, len(g.replicas))
	for id, r := range g.replicas {
		list = append(list, ReplicaStatus{
			NodeID: id, Remote: r.remote, URL: r.url, Candidate: r.candidate, Connected: r.connections > 0, Contact: r.contact, Databases: maps.Clone(r.dbs), Transfers: maps.Clone(r.transfers),
		})
	}
	slices.SortFunc(list, func(a, b ReplicaStatus) int { return cmp.Compare(a.NodeID, b.NodeID) })
	return list
}

// neededFrom returns the first transaction of a database that a replica heard
// of lately still lacks; 0 when none lacks any.
func (g *ReplicaRegistry) neededFrom(dbID uint32) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.expire(time.Now())
	var from uint64
	for _, r := range g.replicas {
		if t, ok := r.transfers[dbID]; ok && (from == 0 || t.From.TXID+1 < from) {
			from = t.From.TXID + 1
		}
		ack, ok := r.dbs[dbID]
		if !ok || ack.Received.IsZero() || time.Since(r.contact) > replicaMemory {
			continue
		}
		if next := ack.Received.TXID + 1; from == 0 || next < from {
			from = next
		}
	}
	return from
}

// boundaries returns the first transactions that replicas heard of lately lack,
// and those from which the log is needed after what is on its way.
func (g *ReplicaRegistry) boundaries(dbID uint32) []uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.expire(time.Now())
	var txids []uint64
	for _, r := range g.replicas {
		if t, ok := r.transfers[dbID]; ok {
			txids = append(txids, t.From.TXID+1)
		}
		if ack, ok := r.dbs[dbID]; ok && !ack.Received.IsZero() {
			txids = append(txids, ack.Received.TXID+1)
		}
	}
	return txids
}

// Replicas returns what this node knows of the nodes that follow it.
func (s *Store) Replicas() []ReplicaStatus { return s.replicas.List() }

// ReplicaRegistry is where the server notes what replicas tell.
func (s *Store) ReplicaRegistry() *ReplicaRegistry { return &s.replicas }
