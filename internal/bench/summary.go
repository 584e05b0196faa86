package bench

import (
	"slices"
	"time"
)

// Summary is what the report says, for programs: medians over the rounds. Times are in milliseconds, speeds in units a
// second.
type Summary struct {
	Workloads []WorkloadSummary `json:"workloads"`
	Moves     []MoveSummary     `json:"moves,omitempty"`
	Archive   []ArchiveSummary  `json:"archive,omitempty"`
}

// WorkloadSummary is one workload of one node, or of two.
type WorkloadSummary struct {
	Name     string             `json:"name"`
	What     string             `json:"what"`
	Unit     string             `json:"unit,omitempty"`
	Native   float64            `json:"native,omitempty"`
	Litefs   float64            `json:"litefs,omitempty"`
	Ratio    float64            `json:"ratio,omitempty"`
	Ratios   []float64          `json:"ratios,omitempty"` // of the rounds
	Goal     float64            `json:"goal,omitempty"`
	Requests map[string]float64 `json:"fuse-requests,omitempty"` // for each repetition
	LagP50   []float64          `json:"lag-p50-ms,omitempty"`    // of the rounds
	LagP99   []float64          `json:"lag-p99-ms,omitempty"`
	CPU      *CPUSummary        `json:"processor-time-of-a-transaction,omitempty"`
	App      *AppSummary        `json:"processor-of-the-application,omitempty"`
	Quorum   []QuorumSummary    `json:"quorum,omitempty"` // of the rounds
}

// AppSummary is what processor the application got on both sides: medians. It tells what is dearer from what is held up.
type AppSummary struct {
	Native      float64 `json:"native-us"` // processor time of one unit, in microseconds
	Nodes       float64 `json:"litefs-us"`
	NativeShare float64 `json:"native-share"` // of one processor: 1 is all of the time
	NodesShare  float64 `json:"litefs-share"`
}

// CPUSummary is processor time in microseconds.
type CPUSummary struct {
	Primary float64 `json:"primary-us"`
	Replica float64 `json:"replica-us"`
}

// QuorumSummary is one round of commits that wait for a replica: medians, and transactions a second.
type QuorumSummary struct {
	Fsync float64 `json:"fsync-ms"`
	Full  float64 `json:"wal-full-ms"`
	One   float64 `json:"commit-ms"`
	Alone float64 `json:"one-database-tps"`
	Many  float64 `json:"many-databases-tps"`
}

// ArchiveSummary is one place of the archive.
type ArchiveSummary struct {
	Place      string  `json:"place"`
	LagP50     float64 `json:"lag-p50-ms"`
	LagP99     float64 `json:"lag-p99-ms"`
	Requests   float64 `json:"requests-a-second"`
	Ratio      float64 `json:"inserts-with-to-without"` // the median
	Low        float64 `json:"inserts-with-to-without-lower-quartile"`
	High       float64 `json:"inserts-with-to-without-upper-quartile"`
	WithCPU    float64 `json:"with-us"` // processor time of the node for an insert
	WithoutCPU float64 `json:"without-us"`
	ServerCPU  float64 `json:"server-us,omitempty"` // of the S3 server
}

// MoveSummary is one way in which the primary role moves.
type MoveSummary struct {
	Name    string    `json:"name"`
	Lease   string    `json:"lease"`
	Gaps    []float64 `json:"gaps-ms"` // ascending
	Bound   float64   `json:"bound-ms,omitempty"`
	Late    int       `json:"late"`
	Acked   int       `json:"acknowledged"`
	Lost    int       `json:"lost"`
	Refused int       `json:"refused"`
	Errors  int       `json:"errors"`
}

// Summary returns what was found.
func (r Report) Summary() Summary {
	s := Summary{Workloads: []WorkloadSummary{}}
	for _, m := range r.Mount {
		w := WorkloadSummary{Name: m.Workload.Name, What: m.Workload.What, Unit: m.Workload.Unit, Goal: m.Workload.Target, Requests: m.Requests()}
		w.speeds(m.Native, m.Mount)
		s.Workloads = append(s.Workloads, w)
	}
	for _, a := range r.Archive {
		ratios := a.Ratios()
		s.Archive = append(s.Archive, ArchiveSummary{
			Place: a.Place, LagP50: millis(a.Lags.Quantile(0.5)), LagP99: millis(a.Lags.Quantile(0.99)), Requests: a.Requests,
			Ratio: quantile(ratios, 0.5), Low: quantile(ratios, 0.25), High: quantile(ratios, 0.75),
			WithCPU: micros(a.With.CPU), WithoutCPU: micros(a.Without.CPU), ServerCPU: micros(a.ServerCPU),
		})
	}
	for _, p := range r.Pair {
		w := WorkloadSummary{Name: p.Workload.Name, What: p.Workload.What, Unit: p.Workload.Unit, Goal: p.Workload.Target}
		w.speeds(p.Native, p.Nodes)
		for _, lags := range p.Lags {
			w.LagP50, w.LagP99 = append(w.LagP50, millis(lags.Quantile(0.5))), append(w.LagP99, millis(lags.Quantile(0.99)))
		}
		w.App = p.processor()
		var primary, replica []float64
		for _, c := range p.CPU {
			primary, replica = append(primary, micros(c[0])), append(replica, micros(c[1]))
		}
		if len(primary) > 0 {
			w.CPU = &CPUSummary{Primary: median(primary), Replica: median(replica)}
		}
		for _, q := range p.Quorum {
			w.Quorum = append(w.Quorum, QuorumSummary{
				Fsync: millis(q.Fsync.Quantile(0.5)), Full: millis(q.Full.Quantile(0.5)), One: millis(q.One.Quantile(0.5)),
				Alone: q.OneSpeed, Many: q.ManySpeed,
			})
		}
		s.Workloads = append(s.Workloads, w)
	}
	for _, m := range r.Moves {
		move := MoveSummary{
			Name: m.Workload.Name, Lease: m.Workload.Lease, Bound: millis(m.Workload.Bound), Gaps: []float64{},
			Late: m.Late(), Acked: m.Acked, Lost: m.Lost, Refused: m.Refused, Errors: m.Errors,
		}
		for _, g := range m.Gaps {
			move.Gaps = append(move.Gaps, millis(g))
		}
		s.Moves = append(s.Moves, move)
	}
	return s
}

func (w *WorkloadSummary) speeds(native, litefs []Sample) {
	if len(native) == 0 {
		return
	}
	var a, b []float64
	for i := range native {
		a, b = append(a, native[i].Speed()), append(b, litefs[i].Speed())
		w.Ratios = append(w.Ratios, litefs[i].Speed()/native[i].Speed())
	}
	w.Native, w.Litefs, w.Ratio = median(a), median(b), median(slices.Clone(w.Ratios))
}

// processor is nil where that was not measured.
func (r PairResult) processor() *AppSummary {
	if len(r.Native) == 0 || r.Native[0].CPU == 0 {
		return nil
	}
	of := func(samples []Sample) (each, share float64) {
		var eachs, shares []float64
		for _, s := range samples {
			eachs, shares = append(eachs, micros(s.CPU)/s.Units), append(shares, float64(s.CPU)/float64(s.Elapsed))
		}
		return median(eachs), median(shares)
	}
	var a AppSummary
	a.Native, a.NativeShare = of(r.Native)
	a.Nodes, a.NodesShare = of(r.Nodes)
	return &a
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
