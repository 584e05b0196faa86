package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/daemon"
	"github.com/litefs/litefs/internal/leaseserver"
	"github.com/litefs/litefs/internal/sqlapp"
)

// The workload archive measures one node that archives beside one that does not. It takes a server of its own, and runs
// only when it is named: "archive" for both places, "archive-file" or "archive-s3" for one.
const archiveName = "archive"

// Goals of the workload archive.
const (
	archiveLagGoal     = 2 * time.Second // p99
	archiveRequestGoal = 2.0             // a second
	archiveInsertGoal  = 0.95            // inserts with an archive to those without
)

// ArchivePlaces returns the places that are measured.
func ArchivePlaces() []string { return []string{config.BackupFile, config.BackupS3} }

// ArchiveResult is what was found about one of them.
type ArchiveResult struct {
	Place    string
	Lags     Lags    // of a steady load: from a commit to when the place has it
	Requests float64 // a second, under that load

	// Inserts as fast as they go, in turns: one a round.
	With, Without []Sample
	WithCPU       []float64 // microseconds of this process, which is both nodes, for each of them
	WithoutCPU    []float64
}

// Ratio is the median over the rounds of the speed with an archive to that without.
func (r ArchiveResult) Ratio() float64 {
	return Result{Native: r.Without, Mount: r.With}.Ratio()
}

// archiveBench is a node that archives and one that does not.
type archiveBench struct {
	o             Options
	with, without *side
}

// runArchive measures one place.
func runArchive(ctx context.Context, o Options, dir, place string) (r ArchiveResult, err error) {
	r.Place = place
	target := config.BackupTarget{Type: place, Path: filepath.Join(dir, "archive")}
	if place == config.BackupS3 {
		server, err := leaseserver.S3(ctx, leaseserver.Options{Dir: dir})
		if err != nil {
			return r, err
		}
		defer func() { err = errors.Join(err, server.Kill()) }()
		target = config.BackupTarget{
			Type: place, URL: "s3://" + leaseserver.S3Bucket, Endpoint: server.URL,
			AccessKey: leaseserver.S3AccessKey, SecretKey: leaseserver.S3SecretKey,
		}
	}
	b := archiveBench{o: o}
	for _, s := range []struct {
		side   **side
		name   string
		change func(*config.Config)
	}{
		{&b.without, "without", func(*config.Config) {}},
		{&b.with, "with", func(c *config.Config) {
			c.Backup = config.Backup{
				Target: target, Interval: time.Second, SnapshotInterval: 24 * time.Hour, Retention: 7 * 24 * time.Hour, MaxRequests: 5,
			}
		}},
	} {
		home := filepath.Join(dir, s.name)
		if err := os.Mkdir(home, 0o700); err != nil {
			return r, fmt.Errorf("make a directory for the benchmark: %w", err)
		}
		node, err := startNodeWith(ctx, o, home, s.change)
		if err != nil {
			return r, err
		}
		*s.side = newSide(filepath.Join(home, "mount"), node)
		defer func() { err = errors.Join(err, node.Close(context.WithoutCancel(ctx))) }()
		app, err := sqlapp.Start(ctx, o.App)
		if err != nil {
			return r, err
		}
		(*s.side).app = app
		defer func() { err = errors.Join(err, app.Kill()) }()
	}
	if err := b.steady(ctx, &r); err != nil {
		return r, err
	}
	return r, b.inserts(ctx, &r)
}

// steady writes a transaction each paceEvery and looks when the archive has it.
func (b *archiveBench) steady(ctx context.Context, r *ArchiveResult) (err error) {
	const name = "steady.db"
	c, err := b.with.app.Open(ctx, filepath.Join(b.with.dir, name), sqlapp.Options{BusyTimeout: time.Minute, Pragmas: []string{"journal_mode=wal", "synchronous=normal"}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close(ctx)) }()
	if _, err := c.Exec(ctx, table); err != nil {
		return err
	}
	store := b.with.node.Store()
	db := store.DBByName(name)
	if db == nil {
		return fmt.Errorf("the node does not know %s", name)
	}
	if err := db.Settle(); err != nil {
		return err
	}
	base := db.Pos().TXID
	if err := archived(ctx, b.with.node, db.ID(), base); err != nil {
		return err
	}
	before, began := store.Archive.Status()[0].Requests, time.Now()
	watching, stop := context.WithCancel(ctx)
	defer stop()
	seen := make(chan []sqlapp.Seen, 1)
	go func() { seen <- watchArchive(watching, b.with.node, db.ID(), base) }()
	done, err := c.Pace(ctx, []sqlapp.Step{{SQL: pacedRow}}, 0, b.o.Duration, paceEvery)
	if err != nil {
		return err
	}
	if err := archived(ctx, b.with.node, db.ID(), base+uint64(len(done.Ends))); err != nil {
		return err
	}
	r.Requests = float64(store.Archive.Status()[0].Requests-before) / time.Since(began).Seconds()
	stop()
	r.Lags, err = lagsOf(done.Ends, <-seen)
	return err
}

