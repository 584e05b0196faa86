package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/litefs/litefs/internal/sqlapp"
)

// Names of the workloads of two nodes.
const (
	lagName     = "lag"
	insertName  = "replica-insert"
	readName    = "replica-read"
	catchupName = "catchup"
	soakName    = "soak"
)

// pacedRow is the transaction of a steady load, one each paceEvery.
const (
	pacedRow  = "INSERT INTO t(v) VALUES (randomblob(1000))"
	paceEvery = 2 * time.Millisecond
)

// lastRow is a row beyond all others: whoever sees it has seen everything.
const (
	lastID  = 1 << 40
	lastRow = "INSERT INTO t(id) VALUES (1 << 40)"
	newest  = "SELECT max(id) FROM t"
)

// PairWorkload is something two nodes do.
type PairWorkload struct {
	Name   string
	What   string // for people
	Unit   string // what is counted; "": there is no speed, only a lag
	Target float64
	run    func(b *pairBench, ctx context.Context, round int) error
}

// PairWorkloads returns all workloads of two nodes. That of a long time is run when it is named.
func PairWorkloads() []PairWorkload {
	return []PairWorkload{
		{
			Name: lagName, What: "500 transactions of 1 kB a second: from the commit on the primary to a reader of the replica",
			run: (*pairBench).lag,
		},
		{
			Name: insertName, What: "insert one row a transaction on the primary, synchronous=NORMAL", Unit: "transactions",
			Target: 0.4, run: (*pairBench).insert,
		},
		{
			Name: readName, What: "read one row by its key on the replica; on both sides 500 transactions of 1 kB a second are written to the table", Unit: "reads",
			Target: 0.9, run: (*pairBench).read,
		},
		{
			Name: catchupName, What: "a replica without anything, from its connection with the primary to the position of that one; native: cp and sync of the file", Unit: "MB",
			Target: 0.4, run: (*pairBench).catchup,
		},
		{
			Name: quorumName, What: "insert one row a transaction at level quorum, with n: 1",
			run: (*pairBench).quorum,
		},
		{
			Name: soakName, What: "500 transactions of 1 kB a second for a long time; only when it is named",
			run: (*pairBench).soak,
		},
	}
}

// PairResult is what was found about one workload of two nodes.
type PairResult struct {
	Workload      PairWorkload
	Native, Nodes []Sample           // one a round; none where only lag is measured
	CPU           [][2]time.Duration // of primary and replica for each transaction, one a round; of lag
	Lags          []Lags             // one a round; none where it is not measured
	Quorum        []QuorumRound      // of quorum
}

// Ratio is the median over the rounds of the nodes to native.
func (r PairResult) Ratio() float64 { return Result{Native: r.Native, Mount: r.Nodes}.Ratio() }

// pairBench measures a workload on two nodes and a plain directory.
type pairBench struct {
	o              Options
	p              *pair
	plain          string
	writer, reader *sqlapp.Process
	out            *printer
	result         PairResult
}

// measure runs one workload.
func (b *pairBench) measure(ctx context.Context, w PairWorkload) (PairResult, error) {
	b.result = PairResult{Workload: w}
	rounds := b.o.Rounds
	if w.Name == soakName {
		rounds = 1
	}
	for round := range rounds {
		if err := w.run(b, ctx, round); err != nil {
			return b.result, err
		}
	}
	return b.result, nil
}

// table makes a database with a table and runs fill, which may put rows into it.
func (b *pairBench) table(ctx context.Context, path string, fill string) error {
	c, err := b.writer.Open(ctx, path, sqlapp.Options{Pragmas: []string{"journal_mode=wal", "synchronous=normal"}})
	if err != nil {
		return err
	}
	for _, sql := range []string{table, fill} {
		if _, err := c.Exec(ctx, sql); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", sql, err), c.Close(ctx))
		}
	}
	return c.Close(ctx)
}

func (b *pairBench) open(ctx context.Context, app *sqlapp.Process, path string) (*sqlapp.Conn, error) {
	return app.Open(ctx, path, sqlapp.Options{BusyTimeout: time.Minute, Pragmas: []string{"synchronous=normal"}})
}

