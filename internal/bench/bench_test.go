package bench_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/bench"
	"github.com/litefs/litefs/internal/sqlapp"
)

const childEnv = "LITEFS_BENCH_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		m.Run()
		return
	}
	if err := sqlapp.Serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// run measures for a moment: what is asserted is what was done, never how fast.
func run(t *testing.T, o bench.Options) (map[string]bench.Result, string) {
	t.Helper()
	report, out := runReport(t, o)
	byName := map[string]bench.Result{}
	for _, r := range report.Mount {
		byName[r.Workload.Name] = r
	}
	return byName, out
}

func runReport(t *testing.T, o bench.Options) (bench.Report, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var out bytes.Buffer
	o.Out, o.Dir, o.App = &out, t.TempDir(), sqlapp.Command{Env: []string{childEnv + "=1"}}
	report, err := bench.Run(ctx, o)
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if left, err := os.ReadDir(o.Dir); err != nil || len(left) > 0 {
		t.Errorf("the benchmark left %v (%v)", left, err)
	}
	return report, out.String()
}

func names() (names []string) {
	for _, w := range bench.Workloads() {
		names = append(names, w.Name)
	}
	return names
}

func TestBenchMeasuresEveryWorkloadOnBothSides(t *testing.T) {
	for _, off := range []bool{false, true} {
		results, out := run(t, bench.Options{Only: names(), Duration: 20 * time.Millisecond, Rounds: 2, NoPassthrough: off})
		for _, w := range bench.Workloads() {
			r, ok := results[w.Name]
			if !ok || len(r.Native) != 2 || len(r.Mount) != 2 || r.Ratio() <= 0 {
				t.Errorf("%s: %+v", w.Name, r)
			}
			if !strings.Contains(out, w.Name) {
				t.Errorf("the output does not name %s:\n%s", w.Name, out)
			}
		}
	}
}

func TestBenchRefusesAnUnknownWorkload(t *testing.T) {
	_, err := bench.Run(t.Context(), bench.Options{Only: []string{"nonsense"}})
	if err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("%v, want an error that names it", err)
	}
}

// With passthrough, reading a row asks the daemon for nothing, a commit at synchronous=NORMAL for
// nothing but its share of the checkpoints, and one at FULL for one FSYNC more. A kernel that has no
// passthrough fails here: the speed that is promised is not to be had on it.
func TestRequestsForEachTransaction(t *testing.T) {
	results, out := run(t, bench.Options{Only: []string{"normal", "full", "read"}, Duration: 500 * time.Millisecond, Rounds: 1})
	for _, c := range []struct {
		name string
		want map[string]float64
	}{
		{"read", nil}, {"normal", nil}, {"full", map[string]float64{"FSYNC": 1}},
	} {
		got := results[c.name].Requests()
		total, want := 0.0, 0.0
		for name, n := range got {
			total += n
			want += c.want[name]
		}
		// A checkpoint each thousand pages; and what the first statements ask for, and a log that is synced
		// beside them, which is much of the whole where few transactions fit into the time.
		const share, once = 0.1, 50
		done := 0
		for _, s := range results[c.name].Mount {
			done += s.Rounds
		}
		if more := total - want; more < 0 || more > share+once/float64(done) {
			t.Errorf("%s: %.3f requests for each of %d transactions (%v), want %v and less than %v more\n%s", c.name, total, done, got, want, share, out)
		}
	}
}

// pairOptions are those of a short run of two nodes, with the command built from this tree.
func pairOptions(t *testing.T, only ...string) bench.Options {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "litefs")
	if out, err := exec.Command("go", "build", "-o", binary, "github.com/litefs/litefs/cmd/litefs").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bench.Options{Binary: binary, Only: only, Duration: 100 * time.Millisecond, Rounds: 1, CatchupSize: 1 << 20}
}

func TestBenchMeasuresTwoNodes(t *testing.T) {
	o := pairOptions(t, "lag", "replica-insert", "replica-read", "catchup", "quorum", "soak")
	report, out := runReport(t, o)
	if len(report.Pair) != len(o.Only) {
		t.Fatalf("%d results, want %d\n%s", len(report.Pair), len(o.Only), out)
	}
	for _, r := range report.Pair {
		name := r.Workload.Name
		if !strings.Contains(out, name) {
			t.Errorf("the output does not name %s:\n%s", name, out)
		}
		if r.Workload.Unit != "" && (len(r.Native) != o.Rounds || len(r.Nodes) != o.Rounds || r.Ratio() <= 0) {
			t.Errorf("%s: %+v", name, r)
		}
		for _, lags := range r.Lags {
			if len(lags) == 0 {
				t.Errorf("%s measured no lag", name)
			}
		}
		for _, q := range r.Quorum {
			if len(q.Fsync) == 0 || len(q.Full) == 0 || len(q.One) == 0 || q.ManySpeed <= 0 {
				t.Errorf("%s: %+v", name, q)
			}
		}
		if r.Workload.Unit == "" && len(r.Lags) == 0 && len(r.Quorum) == 0 {
			t.Errorf("%s measured no round", name)
		}
	}
}

func TestBenchMovesTheRole(t *testing.T) {
	o := pairOptions(t, "handover-etcd") // that of one service
	o.Rounds = 2
	report, out := runReport(t, o)
	if len(report.Moves) != 1 {
		t.Fatalf("%d results, want 1\n%s", len(report.Moves), out)
	}
	r := report.Moves[0]
	if len(r.Gaps) != o.Rounds || r.Gaps[0] <= 0 || r.Acked == 0 || r.Lost != 0 {
		t.Errorf("%+v\n%s", r, out)
	}
	if want := "2 moves, gaps: min"; !strings.Contains(out, want) {
		t.Errorf("the output has no %q:\n%s", want, out)
	}
}

func TestLagQuantiles(t *testing.T) {
	var lags bench.Lags
	for i := range 100 {
		lags = append(lags, time.Duration(i)*time.Millisecond)
	}
	for _, c := range []struct{ got, want any }{
		{lags.Quantile(0.5), 50 * time.Millisecond},
		{lags.Quantile(0.99), 99 * time.Millisecond},
		{lags.Quantile(1), 99 * time.Millisecond},
		{lags.Within(4 * time.Millisecond), 0.05},
		{bench.Lags(nil).Quantile(0.5), time.Duration(0)},
	} {
		if c.got != c.want {
			t.Errorf("got %v, want %v", c.got, c.want)
		}
	}
}

// The archive gets all of a steady load, and both nodes insert.
func TestArchive(t *testing.T) {
	report, out := runReport(t, pairOptions(t, "archive-file"))
	if len(report.Archive) != 1 || len(report.Mount) > 0 {
		t.Fatalf("%+v", report)
	}
	r := report.Archive[0]
	if len(r.Lags) == 0 || r.Requests <= 0 || len(r.With.Samples) != 1 || len(r.Without.Samples) != 1 || r.With.Samples[0].Units == 0 || r.With.CPU <= 0 || r.With.AppCPU <= 0 {
		t.Errorf("%+v", r)
	}
	if !strings.Contains(out, "requests a second") || len(report.Summary().Archive) != 1 {
		t.Errorf("the report says\n%s", out)
	}
}
