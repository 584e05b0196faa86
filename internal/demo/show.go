package demo

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// writeEvery is the pace of the writer, one row and one transaction at a time.
	writeEvery = 5 * time.Millisecond
	// readEvery is how long a reader waits between two looks: lags are not told finer than that.
	readEvery = time.Millisecond
)

// board is what the applications have seen, for the reports.
type board struct {
	mu        sync.Mutex
	began     time.Time
	written   int64               // the last row that is committed
	committed map[int64]time.Time // rows that a replica has not shown yet, and when their commit returned
	replicas  []lag
}

// lag is one replica's.
type lag struct {
	read       int64         // the newest row that its reader saw
	last, most time.Duration // from the return of a row's commit to the first read that saw it
}

// show writes, reads and reports until ctx ends or all reports are printed.
func (d *demo) show(ctx context.Context) error {
	b := &board{began: time.Now(), committed: make(map[int64]time.Time), replicas: make([]lag, len(d.nodes)-1)}
	errReported := errors.New("all reports are printed")
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.write(ctx, b) })
	for i := range b.replicas {
		g.Go(func() error { return d.read(ctx, b, i) })
	}
	g.Go(func() error {
		if err := d.reports(ctx, b); err != nil {
			return err
		}
		return errReported
	})
	if err := g.Wait(); !errors.Is(err, errReported) {
		return err
	}
	return nil
}

// write commits one row after the other.
func (d *demo) write(ctx context.Context, b *board) error {
	tick := time.NewTicker(writeEvery)
	defer tick.Stop()
	for {
		// What was begun is finished: the pipe to the application is of no use after half an answer.
		stepCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepWait)
		_, err := d.nodes[0].conn.Exec(stepCtx, "INSERT INTO messages(body, at) VALUES ('row written on the primary', strftime('%Y-%m-%d %H:%M:%f', 'now'))")
		cancel()
		if err != nil {
			return fmt.Errorf("write on the primary: %w", err)
		}
		b.wrote(time.Now())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// read looks for the newest row on the ith replica.
func (d *demo) read(ctx context.Context, b *board, i int) error {
	n := d.nodes[i+1]
	tick := time.NewTicker(readEvery)
	defer tick.Stop()
	for {
		stepCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepWait)
		rows, err := n.conn.Query(stepCtx, "SELECT coalesce(max(id), 0) FROM messages")
		cancel()
		if err != nil {
			return fmt.Errorf("read on the %s: %w", n.role, err)
		}
		row, ok := rows[0][0].(int64)
		if !ok {
			return fmt.Errorf("read on the %s: newest row is %v (%[2]T), want an integer", n.role, rows[0][0])
		}
		b.saw(i, row, time.Now())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// wrote notes that the next row is committed.
func (b *board) wrote(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.written++
	b.committed[b.written] = now
}

// saw notes that the ith replica shows row.
func (b *board) saw(i int, row int64, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := &b.replicas[i]
	if row == l.read {
		return
	}
	l.last = 0 // a row whose writer was not told yet
	if at, ok := b.committed[l.read+1]; ok {
		l.last = now.Sub(at) // of the oldest that is new: it has waited longest
	}
	l.read, l.most = row, max(l.most, l.last)
	everywhere := row
	for _, other := range b.replicas {
		everywhere = min(everywhere, other.read)
	}
	for id := range b.committed {
		if id <= everywhere {
			delete(b.committed, id)
		}
	}
}

// reports prints what is on the board, each interval.
func (d *demo) reports(ctx context.Context, b *board) error {
	tick := time.NewTicker(d.Interval)
	defer tick.Stop()
	for n := 0; d.Lines == 0 || n < d.Lines; n++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if d.Terminal {
			d.panel(b, n == 0)
		} else {
			d.line(b)
		}
	}
	return nil
}

// line prints the board as one line.
func (d *demo) line(b *board) {
	b.mu.Lock()
	defer b.mu.Unlock()
	d.printf("%5.1f s  %d rows written", time.Since(b.began).Seconds(), b.written)
	for i, l := range b.replicas {
		d.printf("  |  %s: %d read, lag %s, at most %s", d.nodes[i+1].role, l.read, millis(l.last), millis(l.most))
	}
	d.printf("\n")
}

// panel prints the board in the place where it was printed last.
func (d *demo) panel(b *board, first bool) {
	const up, clear = "\x1b[%dA", "\x1b[K"
	b.mu.Lock()
	defer b.mu.Unlock()
	if !first {
		d.printf(up, len(d.nodes)+1)
	}
	d.printf("%-9s  %10s  %12s  %12s"+clear+"\n", "", "rows", "lag", "at most")
	d.printf("%-9s  %10d"+clear+"\n", d.nodes[0].role, b.written)
	for i, l := range b.replicas {
		d.printf("%-9s  %10d  %12s  %12s"+clear+"\n", d.nodes[i+1].role, l.read, millis(l.last), millis(l.most))
	}
}

func millis(d time.Duration) string { return fmt.Sprintf("%.1f ms", d.Seconds()*1000) }