// load writes to a database on the primary, or a plain one, while another application looks at it.
type load struct {
	path    string // of the writer
	watched string // of the one who looks; "": nobody does
	step    string
	every   time.Duration
	look    time.Duration // between two looks
}

// runLoad writes for d. It returns what was written, and when what was seen.
func (b *pairBench) runLoad(ctx context.Context, l load, d time.Duration) (done sqlapp.Repeated, lags Lags, err error) {
	w, err := b.open(ctx, b.writer, l.path)
	if err != nil {
		return done, nil, err
	}
	defer func() { err = errors.Join(err, w.Close(ctx)) }()
	watch, err := b.watch(ctx, l, d)
	if err != nil {
		return done, nil, err
	}
	done, err = w.Pace(ctx, []sqlapp.Step{{SQL: l.step}}, 0, d, l.every)
	if err == nil {
		_, err = w.Exec(ctx, lastRow)
	}
	seen, werr := watch()
	if err = errors.Join(err, werr); err != nil || l.watched == "" {
		return done, nil, err
	}
	lags, err = lagsOf(done.Ends, seen)
	return done, lags, err
}

// watch begins to look; what it returns waits for the end.
func (b *pairBench) watch(ctx context.Context, l load, d time.Duration) (func() ([]sqlapp.Seen, error), error) {
	if l.watched == "" {
		return func() ([]sqlapp.Seen, error) { return nil, nil }, nil
	}
	r, err := b.open(ctx, b.reader, l.watched)
	if err != nil {
		return nil, err
	}
	var seen []sqlapp.Seen
	done := make(chan error, 1)
	go func() {
		var err error
		seen, err = r.Watch(ctx, newest, lastID, l.look, d+stepWait)
		done <- errors.Join(err, r.Close(ctx))
	}()
	return func() ([]sqlapp.Seen, error) {
		err := <-done
		return seen, err
	}, nil
}

// replicated makes an empty table on the primary and waits for it on the replica.
func (b *pairBench) replicated(ctx context.Context, name, fill string) (primary, replica string, err error) {
	primary, replica = b.p.primary.path(name), b.p.replica.path(name)
	if err := b.table(ctx, primary, fill); err != nil {
		return "", "", err
	}
	return primary, replica, b.p.caughtUp(ctx, name)
}

const noRows = "SELECT 1"

func (b *pairBench) lag(ctx context.Context, round int) error {
	primary, replica, err := b.replicated(ctx, fmt.Sprintf("lag-%d.db", round), noRows)
	if err != nil {
		return err
	}
	before, err := b.p.cpu()
	if err != nil {
		return err
	}
	done, lags, err := b.runLoad(ctx, load{path: primary, watched: replica, step: pacedRow, every: paceEvery, look: 200 * time.Microsecond}, b.o.Duration)
	if err != nil {
		return err
	}
	after, err := b.p.cpu()
	b.result.Lags = append(b.result.Lags, lags)
	b.result.CPU = append(b.result.CPU, [2]time.Duration{
		(after[0] - before[0]) / time.Duration(max(1, done.Rounds)), (after[1] - before[1]) / time.Duration(max(1, done.Rounds)),
	})
	return err
}

func (b *pairBench) insert(ctx context.Context, round int) error {
	name := fmt.Sprintf("insert-%d.db", round)
	plain := filepath.Join(b.plain, name)
	if err := b.table(ctx, plain, noRows); err != nil {
		return err
	}
	primary, replica, err := b.replicated(ctx, name, noRows)
	if err != nil {
		return err
	}
	return b.bothSides(round, func() (Sample, error) {
		done, _, err := b.runLoad(ctx, load{path: plain, step: insertRow}, b.o.Duration)
		return sampleOf(done), err
	}, func() (Sample, error) {
		done, lags, err := b.runLoad(ctx, load{path: primary, watched: replica, step: insertRow, look: 5 * time.Millisecond}, b.o.Duration)
		b.result.Lags = append(b.result.Lags, lags)
		return sampleOf(done), err
	})
}

