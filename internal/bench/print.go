package bench

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// printer writes the report line by line and keeps the first error of the writer.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

func (p *printer) begin(o Options) {
	p.printf("%d rounds of %s a side, in turns; medians; passthrough %s\n", o.Rounds, o.Duration, map[bool]string{true: "switched off", false: "where the kernel has it"}[o.NoPassthrough])
}

func (p *printer) mountHead() {
	p.printf("\n%-11s  %10s  %10s  %6s  %-11s  %6s  %s\n", "", "native/s", "mount/s", "ratio", "(of rounds)", "goal", "FUSE requests for each repetition")
}

func (p *printer) result(r Result) {
	var native, mount, ratios []float64
	for i := range r.Native {
		native, mount = append(native, r.Native[i].Speed()), append(mount, r.Mount[i].Speed())
		ratios = append(ratios, r.Mount[i].Speed()/r.Native[i].Speed())
	}
	verdict := ""
	if r.Ratio() < r.Workload.Target {
		verdict = "  below the goal"
	}
	goal := ""
	if r.Workload.Target > 0 {
		goal = fmt.Sprintf("%.2f", r.Workload.Target)
	}
	p.printf("%-11s  %10.0f  %10.0f  %6.2f  (%.2f-%.2f)  %6s  %s%s\n", r.Workload.Name, median(native), median(mount),
		r.Ratio(), slices.Min(ratios), slices.Max(ratios), goal, requests(r.Requests()), verdict)
	p.printf("             %s, %s a second\n", r.Workload.What, r.Workload.Unit)
}

// maxNames bounds how many kinds of requests are named in a line.
const maxNames = 16

// requests prints the counts, the largest first.
func requests(counts map[string]float64) string {
	names := make([]string, 0, len(counts))
	total := 0.0
	for name, n := range counts {
		names = append(names, name)
		total += n
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), strings.Compare(a, b))
	})
	var b strings.Builder
	fmt.Fprintf(&b, "%.3f", total)
	for i, name := range names {
		if i == maxNames || counts[name] < 0.0005 {
			break
		}
		fmt.Fprintf(&b, " %s %.3f", name, counts[name])
	}
	return b.String()
}

// memory prints the memory of this process, which is the node's but for the benchmark's own few bytes.
func (p *printer) memory() error {
	kb, err := anonymousMemory(os.Getpid())
	p.printf("\nanonymous memory of the node at the end: %d kB\n", kb)
	return err
}

func (p *printer) pairHead() {
	p.printf("\n%-14s  %12s  %12s  %6s  %-11s  %6s\n", "two nodes", "native/s", "nodes/s", "ratio", "(of rounds)", "goal")
}

func (p *printer) pairResult(r PairResult) {
	if len(r.Native) > 0 {
		var native, nodes, ratios []float64
		for i := range r.Native {
			native, nodes = append(native, r.Native[i].Speed()), append(nodes, r.Nodes[i].Speed())
			ratios = append(ratios, r.Nodes[i].Speed()/r.Native[i].Speed())
		}
		verdict := ""
		if r.Ratio() < r.Workload.Target {
			verdict = "  below the goal"
		}
		p.printf("%-14s  %12.0f  %12.0f  %6.2f  (%.2f-%.2f)  %6.2f%s\n", r.Workload.Name, median(native), median(nodes),
			r.Ratio(), slices.Min(ratios), slices.Max(ratios), r.Workload.Target, verdict)
	}
	if use := r.processor(); use != nil {
		p.printf("%-14s  processor time of one: native %.2f us, on the nodes %.2f us; share of a processor that the application got: %.2f and %.2f\n",
			r.Workload.Name, use.Native, use.Nodes, use.NativeShare, use.NodesShare)
	}
	for i, lags := range r.Lags {
		if r.Workload.Name != soakName {
			p.printf("%-14s  lag in round %d: %s\n", r.Workload.Name, i+1, lags)
		}
	}
	if len(r.Quorum) > 0 {
		p.quorumResult(r.Quorum)
	}
	if len(r.CPU) > 0 {
		var primary, replica []float64
		for _, c := range r.CPU {
			primary, replica = append(primary, float64(c[0].Microseconds())), append(replica, float64(c[1].Microseconds()))
		}
		p.printf("%-14s  processor time of a transaction: primary %.0f us, replica %.0f us\n", r.Workload.Name, median(primary), median(replica))
	}
	p.printf("%-14s  %s", r.Workload.Name, r.Workload.What)
	if r.Workload.Unit != "" {
		p.printf("; %s a second", r.Workload.Unit)
	}
	p.printf("\n")
}

func (p *printer) movesHead() {
	p.printf("\ntwo nodes, the role moves to and fro. On each two probes write every millisecond, without a busy\n" +
		"time-out (one may be at work on a checkpoint, which holds up no other writer): a gap is the longest time\n" +
		"of a move in which none succeeds. Beside them an application with a busy\n" +
		"time-out of 1 s. It goes to the other node when the one that it is on refuses a write and is not the\n" +
		"primary any more (counted as refused); whatever else it or a probe is told is an error.\n\n")
}

func (p *printer) moves(r MoveResult) {
	w := r.Workload
	p.printf("%s (%s): %s\n", w.Name, w.Lease, w.What)
	g := r.Gaps
	p.printf("  %d moves, gaps: min %.0f, p50 %.0f, p90 %.0f, p99 %.0f, max %.0f ms\n", len(g), millis(g.Quantile(0)), millis(g.Quantile(0.5)),
		millis(g.Quantile(0.9)), millis(g.Quantile(0.99)), millis(g.Quantile(1)))
	if w.Bound > 0 {
		p.printf("  %d of %d within TTL + lock-delay + 1 s = %s\n", len(g)-r.Late(), len(g), w.Bound)
	}
	p.printf("  %d transactions acknowledged, %d of them lost; application: %d errors, %d times refused", r.Acked, r.Lost, r.Errors, r.Refused)
	for _, said := range r.Said {
		p.printf("\n    %s", said)
	}
	p.printf("\n")
}
