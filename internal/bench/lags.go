package bench

import (
	"fmt"
	"slices"
	"time"

	"github.com/litefs/litefs/internal/sqlapp"
)

// Lags are the times from a commit to when it was seen on the replica, in ascending order. What was
// seen before the commit returned to its application counts as 0.
type Lags []time.Duration

// lagsOf matches commits with what was seen. ends[i] is when the commit of value i+1 returned; what was
// seen of a value was seen of all before it.
func lagsOf(ends []int64, seen []sqlapp.Seen) (Lags, error) {
	lags := make(Lags, 0, len(ends))
	for _, s := range seen {
		for int64(len(lags)) < min(s.Value, int64(len(ends))) {
			lags = append(lags, max(0, time.Duration(s.Nanos-ends[len(lags)])))
		}
	}
	if len(lags) < len(ends) {
		return nil, fmt.Errorf("the replica showed %d of %d transactions", len(lags), len(ends))
	}
	slices.Sort(lags)
	return lags, nil
}

// Quantile returns the lag that a part q of all does not exceed.
func (l Lags) Quantile(q float64) time.Duration {
	if len(l) == 0 {
		return 0
	}
	return quantile(l, q)
}

// quantile returns the value that a part q of all does not exceed; they ascend, and there is one.
func quantile[S ~[]E, E any](values S, q float64) E {
	return values[min(int(q*float64(len(values))), len(values)-1)]
}

// Within returns which part of all is at most d.
func (l Lags) Within(d time.Duration) float64 {
	n, _ := slices.BinarySearch(l, d+1)
	return float64(n) / float64(max(1, len(l)))
}

func (l Lags) String() string {
	return fmt.Sprintf("p50 %.2f ms, p99 %.2f ms, max %.1f ms, %.2f %% within 5 ms",
		millis(l.Quantile(0.5)), millis(l.Quantile(0.99)), millis(l.Quantile(1)), 100*l.Within(5*time.Millisecond))
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
