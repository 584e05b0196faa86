package e2e

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// A history is what clients did and were told. Each write inserts a row under the next id, max(id)+1, which
// the acknowledgement tells: it is the token by which writes of all nodes are in one order. The checker
// knows nothing of nodes, leases or the network; it compares what clients were told with the rows that are
// in the cluster in the end, and with those in its nodes' lost+found.

// rowKey names a write: a client counts its own.
type rowKey struct {
	client int
	n      int64
}

type outcome int

const (
	acked   outcome = iota
	refused         // SQLite says that it was not done
	unknown         // it may have been done
)

// attempt is one write. Its times are of one clock.
type attempt struct {
	rowKey
	begin, end time.Duration
	outcome    outcome
	id         int64 // of its row, if it was acknowledged

	// unwatched says that the daemon below it was stopped: there is nobody to fence such a writer.
	unwatched bool
}

// verdict is what the checker found.
type verdict struct {
	kept, lost int // acknowledged writes in the cluster, and in some lost+found
	unwatched  int // of the lost ones, those that came too late below a daemon that was stopped

	// overlap is for how long a node that ran has acknowledged after another one had become the primary.
	overlap time.Duration

	faults []string
}

func (v *verdict) fault(format string, args ...any) {
	const enough = 20
	if len(v.faults) < enough {
		v.faults = append(v.faults, fmt.Sprintf(format, args...))
	}
}

// judge checks a history against the rows in the end. slack is the longest overlap that is forgiven: a
// daemon that gets no processor fences late.
func judge(history []attempt, final map[rowKey]int64, tails []map[rowKey]int64, slack time.Duration) (v verdict) {
	var kept []attempt
	for _, a := range history {
		id, in := final[a.rowKey]
		switch {
		case a.outcome == refused && in:
			v.fault("%v was refused and is in the cluster", a.rowKey)
		case a.outcome == acked && in && id != a.id:
			v.fault("%v was acknowledged as %d and is in the cluster as %d", a.rowKey, a.id, id)
		case a.outcome == acked && in:
			v.kept++
			kept = append(kept, a)
		case a.outcome == acked && !slices.ContainsFunc(tails, func(rows map[rowKey]int64) bool {
			id, in := rows[a.rowKey]
			return in && id == a.id
		}):
			v.fault("%v was acknowledged as %d and is nowhere", a.rowKey, a.id)
		case a.outcome == acked:
			v.lost++
		}
	}
	v.order(kept)
	for _, tail := range tails {
		v.branch(history, kept, final, tail, slack)
	}
	return v
}

// order checks that the tokens of what is in the cluster are in the order that clients saw.
func (v *verdict) order(kept []attempt) {
	slices.SortFunc(kept, func(a, b attempt) int { return cmp.Compare(a.id, b.id) })
	first := time.Duration(1<<63 - 1) // when the first of those with greater tokens was acknowledged
	for _, a := range slices.Backward(kept) {
		if a.begin > first {
			v.fault("%v has token %d and began %v after a greater one was acknowledged", a.rowKey, a.id, a.begin-first)
		}
		first = min(first, a.end)
	}
}

// branch checks a database that has forked from the cluster's. Who is the only primary has all that was
// acknowledged before and is kept; so what was written to the branch began before anything was
// acknowledged that is in the cluster and not in the branch.
func (v *verdict) branch(history, kept []attempt, final, tail map[rowKey]int64, slack time.Duration) {
	left := time.Duration(1<<63 - 1) // when the first that the branch lacks was acknowledged
	for _, a := range kept {
		if _, in := tail[a.rowKey]; !in {
			left = min(left, a.end)
		}
	}
	for _, a := range history {
		_, in := tail[a.rowKey]
		_, back := final[a.rowKey]
		late := a.begin - left
		switch {
		case a.outcome != acked || !in || back || late <= 0:
		case a.unwatched:
			v.unwatched++
		default:
			v.overlap = max(v.overlap, late)
			if late > slack {
				v.fault("two primaries: %v was acknowledged as %d, on a branch, and began %v after another node had acknowledged what is not on it", a.rowKey, a.id, late)
			}
		}
	}
}

// The checker finds each fault that it is for, and nothing in a history without.
func TestHistory(t *testing.T) {
	at := func(client int, n int64, begin, end int, o outcome, id int64) attempt {
		return attempt{rowKey: rowKey{client, n}, begin: time.Duration(begin) * time.Second, end: time.Duration(end) * time.Second, outcome: o, id: id}
	}
	row := func(client int, n int64) rowKey { return rowKey{client, n} }
	stopped := at(2, 1, 5, 6, acked, 2)
	stopped.unwatched = true
	tail := []map[rowKey]int64{{row(1, 1): 1, row(2, 1): 2}}
	for _, c := range []struct {
		name    string
		history []attempt
		final   map[rowKey]int64
		tails   []map[rowKey]int64
		want    string // in the fault; "": none
	}{
		{"in order", []attempt{at(1, 1, 0, 1, acked, 1), at(1, 2, 1, 2, refused, 0), at(2, 1, 2, 3, acked, 2), at(2, 2, 3, 4, unknown, 0)},
			map[rowKey]int64{row(1, 1): 1, row(2, 1): 2, row(2, 2): 3}, nil, ""},
		{"a tail that was written before the next primary", []attempt{at(1, 1, 0, 1, acked, 1), at(2, 1, 1, 2, acked, 2), at(3, 1, 5, 6, acked, 2)},
			map[rowKey]int64{row(1, 1): 1, row(3, 1): 2}, tail, ""},
		{"lost without a trace", []attempt{at(1, 1, 0, 1, acked, 1), at(1, 2, 1, 2, acked, 2)}, map[rowKey]int64{row(1, 1): 1}, nil, "is nowhere"},
		{"another row in its place", []attempt{at(1, 1, 0, 1, acked, 1)}, map[rowKey]int64{row(1, 1): 7}, nil, "is in the cluster as 7"},
		{"done though refused", []attempt{at(1, 1, 0, 1, refused, 0)}, map[rowKey]int64{row(1, 1): 1}, nil, "was refused"},
		{"an order that clients saw otherwise", []attempt{at(1, 1, 3, 4, acked, 1), at(2, 1, 0, 1, acked, 2)},
			map[rowKey]int64{row(1, 1): 1, row(2, 1): 2}, nil, "has token 1 and began 2s after"},
		{"two primaries", []attempt{at(1, 1, 0, 1, acked, 1), at(3, 1, 2, 3, acked, 2), at(2, 1, 5, 6, acked, 2)},
			map[rowKey]int64{row(1, 1): 1, row(3, 1): 2}, tail, "two primaries"},
		{"two primaries, the old one far ahead", []attempt{at(1, 1, 0, 1, acked, 1), at(3, 1, 2, 3, acked, 2), at(2, 1, 5, 6, acked, 9)},
			map[rowKey]int64{row(1, 1): 1, row(3, 1): 2}, []map[rowKey]int64{{row(1, 1): 1, row(2, 1): 9}}, "two primaries"},
		{"a writer below a daemon that is stopped", []attempt{at(1, 1, 0, 1, acked, 1), at(3, 1, 2, 3, acked, 2), stopped},
			map[rowKey]int64{row(1, 1): 1, row(3, 1): 2}, tail, ""},
	} {
		v := judge(c.history, c.final, c.tails, time.Second)
		got := strings.Join(v.faults, "; ")
		if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
