package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/litefs/litefs/internal/sqlapp"
)

const quorumName = "quorum"

// quorumRule is the level of the databases of the workload quorum; those of others are async.
const quorumRule = `{match: "quorum-*.db", level: quorum, n: 1}`

// quorumDBs is how many databases are written at once beside one.
const quorumDBs = 16

// QuorumRound is one round of the workload quorum. Times are those of one transaction, ascending.
type QuorumRound struct {
	Fsync     Lags    // a page is written to the end of a file, and synced
	Full      Lags    // a row in a plain directory, synchronous=FULL
	One       Lags    // a row in a database at quorum
	OneSpeed  float64 // transactions a second
	ManySpeed float64 // of quorumDBs such databases at once, all together
}

// quorum measures COMMITs that wait for the replica.
func (b *pairBench) quorum(ctx context.Context, round int) (err error) {
	var q QuorumRound
	if q.Fsync, err = fsyncs(filepath.Join(b.plain, "fsync"), b.o.Duration); err != nil {
		return err
	}
	plain := filepath.Join(b.plain, fmt.Sprintf("full-%d.db", round))
	if err := b.table(ctx, plain, noRows); err != nil {
		return err
	}
	if q.Full, _, err = b.commits(ctx, b.writer, plain); err != nil {
		return err
	}
	var paths []string
	for i := range quorumDBs {
		name := fmt.Sprintf("quorum-%d.db", i)
		path := b.p.primary.path(name)
		paths = append(paths, path)
		if round == 0 {
			if err := b.tableAtQuorum(ctx, path); err != nil {
				return err
			}
		}
	}
	if q.One, q.OneSpeed, err = b.commits(ctx, b.writer, paths[0]); err != nil {
		return err
	}
	if q.ManySpeed, err = b.many(ctx, paths); err != nil {
		return err
	}
	b.result.Quorum = append(b.result.Quorum, q)
	return nil
}

// tableAtQuorum makes a database with a table, as soon as the replica is in sync.
func (b *pairBench) tableAtQuorum(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, stepWait)
	defer cancel()
	for {
		err := b.table(ctx, path, noRows)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if !sqlapp.IsCode(err, sqlapp.CodeIOErr) {
			return err
		}
	}
}

// commits writes rows to a database, one after the other.
func (b *pairBench) commits(ctx context.Context, app *sqlapp.Process, path string) (times Lags, speed float64, err error) {
	c, err := app.Open(ctx, path, sqlapp.Options{BusyTimeout: time.Minute, Pragmas: []string{"synchronous=full"}})
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, c.Close(ctx)) }()
	done, err := c.Pace(ctx, []sqlapp.Step{{SQL: insertRow}}, 0, b.o.Duration, 0)
	if err != nil {
		return nil, 0, err
	}
	for i := 1; i < len(done.Ends); i++ {
		times = append(times, time.Duration(done.Ends[i]-done.Ends[i-1]))
	}
	slices.Sort(times)
	return times, float64(done.Rounds) / time.Duration(done.Nanos).Seconds(), nil
}

// many writes rows to all of the databases at once, each from a process of its own.
func (b *pairBench) many(ctx context.Context, paths []string) (speed float64, err error) {
	speeds := make([]float64, len(paths))
	var g errgroup.Group
	for i, path := range paths {
		app, err := sqlapp.Start(ctx, b.o.App)
		if err != nil {
			return 0, errors.Join(err, g.Wait())
		}
		g.Go(func() error {
			var err error
			_, speeds[i], err = b.commits(ctx, app, path)
			return errors.Join(err, app.Kill())
		})
	}
	err = g.Wait()
	for _, s := range speeds {
		speed += s
	}
	return speed, err
}

// fsyncs appends to a file and syncs, as often as it can.
func fsyncs(path string, d time.Duration) (times Lags, err error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(path)) }()
	page := make([]byte, 4096)
	for end := time.Now().Add(d); time.Now().Before(end); {
		began := time.Now()
		if _, err := f.Write(page); err != nil {
			return nil, err
		}
		if err := f.Sync(); err != nil {
			return nil, err
		}
		times = append(times, time.Since(began))
	}
	slices.Sort(times)
	return times, nil
}

// quorumResult prints the medians over the rounds.
func (p *printer) quorumResult(rounds []QuorumRound) {
	mid := func(of func(QuorumRound) float64) float64 {
		var all []float64
		for _, r := range rounds {
			all = append(all, of(r))
		}
		return median(all)
	}
	p50 := func(of func(QuorumRound) Lags) float64 {
		return mid(func(r QuorumRound) float64 { return millis(of(r).Quantile(0.5)) })
	}
	p.printf("%-14s  p50 of a transaction: fsync alone %.2f ms, plain directory with synchronous=FULL %.2f ms, quorum of 1 %.2f ms\n", quorumName,
		p50(func(r QuorumRound) Lags { return r.Fsync }), p50(func(r QuorumRound) Lags { return r.Full }), p50(func(r QuorumRound) Lags { return r.One }))
	ratio := mid(func(r QuorumRound) float64 { return r.ManySpeed / r.OneSpeed })
	verdict := ""
	if ratio < manyTarget {
		verdict = "  below the goal"
	}
	p.printf("%-14s  one database %.0f transactions a second, %d at once %.0f: %.2f, goal %.2f%s\n", quorumName,
		mid(func(r QuorumRound) float64 { return r.OneSpeed }), quorumDBs, mid(func(r QuorumRound) float64 { return r.ManySpeed }), ratio, manyTarget, verdict)
}

// manyTarget is how many times the transactions of one database many of them should do.
const manyTarget = 4.0
