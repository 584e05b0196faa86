package bench_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/bench"
)

// TestSummary: a program reads the medians and the ratios in the order of the rounds.
func TestSummary(t *testing.T) {
	sample := func(n float64) bench.Sample { return bench.Sample{Units: n, Rounds: 1, Elapsed: time.Second} }
	r := bench.Report{
		Mount: []bench.Result{{
			Workload: bench.Workload{Name: "normal", Unit: "rows", Target: 0.75},
			Native:   []bench.Sample{sample(100), sample(200), sample(400)},
			Mount:    []bench.Sample{sample(90), sample(100), sample(300)},
		}},
		Moves: []bench.MoveResult{{Workload: bench.MoveWorkload{Name: "handover", Lease: "etcd"}, Gaps: bench.Lags{time.Millisecond}, Acked: 7}},
	}
	b, err := json.Marshal(r.Summary())
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"workloads":[{"name":"normal","what":"","unit":"rows","native":200,"litefs":100,"ratio":0.75,"ratios":[0.9,0.5,0.75],"goal":0.75}],` +
		`"moves":[{"name":"handover","lease":"etcd","gaps-ms":[1],"late":0,"acknowledged":7,"lost":0,"refused":0,"errors":0}]}`
	if string(b) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
}

// TestSummaryOfAnApplication: what one read costs is told apart from how much of a processor it got.
func TestSummaryOfAnApplication(t *testing.T) {
	second := func(cpu time.Duration, n float64) bench.Sample {
		return bench.Sample{Units: n, Rounds: 1, Elapsed: time.Second, CPU: cpu}
	}
	r := bench.Report{Pair: []bench.PairResult{{
		Native: []bench.Sample{second(time.Second, 200_000), second(time.Second/2, 100_000), second(time.Second, 100_000)},
		Nodes:  []bench.Sample{second(time.Second/2, 100_000), second(time.Second/4, 50_000), second(time.Second/2, 50_000)},
	}}}
	got := r.Summary().Workloads[0].App
	if want := (bench.AppSummary{Native: 5, Nodes: 5, NativeShare: 1, NodesShare: 0.5}); got == nil || *got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	r.Pair[0].Native[0].CPU = 0
	if got := r.Summary().Workloads[0].App; got != nil {
		t.Errorf("%+v where it was not measured", *got)
	}
}
