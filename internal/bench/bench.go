// Package bench measures what the mount and replication cost: the same SQLite does the same work in a
// plain directory and on nodes on the same disk, in one run, in turns.
//
// Speeds of one run on one machine are compared with each other and with nothing else: what counts is
// the ratio of a round, node to plain directory, and its median over the rounds. A single node runs in
// this process, so that its FUSE requests can be counted; two nodes, and all applications, are child
// processes.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/daemon"
	"github.com/litefs/litefs/internal/sqlapp"
)

// Options of Run.
type Options struct {
	Out           io.Writer
	App           sqlapp.Command // how to start a child that serves SQL
	Dir           string         // where both directories are made; empty: os.TempDir
	Only          []string       // names of workloads; empty: all
	Duration      time.Duration  // of one measurement; default 2 s
	Rounds        int            // default 5
	NoPassthrough bool           // measure the mount without kernel passthrough
	Logger        *slog.Logger   // of the node in this process; default: discard

	Binary      string    // the litefs command, for two nodes; empty: the running binary
	NodeLog     io.Writer // gets what they log; may be nil
	CatchupSize int64     // bytes of the database of catchup; default 256 MB
}

func (o *Options) ensureDefaults() {
	if o.Duration <= 0 {
		o.Duration = 2 * time.Second
	}
	if o.Rounds <= 0 {
		o.Rounds = 5
	}
	if o.CatchupSize <= 0 {
		o.CatchupSize = 256 << 20
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Sample is one measurement of one side.
type Sample struct {
	Units    float64           // rows, transactions or reads done
	Rounds   int               // repetitions of the workload's steps
	Elapsed  time.Duration     // of all of them
	CPU      time.Duration     // processor time of the application meanwhile, where it is measured
	Requests map[string]uint64 // FUSE requests meanwhile, by name; of the mount's side
}

// Speed is units a second.
func (s Sample) Speed() float64 { return s.Units / s.Elapsed.Seconds() }

// Result is what was found about one workload.
type Result struct {
	Workload      Workload
	Native, Mount []Sample // one a round
}

// Ratio is the median over the rounds of mount to native.
func (r Result) Ratio() float64 {
	ratios := make([]float64, len(r.Native))
	for i := range r.Native {
		ratios[i] = r.Mount[i].Speed() / r.Native[i].Speed()
	}
	return median(ratios)
}

// Requests is the number of FUSE requests for each repetition of the steps, by name, over all rounds.
func (r Result) Requests() map[string]float64 {
	total, rounds := map[string]float64{}, 0
	for _, s := range r.Mount {
		rounds += s.Rounds
		for name, n := range s.Requests {
			total[name] += float64(n)
		}
	}
	for name := range total {
		total[name] /= float64(max(1, rounds))
	}
	return total
}

// side is one of the two directories, with the application that works in it.
type side struct {
	dir  string
	app  *sqlapp.Process
	node *daemon.Node // nil for the plain directory

	// prepared are the databases that exist. They are not looked for on the disk: this process serves
	// the mount, and asks nothing of it.
	prepared map[string]bool
}

func newSide(dir string, node *daemon.Node) *side {
	return &side{dir: dir, node: node, prepared: map[string]bool{}}
}

// Report is what Run has found.
type Report struct {
	Mount []Result     // of one node
	Pair  []PairResult // of two
	Moves []MoveResult // of two between which the role moves

	Archive []ArchiveResult // of one that archives, beside one that does not
}

// Run measures and prints. An error after some workloads keeps their results.
func Run(ctx context.Context, o Options) (r Report, err error) {
	if !sqlapp.Available {
		return r, fmt.Errorf("the benchmark needs SQLite: %w", sqlapp.ErrNoSQLite)
	}
	o.ensureDefaults()
	workloads, pairs, moving, err := choose(o.Only)
	if err != nil {
		return r, err
	}
	dir, err := os.MkdirTemp(o.Dir, "litefs-bench-")
	if err != nil {
		return r, fmt.Errorf("make a directory for the benchmark: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Mkdir(filepath.Join(dir, "plain"), 0o700); err != nil {
		return r, fmt.Errorf("make a directory for the benchmark: %w", err)
	}
	p := &printer{w: o.Out}
	p.begin(o)
	if len(workloads) > 0 {
		if r.Mount, err = runMount(ctx, o, dir, workloads, p); err != nil {
			return r, err
		}
	}
	if len(pairs) > 0 {
		if r.Pair, err = runPair(ctx, o, dir, pairs, p); err != nil {
			return r, err
		}
	}
	for i, w := range moving {
		if i == 0 {
			p.movesHead()
		}
		sub := filepath.Join(dir, fmt.Sprintf("moves-%d", i))
		if err := os.Mkdir(sub, 0o700); err != nil {
			return r, fmt.Errorf("make a directory for the benchmark: %w", err)
		}
		result, err := runMoves(ctx, o, sub, w)
		r.Moves = append(r.Moves, result)
		p.moves(result)
		if err != nil {
			return r, fmt.Errorf("workload %s, %s: %w", w.Name, w.Lease, err)
		}
	}
	for _, place := range choosePlaces(o.Only) {
		sub := filepath.Join(dir, "archive-"+place)
		if err := os.Mkdir(sub, 0o700); err != nil {
			return r, fmt.Errorf("make a directory for the benchmark: %w", err)
		}
		result, err := runArchive(ctx, o, sub, place)
		if err != nil {
			return r, fmt.Errorf("workload %s-%s: %w", archiveName, place, err)
		}
		r.Archive = append(r.Archive, result)
		p.archive(result)
	}
	return r, p.err
}

// runMount measures one node, which runs in this process.
func runMount(ctx context.Context, o Options, dir string, workloads []Workload, p *printer) (results []Result, err error) {
	node, err := startNode(ctx, o, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, node.Close(context.WithoutCancel(ctx))) }()
	native, mount := newSide(filepath.Join(dir, "plain"), nil), newSide(filepath.Join(dir, "mount"), node)
	for _, s := range []*side{native, mount} {
		if s.app, err = sqlapp.Start(ctx, o.App); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, s.app.Kill()) }()
	}
	p.mountHead()
	for _, w := range workloads {
		r, err := measure(ctx, o, w, native, mount)
		if err != nil {
			return results, fmt.Errorf("workload %s: %w", w.Name, err)
		}
		results = append(results, r)
		p.result(r)
	}
	return results, p.memory()
}

