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

	With, Without Inserts
	ServerCPU     time.Duration // of the S3 server, for each insert
}

// Ratios are the speeds with an archive to those without, round by round, in ascending order.
func (r ArchiveResult) Ratios() []float64 {
	var ratios []float64
	for i, s := range r.With.Samples {
		ratios = append(ratios, s.Speed()/r.Without.Samples[i].Speed())
	}
	slices.Sort(ratios)
	return ratios
}

// archiveBench is a node that archives, in this process, under a steady load.
type archiveBench struct {
	o    Options
	with *side
}

// runArchive measures one place.
func runArchive(ctx context.Context, o Options, dir, place string) (r ArchiveResult, err error) {
	r.Place = place
	target := config.BackupTarget{Type: place, Path: filepath.Join(dir, "archive")}
	var server *leaseserver.Server // nil: a directory
	if place == config.BackupS3 {
		// Elsewhere it is another machine: here it gets what the others leave of this one.
		if server, err = leaseserver.S3(ctx, leaseserver.Options{Dir: dir, Nice: true}); err != nil {
			return r, err
		}
		defer func() { err = errors.Join(err, server.Kill()) }()
		target = config.BackupTarget{
			Type: place, URL: "s3://" + leaseserver.S3Bucket, Endpoint: server.URL,
			AccessKey: leaseserver.S3AccessKey, SecretKey: leaseserver.S3SecretKey,
		}
	}
	if err := steadyArchive(ctx, o, dir, target, &r); err != nil {
		return r, err
	}
	return r, insertsArchived(ctx, o, dir, target, server, &r)
}

// steadyArchive measures a steady load.
func steadyArchive(ctx context.Context, o Options, dir string, target config.BackupTarget, r *ArchiveResult) (err error) {
	home := filepath.Join(dir, "steady")
	if err := os.Mkdir(home, 0o700); err != nil {
		return fmt.Errorf("make a directory for the benchmark: %w", err)
	}
	node, err := startNodeWith(ctx, o, home, func(c *config.Config) {
		c.Backup = config.Backup{
			Target: target, Interval: time.Second, SnapshotInterval: 24 * time.Hour, Retention: 7 * 24 * time.Hour, MaxRequests: 5,
		}
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Close(context.WithoutCancel(ctx))) }()
	b := archiveBench{o: o, with: newSide(filepath.Join(home, "mount"), node)}
	if b.with.app, err = sqlapp.Start(ctx, o.App); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.with.app.Kill()) }()
	return b.steady(ctx, r)
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

// archive prints what was found about a place.
func (p *printer) archive(r ArchiveResult) {
	verdict := func(bad bool) string {
		if bad {
			return ", missed"
		}
		return ""
	}
	name := archiveName + "-" + r.Place
	p.printf("%-14s  of %d transactions, one each %s: lag p50 %.0f ms, p99 %.0f ms, max %.0f ms (goal of p99 %s%s); %.2f requests a second (goal %.0f%s)\n",
		name, len(r.Lags), paceEvery, millis(r.Lags.Quantile(0.5)), millis(r.Lags.Quantile(0.99)), millis(r.Lags.Quantile(1)),
		archiveLagGoal, verdict(r.Lags.Quantile(0.99) > archiveLagGoal), r.Requests, archiveRequestGoal, verdict(r.Requests > archiveRequestGoal))
	ratios := r.Ratios()
	p.printf("%-14s  inserts with an archive to those without, %d rounds of %.1f s: %.2f (quartiles %.2f-%.2f), goal %.2f%s\n",
		name, len(ratios), r.With.Samples[0].Elapsed.Seconds(), quantile(ratios, 0.5), quantile(ratios, 0.25), quantile(ratios, 0.75), archiveInsertGoal,
		verdict(quantile(ratios, 0.5) < archiveInsertGoal))
	p.printf("%-14s  processor for each: node %.1f us, without an archive %.1f us; application %.1f us, without %.1f us", "",
		micros(r.With.CPU), micros(r.Without.CPU), micros(r.With.AppCPU), micros(r.Without.AppCPU))
	if r.ServerCPU > 0 {
		p.printf("; the S3 server, niced on the same machine, %.1f us", micros(r.ServerCPU))
	}
	p.printf("\n")
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
