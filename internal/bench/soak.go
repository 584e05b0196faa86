package bench

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
)

// A long load prints at most maxSoakSteps lines, not more often than each soakStep, and two at least.
const (
	maxSoakSteps = 20
	soakStep     = 10 * time.Second
)

// soak keeps a steady load up, in steps, and prints after each what must not grow: the lag, the memory
// of both nodes, and their write-ahead logs.
func (b *pairBench) soak(ctx context.Context, round int) error {
	const name = "soak.db"
	b.out.printf("%8s  %s\n", "", "lag; anonymous memory of primary and replica; their write-ahead logs")
	steps := int(min(max(b.o.Duration/soakStep, 2), maxSoakSteps))
	each := b.o.Duration / time.Duration(steps)
	for step := range steps {
		primary, replica, err := b.soakTable(ctx, name, step)
		if err != nil {
			return err
		}
		_, lags, err := b.runLoad(ctx, load{path: primary, watched: replica, step: pacedRow, every: paceEvery, look: 500 * time.Microsecond}, each)
		if err != nil {
			return err
		}
		b.result.Lags = append(b.result.Lags, lags)
		line, err := b.soakLine(name)
		if err != nil {
			return err
		}
		b.out.printf("%7.0fs  %s; %s\n", (each * time.Duration(step+1)).Seconds(), lags, line)
	}
	return nil
}

// soakTable empties the table of the last step, which keeps the database from growing.
func (b *pairBench) soakTable(ctx context.Context, name string, step int) (primary, replica string, err error) {
	primary, replica = b.p.primary.path(name), b.p.replica.path(name)
	if step == 0 {
		_, _, err := b.replicated(ctx, name, noRows)
		return primary, replica, err
	}
	w, err := b.open(ctx, b.writer, primary)
	if err != nil {
		return "", "", err
	}
	if _, err := w.Exec(ctx, "DELETE FROM t"); err != nil {
		return "", "", err
	}
	if err := w.Close(ctx); err != nil {
		return "", "", err
	}
	return primary, replica, b.p.caughtUp(ctx, name)
}

func (b *pairBench) soakLine(name string) (string, error) {
	var memory, wals []string
	for _, m := range []*member{b.p.primary, b.p.replica} {
		kb, err := anonymousMemory(m.proc.PID())
		if err != nil {
			return "", err
		}
		wal, err := m.walSize(name)
		if err != nil {
			return "", err
		}
		memory = append(memory, fmt.Sprintf("%.1f MB", float64(kb)/1000))
		wals = append(wals, fmt.Sprintf("%.1f MB", float64(wal)/1e6))
	}
	return strings.Join(memory, " + ") + "; " + strings.Join(wals, " + "), nil
}

// anonymousMemory returns the RssAnon of a process, in kB.
func anonymousMemory(pid int) (kb int64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read the memory of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			if _, err := fmt.Sscanf(strings.TrimSpace(value), "%d kB", &kb); err != nil {
				return 0, fmt.Errorf("memory of process %d: %w", pid, err)
			}
		}
	}
	return kb, nil
}