// runPair measures two nodes, which are child processes.
func runPair(ctx context.Context, o Options, dir string, workloads []PairWorkload, p *printer) (results []PairResult, err error) {
	nodes, err := startPair(ctx, o, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, nodes.stop(ctx)) }()
	b := &pairBench{o: o, p: nodes, plain: filepath.Join(dir, "plain"), out: p}
	for _, app := range []**sqlapp.Process{&b.writer, &b.reader} {
		if *app, err = sqlapp.Start(ctx, o.App); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, (*app).Kill()) }()
	}
	p.pairHead()
	for _, w := range workloads {
		r, err := b.measure(ctx, w)
		if err != nil {
			return results, fmt.Errorf("workload %s: %w", w.Name, err)
		}
		results = append(results, r)
		p.pairResult(r)
	}
	return results, nil
}

// startNode starts a primary in this process, its data beside the plain directory.
func startNode(ctx context.Context, o Options, dir string) (*daemon.Node, error) {
	return startNodeWith(ctx, o, dir, func(*config.Config) {})
}

// startNodeWith is startNode with another configuration.
func startNodeWith(ctx context.Context, o Options, dir string, change func(*config.Config)) (*daemon.Node, error) {
	mount := filepath.Join(dir, "mount")
	if err := os.Mkdir(mount, 0o700); err != nil {
		return nil, fmt.Errorf("make a mount point for the benchmark: %w", err)
	}
	cfg, err := config.Default(mount, config.Source{})
	if err != nil {
		return nil, err
	}
	cfg.Data.Dir = filepath.Join(dir, "data")
	cfg.HTTP.Addr = "127.0.0.1:0"
	cfg.Fuse.Passthrough = !o.NoPassthrough
	change(cfg)
	node, err := daemon.Start(ctx, cfg, o.Logger)
	if err != nil {
		return nil, fmt.Errorf("start a node: %w", err)
	}
	return node, nil
}