func (b *pairBench) read(ctx context.Context, round int) error {
	const name = "replica-read.db" // that of the one node's workload is beside the plain one
	plain, primary, replica := filepath.Join(b.plain, name), b.p.primary.path(name), b.p.replica.path(name)
	if round == 0 {
		fill := rows(readRows, 100)
		if err := b.table(ctx, plain, fill); err != nil {
			return err
		}
		if _, _, err := b.replicated(ctx, name, fill); err != nil {
			return err
		}
	}
	return b.bothSides(round,
		func() (Sample, error) { return b.readBeside(ctx, plain, plain) },
		func() (Sample, error) { return b.readBeside(ctx, primary, replica) })
}

// readBeside reads one database while its like is written.
func (b *pairBench) readBeside(ctx context.Context, written, read string) (sample Sample, err error) {
	w, err := b.open(ctx, b.writer, written)
	if err != nil {
		return sample, err
	}
	r, err := b.open(ctx, b.reader, read)
	if err != nil {
		return sample, errors.Join(err, w.Close(ctx))
	}
	defer func() { err = errors.Join(err, r.Close(ctx), w.Close(ctx)) }()
	const settle = 100 * time.Millisecond // the writer begins before the reader and ends after it
	ended := make(chan error, 1)
	go func() {
		_, err := w.Pace(ctx, []sqlapp.Step{{SQL: pacedRow}}, 0, b.o.Duration+2*settle, paceEvery)
		ended <- err
	}()
	step := []sqlapp.Step{{SQL: fmt.Sprintf("SELECT v FROM t WHERE id = 1 + abs(random() %% %d)", readRows)}}
	if _, err = r.Repeat(ctx, step, 0, settle); err == nil {
		var done sqlapp.Repeated
		done, err = r.Repeat(ctx, step, 0, b.o.Duration)
		sample = sampleOf(done)
		sample.CPU = time.Duration(done.CPU)
	}
	return sample, errors.Join(err, <-ended)
}

func (b *pairBench) catchup(ctx context.Context, round int) error {
	const name = "large.db"
	if round == 0 {
		if _, _, err := b.replicated(ctx, name, rows(int(b.o.CatchupSize/1024), 1000)); err != nil {
			return err
		}
	}
	if err := b.p.removeReplica(ctx); err != nil {
		return err
	}
	file := filepath.Join(b.p.primary.cfg.Data, "files", name)
	fi, err := os.Stat(file)
	if err != nil {
		return fmt.Errorf("size of the database: %w", err)
	}
	megabytes := float64(fi.Size()) / 1e6
	return b.bothSides(round, func() (Sample, error) {
		elapsed, err := copyAndSync(ctx, file, filepath.Join(b.plain, "copy.db"))
		return Sample{Units: megabytes, Rounds: 1, Elapsed: elapsed}, err
	}, func() (Sample, error) {
		if err := b.p.addReplica(ctx); err != nil {
			return Sample{}, err
		}
		if err := b.p.caughtUp(ctx, name); err != nil {
			return Sample{}, err
		}
		end := time.Now()
		start, ok := b.p.replica.connectedAt()
		if !ok {
			return Sample{}, errors.New("the replica did not say when it was connected")
		}
		return Sample{Units: megabytes, Rounds: 1, Elapsed: end.Sub(start)}, nil
	})
}

// copyAndSync copies as an operator would.
func copyAndSync(ctx context.Context, from, to string) (time.Duration, error) {
	start := time.Now()
	for _, cmd := range [][]string{{"cp", from, to}, {"sync", to}} {
		if out, err := exec.CommandContext(ctx, cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			return 0, fmt.Errorf("%v: %w: %s", cmd, err, out)
		}
	}
	elapsed := time.Since(start)
	return elapsed, os.Remove(to)
}

// bothSides takes a sample of each side; the one that goes first changes each round.
func (b *pairBench) bothSides(round int, native, nodes func() (Sample, error)) error {
	take := func(list *[]Sample, measure func() (Sample, error)) error {
		s, err := measure()
		*list = append(*list, s)
		return err
	}
	if round%2 == 1 {
		if err := take(&b.result.Nodes, nodes); err != nil {
			return err
		}
		return take(&b.result.Native, native)
	}
	if err := take(&b.result.Native, native); err != nil {
		return err
	}
	return take(&b.result.Nodes, nodes)
}

func sampleOf(done sqlapp.Repeated) Sample {
	return Sample{Units: float64(done.Rounds), Rounds: done.Rounds, Elapsed: time.Duration(done.Nanos)}
}
