// Package ship keeps the archives of a primary's databases: it puts what the logs have gained into
// object stores, a moment at a time (package archive), and removes what is older than wanted.
// docs/archive.md tells why it is as it is.
//
// Each store is served by itself: one that does not answer holds up no other. Requests and bytes are
// bounded for each store, whatever the number of databases, so a node's cost is known beforehand.
//
// What is promised:
//
//   - An object is written once. The next moment of a history has one name, so of two nodes that both
//     take themselves for the primary one writes it, and the other finds out and begins a history of
//     its own. Histories never mix.
//   - A history is continued only by a node whose log descends from its last moment.
//   - Needs tells which transactions an archive lacks; the log keeps them.
//   - No object leaves an archive before others give every moment that is still to be given.
package ship

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/archive"
	"github.com/litefs/litefs/internal/objstore"
)

// Source is the node.
type Source interface {
	IsPrimary() bool
	Epoch() uint64
	Databases() []Database
}

// Database is one database of the node; litefs.DB is one.
type Database interface {
	ID() uint32
	Name() string
	Pos() litefs.Pos
	LogAfter(txid uint64) ([]litefs.LogPart, error)
	LogPages(p litefs.LogPart, fn func(pgno uint32, data []byte) error) error
	Descends(pos litefs.Pos, epoch uint64) bool
	DecidedSnapshot(ctx context.Context) (*litefs.LTXReader, error)
	LogBytes(txid uint64) int64
}

// Target is one place where archives are kept.
type Target struct {
	Store  objstore.Store
	Layout archive.Layout

	// Check, which may be nil, says whether the store can be written and keeps what package objstore
	// asks of it. It comes before the first object.
	Check func(ctx context.Context) error

	Hold Hold
}

// Retention says which moments an archive gives. Zero fields set no limit.
type Retention struct {
	Age   time.Duration // moments older than this may go
	Count int           // snapshots that are kept at most
	Size  int64         // bytes of a database's history; the newest snapshot and what follows it stay
}

// Options of a Shipper.
type Options struct {
	Source  Source
	Targets []Target
	Dir     string // for files that are being made; made when absent, and the shipper's alone
	Logger  *slog.Logger

	Interval         time.Duration // between two moments of a database; 0: 1 s; levels 1 to 3 have 30, 300 and 3,600 times it
	SnapshotInterval time.Duration // between two snapshots of a database; 0: 24 h
	Retention        Retention
	Requests         float64 // a second to each target, on average; 0: 5
	Bandwidth        int64   // bytes a second to each target; 0: no limit

	levels   []time.Duration // between two objects of levels 1, 2, 3
	keepRaw  time.Duration
	minMerge int
}

func (o *Options) ensureDefaults() {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Interval = cmp.Or(o.Interval, time.Second)
	o.SnapshotInterval = cmp.Or(o.SnapshotInterval, 24*time.Hour)
	o.Requests = cmp.Or(o.Requests, 5)
	if o.levels == nil {
		o.levels = []time.Duration{30 * o.Interval, 300 * o.Interval, 3600 * o.Interval}
	}
	o.keepRaw = cmp.Or(o.keepRaw, keepRaw)
	o.minMerge = cmp.Or(o.minMerge, 8)
}

// keepRaw is how long an object of level 0 stays when others cover it. A writer that was stopped in the
// middle of a put and goes on later must find the name taken: no put lasts so long.
const keepRaw = time.Hour

// Shipper ships to all targets from Start to Close.
type Shipper struct {
	opt     Options
	targets []*target
	cancel  context.CancelFunc // nil before Start
	work    sync.WaitGroup
}

// New returns a shipper, which answers Needs and does nothing else before Start.
func New(o Options) (*Shipper, error) {
	o.ensureDefaults()
	if len(o.Targets) == 0 {
		return nil, errors.New("an archive needs a place to be kept")
	}
	s := &Shipper{opt: o}
	for _, t := range o.Targets {
		s.targets = append(s.targets, newTarget(&s.opt, t))
	}
	return s, nil
}

// Start begins to ship. It is called once.
func (s *Shipper) Start() error {
	if err := os.MkdirAll(s.opt.Dir, 0o700); err != nil {
		return err
	}
	if err := clearDir(s.opt.Dir); err != nil {
		return fmt.Errorf("the archive's directory for files that are being made: %w", err)
	}
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	for _, t := range s.targets {
		s.work.Go(func() { t.run(ctx) })
	}
	return nil
}

// Flush ships what there is now, and returns when every target has it, or fails, or when ctx ends. It does
// nothing before Start, nor on a replica.
func (s *Shipper) Flush(ctx context.Context) {
	if s.cancel == nil {
		return
	}
	for _, t := range s.targets {
		for t.lacks() && ctx.Err() == nil {
			t.look()
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
}

// Close stops, and waits for the end. What is on its way is given up: it is found, or written again, by
// whoever ships next.
func (s *Shipper) Close() {
	if s.cancel != nil {
		s.cancel()
	}
	s.work.Wait()
}

// Needs is litefs.Archive's.
func (s *Shipper) Needs(dbID uint32) []uint64 {
	needs := make([]uint64, 0, len(s.targets))
	for _, t := range s.targets {
		needs = append(needs, t.needs(dbID)...)
	}
	return needs
}

// Status is litefs.Archive's.
func (s *Shipper) Status() []litefs.ArchiveStatus {
	out := make([]litefs.ArchiveStatus, 0, len(s.targets))
	for _, t := range s.targets {
		out = append(out, t.status())
	}
	return out
}