// measure runs one workload on both sides, in turns: the side that goes first changes each round, for
// the second one finds a warmer machine.
func measure(ctx context.Context, o Options, w Workload, native, mount *side) (Result, error) {
	r := Result{Workload: w}
	for round := range o.Rounds {
		order := []*side{native, mount}
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, s := range order {
			sample, err := s.run(ctx, o, w, round)
			if err != nil {
				return r, err
			}
			if s == native {
				r.Native = append(r.Native, sample)
			} else {
				r.Mount = append(r.Mount, sample)
			}
		}
	}
	return r, nil
}

// run takes one sample: prepares the database of the round, opens it anew, and repeats the steps.
func (s *side) run(ctx context.Context, o Options, w Workload, round int) (sample Sample, err error) {
	path := filepath.Join(s.dir, w.database(round))
	if err := s.prepare(ctx, w, path); err != nil {
		return sample, fmt.Errorf("prepare %s: %w", path, err)
	}
	// Opened now that it has its journal mode, as an application finds its database after its first start.
	c, err := s.app.Open(ctx, path, sqlapp.Options{BusyTimeout: time.Minute, Pragmas: w.Pragmas})
	if err != nil {
		return sample, err
	}
	// The first use of a connection reads the schema and maps the wal-index.
	if _, err := c.Repeat(ctx, w.Steps, 1, 0); err != nil {
		return sample, errors.Join(err, c.Close(ctx))
	}
	before := s.counts()
	done, err := c.Repeat(ctx, w.Steps, w.Rounds, o.Duration)
	sample = Sample{
		Units: float64(done.Rounds) * w.Units, Rounds: done.Rounds,
		Elapsed: time.Duration(done.Nanos), Requests: since(before, s.counts()),
	}
	return sample, errors.Join(err, c.Close(ctx))
}

// prepare makes the database unless an earlier round has.
func (s *side) prepare(ctx context.Context, w Workload, path string) error {
	if s.prepared[path] {
		return nil
	}
	s.prepared[path] = true
	c, err := s.app.Open(ctx, path, sqlapp.Options{Pragmas: []string{"journal_mode=" + w.journal(), "synchronous=normal"}})
	if err != nil {
		return err
	}
	for _, sql := range w.Setup {
		if _, err := c.Exec(ctx, sql); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", sql, err), c.Close(ctx))
		}
	}
	return c.Close(ctx)
}

// counts returns the FUSE requests so far.
func (s *side) counts() map[string]uint64 {
	if s.node == nil {
		return nil
	}
	return s.node.Counts()
}

// since returns what was added to counts.
func since(before, after map[string]uint64) map[string]uint64 {
	out := map[string]uint64{}
	for name, n := range after {
		if n > before[name] {
			out[name] = n - before[name]
		}
	}
	return out
}

// median returns the middle of values, which it sorts.
func median(values []float64) float64 {
	slices.Sort(values)
	n := len(values)
	if n == 0 {
		return 0
	}
	return (values[(n-1)/2] + values[n/2]) / 2
}

// choose returns the workloads with the given names, in their own order; without a name those that need
// neither a long time nor a lease server.
func choose(names []string) (one []Workload, two []PairWorkload, moving []MoveWorkload, err error) {
	one, two, moving = Workloads(), PairWorkloads(), MoveWorkloads()
	if len(names) == 0 {
		return one, slices.DeleteFunc(two, func(w PairWorkload) bool { return w.Name == soakName }), nil, nil
	}
	var known []string
	for _, w := range one {
		known = append(known, w.Name)
	}
	for _, w := range two {
		known = append(known, w.Name)
	}
	for _, w := range moving {
		known = append(known, w.Name)
	}
	known = append(slices.Compact(known), archiveName)
	for _, name := range names {
		if !slices.Contains(known, name) && !isArchive(name) && !slices.ContainsFunc(moving, func(w MoveWorkload) bool { return w.is(name) }) {
			return nil, nil, nil, fmt.Errorf("no workload %q: there are %s", name, strings.Join(known, ", "))
		}
	}
	one = slices.DeleteFunc(one, func(w Workload) bool { return !slices.Contains(names, w.Name) })
	two = slices.DeleteFunc(two, func(w PairWorkload) bool { return !slices.Contains(names, w.Name) })
	moving = slices.DeleteFunc(moving, func(w MoveWorkload) bool { return !slices.ContainsFunc(names, w.is) })
	return one, two, moving, nil
}
