package ship

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/superfly/ltx"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/objstore"
	"github.com/litefs/litefs/internal/pagesum"
)

const modelPageSize = 512

// state is what a database was after a transaction; states form a tree, of which each node of a cluster
// has one branch.
type state struct {
	txid, epoch uint64
	pages       [][]byte
	changed     map[uint32]bool // pages that the transaction wrote
	parent      *state
	refused     *state // what takes it back, on the node that refused it; another may not have heard of that, and goes on from here
	back        bool   // it takes the one before it back
	adopted     bool   // by a node that took over with it as its newest: it is committed there
}

func (s *state) sum() uint64 {
	sum := uint64(1) << 63
	for i, p := range s.pages {
		sum ^= pagesum.Page(uint32(i+1), p) &^ (1 << 63)
	}
	return sum
}

// place is a state's position and epoch.
type place struct{ txid, sum, epoch uint64 }

func (s *state) place() place { return place{s.txid, s.sum(), s.epoch} }

// ms is the time of a transaction.
func (s *state) ms() int64 {
	if s.back {
		return s.parent.ms()
	}
	return modelBegan + int64(s.txid)
}

// modelBegan is not long ago: objects of a directory have the times of their transactions, and old ones may be removed.
var modelBegan = time.Now().Add(-time.Minute).UnixMilli()

func (s *state) bytes() []byte { return bytes.Join(s.pages, nil) }

// descends says whether s is a or comes after it.
func (s *state) descends(a *state) bool {
	for ; s != nil; s = s.parent {
		if s == a {
			return true
		}
	}
	return false
}

// entry is an entry of a log: the states of its transactions.
type entry struct {
	first, last *state
	pages       map[uint32][]byte
}

// modelNode is a node with one database: a log, and the role that it takes itself to have.
type modelNode struct {
	r       *rand.Rand
	id      uint32
	primary bool
	epoch   uint64
	head    *state
	log     []entry
	states  map[place]*state // of all nodes
	waits   bool             // the head's commit waits for the archive
}

func (n *modelNode) IsPrimary() bool       { return n.primary }
func (n *modelNode) Epoch() uint64         { return n.epoch }
func (n *modelNode) Databases() []Database { return []Database{n} }
func (n *modelNode) ID() uint32            { return n.id }
func (n *modelNode) Name() string          { return "dir/app.db" }
func (n *modelNode) Pos() litefs.Pos {
	s := n.head
	if s != nil && n.waits {
		s = s.parent
	}
	if s == nil {
		return litefs.Pos{}
	}
	return litefs.Pos{TXID: s.txid, Chksum: s.sum()}
}

// takeBack refuses the commit of the head.
func (n *modelNode) takeBack() {
	k := n.head
	s := &state{txid: k.txid + 1, epoch: n.epoch, parent: k, pages: slices.Clone(k.parent.pages), changed: map[uint32]bool{}, back: true}
	e := entry{first: s, last: s, pages: map[uint32][]byte{}}
	for i, p := range s.pages {
		if i >= len(k.pages) || !bytes.Equal(p, k.pages[i]) {
			s.changed[uint32(i+1)], e.pages[uint32(i+1)] = true, p
		}
	}
	k.refused = s
	n.head, n.waits, n.log = s, false, append(n.log, e)
	n.states[s.place()] = s
}

// write commits a transaction.
func (n *modelNode) write() {
	s := &state{txid: 1, epoch: n.epoch, parent: n.head, changed: map[uint32]bool{}}
	if n.head != nil {
		s.txid, s.pages = n.head.txid+1, slices.Clone(n.head.pages)
	}
	commit := 1 + n.r.IntN(12)
	if n.head != nil && n.r.IntN(3) > 0 {
		commit = len(s.pages)
	}
	for len(s.pages) < commit {
		s.pages = append(s.pages, make([]byte, modelPageSize)) // perhaps never written
		if n.head == nil {
			s.changed[uint32(len(s.pages))] = true
		}
	}
	s.pages = s.pages[:commit]
	for range 1 + n.r.IntN(3) {
		i := n.r.IntN(commit)
		s.pages[i] = []byte(fmt.Sprintf("%-*d", modelPageSize, n.r.Uint64()))
		s.changed[uint32(i+1)] = true
	}
	n.head = s
	n.states[s.place()] = s
	e := entry{first: s, last: s, pages: map[uint32][]byte{}}
	for pgno := range s.changed {
		e.pages[pgno] = s.pages[pgno-1]
	}
	n.log = append(n.log, e)
}

// compact merges entries of the log, as ltxlog does.
func (n *modelNode) compact() {
	if len(n.log) < 4 || n.waits {
		return
	}
	i := n.r.IntN(len(n.log) - 2)
	a, b := n.log[i], n.log[i+1]
	if a.last.epoch != b.last.epoch {
		return
	}
	for _, e := range n.log[max(0, i-1):min(len(n.log), i+3)] {
		if e.last.back {
			return
		}
	}
	m := entry{first: a.first, last: b.last, pages: map[uint32][]byte{}}
	for s := b.last; ; s = s.parent {
		before := 0
		if s.parent != nil {
			before = len(s.parent.pages)
		}
		for pgno := uint32(before + 1); pgno <= uint32(len(b.last.pages)); pgno++ {
			m.pages[pgno] = b.last.pages[pgno-1]
		}
		for pgno := range s.changed {
			if int(pgno) <= len(b.last.pages) {
				m.pages[pgno] = b.last.pages[pgno-1]
			}
		}
		if s == a.first {
			break
		}
	}
	n.log = slices.Replace(n.log, i, i+2, m)
}