// archiveLook is how often the archive's position is looked at: it is told to nobody.
const archiveLook = time.Millisecond

// watchArchive notes when the archive had how many transactions after base.
func watchArchive(ctx context.Context, node *daemon.Node, db uint32, base uint64) (seen []sqlapp.Seen) {
	tick := time.NewTicker(archiveLook)
	defer tick.Stop()
	last := base
	for {
		over := false
		select {
		case <-ctx.Done():
			over = true // and a last look
		case <-tick.C:
		}
		if txid := node.Archived(db); txid > last {
			last = txid
			seen = append(seen, sqlapp.Seen{Value: int64(txid - base), Nanos: time.Now().UnixNano()})
		}
		if over {
			return seen
		}
	}
}

// archived waits until the archive has a transaction.
func archived(ctx context.Context, node *daemon.Node, db uint32, txid uint64) error {
	ctx, cancel := context.WithTimeout(ctx, stepWait)
	defer cancel()
	tick := time.NewTicker(archiveLook)
	defer tick.Stop()
	for node.Archived(db) < txid {
		select {
		case <-ctx.Done():
			return fmt.Errorf("the archive has transaction %016x, want %016x: %w", node.Archived(db), txid, context.Cause(ctx))
		case <-tick.C:
		}
	}
	return nil
}

// inserts measures how fast one row a transaction is inserted with an archive and without, in turns.
func (b *archiveBench) inserts(ctx context.Context, r *ArchiveResult) error {
	i := slices.IndexFunc(Workloads(), func(w Workload) bool { return w.Name == "normal" })
	w := Workloads()[i]
	for round := range b.o.Rounds {
		order := []*side{b.without, b.with}
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, s := range order {
			before, err := cpuTime()
			if err != nil {
				return err
			}
			sample, err := s.run(ctx, b.o, w, round)
			if err != nil {
				return err
			}
			after, err := cpuTime()
			if err != nil {
				return err
			}
			cost := float64((after-before)/time.Microsecond) / sample.Units
			if s == b.with {
				r.With, r.WithCPU = append(r.With, sample), append(r.WithCPU, cost)
			} else {
				r.Without, r.WithoutCPU = append(r.Without, sample), append(r.WithoutCPU, cost)
			}
		}
	}
	return nil
}

// cpuTime is the processor time of this process so far.
func cpuTime() (time.Duration, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("processor time: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

// archive prints what was found about a place.
func (p *printer) archive(r ArchiveResult) {
	verdict := func(bad bool) string {
		if bad {
			return ", missed"
		}
		return ""
	}
	var ratios []float64
	for i := range r.With {
		ratios = append(ratios, r.With[i].Speed()/r.Without[i].Speed())
	}
	name := archiveName + "-" + r.Place
	p.printf("%-14s  of %d transactions, one each %s: lag p50 %.0f ms, p99 %.0f ms, max %.0f ms (goal of p99 %s%s); %.2f requests a second (goal %.0f%s)\n",
		name, len(r.Lags), paceEvery, millis(r.Lags.Quantile(0.5)), millis(r.Lags.Quantile(0.99)), millis(r.Lags.Quantile(1)),
		archiveLagGoal, verdict(r.Lags.Quantile(0.99) > archiveLagGoal), r.Requests, archiveRequestGoal, verdict(r.Requests > archiveRequestGoal))
	p.printf("%-14s  inserts with an archive to those without: %.2f (%.2f-%.2f), goal %.2f%s; processor of the node for each: %.0f us, without %.0f us\n",
		name, r.Ratio(), slices.Min(ratios), slices.Max(ratios), archiveInsertGoal, verdict(r.Ratio() < archiveInsertGoal), median(r.WithCPU), median(r.WithoutCPU))
}

// choosePlaces returns the places of the workload archive that are named.
func choosePlaces(names []string) (places []string) {
	for _, place := range ArchivePlaces() {
		if slices.Contains(names, archiveName) || slices.Contains(names, archiveName+"-"+place) {
			places = append(places, place)
		}
	}
	return places
}

// isArchive reports whether a name is of the workload archive.
func isArchive(name string) bool {
	place, ok := strings.CutPrefix(name, archiveName)
	return ok && (place == "" || slices.Contains(ArchivePlaces(), strings.TrimPrefix(place, "-")))
}