// retire removes the oldest entries that the archive does not need.
func (n *modelNode) retire(needs uint64) {
	for len(n.log) > 1 && n.log[0].last.txid < needs && n.r.IntN(3) > 0 {
		n.log = n.log[1:]
	}
}

// follow makes n what a replica of p is that has all but the newest entries, and forgets old ones.
func (n *modelNode) follow(p *modelNode) {
	n.id, n.log = p.id, slices.Clone(p.log[:len(p.log)-n.r.IntN(len(p.log))])
	n.head = n.log[len(n.log)-1].last
	n.head.adopted = true
	if len(n.log) > 2 && n.r.IntN(4) == 0 {
		n.log = n.log[n.r.IntN(len(n.log)-1):]
	}
}

func (n *modelNode) LogAfter(txid uint64) ([]litefs.LogPart, error) {
	if n.head == nil {
		return nil, litefs.ErrDatabaseNotFound
	}
	var parts []litefs.LogPart
	for _, e := range n.log {
		if e.last.txid <= txid {
			continue
		}
		if len(parts) == 0 && e.first.txid > txid+1 {
			return nil, litefs.ErrSnapshotNeeded
		}
		parts = append(parts, litefs.LogPart{
			Min: e.first.txid, Max: e.last.txid, Post: e.last.sum(), Epoch: e.last.epoch,
			Commit: uint32(len(e.last.pages)), PageSize: modelPageSize, Size: int64(n.r.IntN(2)) * (maxPart + 1),
			Time: time.UnixMilli(e.last.ms()), TakesBack: e.first == e.last && e.last.back,
		})
	}
	return parts, nil
}

func (n *modelNode) LogBytes(txid uint64) (bytes int64) {
	for _, e := range n.log {
		if e.last.txid >= txid {
			bytes += int64(len(e.pages)) * modelPageSize
		}
	}
	return bytes
}

func (n *modelNode) LogPages(p litefs.LogPart, fn func(pgno uint32, data []byte) error) error {
	if n.r.IntN(20) == 0 {
		return litefs.ErrLogChanged
	}
	for _, e := range n.log {
		if e.first.txid != p.Min || e.last.txid != p.Max {
			continue
		}
		pgnos := make([]uint32, 0, len(e.pages))
		for pgno := range e.pages {
			pgnos = append(pgnos, pgno)
		}
		slices.Sort(pgnos)
		for _, pgno := range pgnos {
			if err := fn(pgno, slices.Clone(e.pages[pgno])); err != nil {
				return err
			}
		}
		return nil
	}
	return litefs.ErrLogChanged
}

func (n *modelNode) Descends(pos litefs.Pos, epoch uint64) bool {
	s := n.states[place{pos.TXID, pos.Chksum, epoch}]
	return s != nil && n.head.descends(s)
}

func (n *modelNode) DecidedSnapshot(context.Context) (*litefs.LTXReader, error) {
	if n.head == nil {
		return nil, litefs.ErrDatabaseNotFound
	}
	if n.waits {
		return nil, litefs.ErrLogChanged // it will be refused
	}
	if n.primary && n.r.IntN(2) == 0 {
		n.write() // the database goes on meanwhile
	}
	var b bytes.Buffer
	enc, err := ltx.NewEncoder(&b)
	if err != nil {
		return nil, err
	}
	err = enc.EncodeHeader(ltx.Header{
		Version: ltx.Version, PageSize: modelPageSize, Commit: uint32(len(n.head.pages)), MinTXID: 1, MaxTXID: ltx.TXID(n.head.txid),
		Timestamp: n.head.ms(), NodeID: n.head.epoch,
	})
	for i, p := range n.head.pages {
		err = errors.Join(err, enc.EncodePage(ltx.PageHeader{Pgno: uint32(i + 1)}, p))
	}
	enc.SetPostApplyChecksum(ltx.Checksum(n.head.sum()))
	if err = errors.Join(err, enc.Close()); err != nil {
		return nil, err
	}
	return &litefs.LTXReader{ReadCloser: io.NopCloser(&b), Size: int64(b.Len()), MinTXID: 1, MaxTXID: n.head.txid, Post: n.head.sum()}, nil
}

// faultyStore fails operations, before or after they have happened.
type faultyStore struct {
	objstore.Store
	r     *rand.Rand
	often int // one of so many fails; 0: none

	meanwhile func() // called while a request is on its way; may be nil
}

var errFault = errors.New("a fault of the test")

// takesTime has other things happen.
func (f *faultyStore) takesTime() {
	if do := f.meanwhile; do != nil && f.r.IntN(10) == 0 {
		f.meanwhile = nil // not within itself
		do()
		f.meanwhile = do
	}
}

func (f *faultyStore) fault() bool { return f.often > 0 && f.r.IntN(f.often) == 0 }

func (f *faultyStore) PutIfAbsent(ctx context.Context, key string, body io.ReadSeeker, a objstore.Attrs) (string, error) {
	f.takesTime()
	if f.fault() {
		return "", errFault
	}
	etag, err := f.Store.PutIfAbsent(ctx, key, body, a)
	if f.fault() {
		return "", errFault
	}
	return etag, err
}

func (f *faultyStore) Get(ctx context.Context, key string, r objstore.Range) (*objstore.Object, error) {
	f.takesTime()
	if f.fault() {
		return nil, errFault
	}
	return f.Store.Get(ctx, key, r)
}

func (f *faultyStore) DeleteAll(ctx context.Context, keys []string) error {
	f.takesTime()
	if f.fault() {
		// Some are gone, in any order.
		keys = slices.Clone(keys)
		f.r.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
		return errors.Join(errFault, f.Store.DeleteAll(ctx, keys[:f.r.IntN(len(keys))]))
	}
	return f.Store.DeleteAll(ctx, keys)
}
