package e2e

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
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

	lostSpan time.Duration // at level max-lag: from the first to the last acknowledgement that was lost with one reign

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

// sight is what a read of the greatest token saw.
type sight struct {
	client, life int // life counts the connections of the client: another one may be to a node that was started anew
	begin, end   time.Duration
	id           int64
	primary      bool // the node let it have the lock that writers take
	unwatched    bool
}

// quorumVerdict is what the checker found at level quorum.
type quorumVerdict struct {
	verdict
	writes, reads, replicaReads int
	late                        int // reads of a node that had ceased to be the primary
}

// token is one operation on the greatest token: a write makes the next one of it.
type token struct {
	write bool
	id    int64
}

// tokens is the one order that writes, and reads of the primary, must have.
var tokens = porcupine.Model{
	Init: func() any { return int64(0) },
	Step: func(state, in, out any) (bool, any) {
		at, op := state.(int64), in.(token)
		if op.write {
			return op.id == at+1, op.id
		}
		return op.id == at, at
	},
	DescribeOperation: func(in, _ any) string { return fmt.Sprintf("%+v", in) },
}

// judgeQuorum checks that writes and reads of the primary are linearizable, and that no connection sees less than it has
// seen. A write of unknown outcome counts where it is in the cluster in the end. A read on a node that has lost its lease
// is late by the time since the first write was acknowledged that it does not see; slack is forgiven, as in judge.
func judgeQuorum(history []attempt, seen []sight, final map[rowKey]int64, slack time.Duration) (q quorumVerdict) {
	const never = int64(1) << 60
	var ops []porcupine.Operation
	ended := make(map[int64]time.Duration) // by token: when it was acknowledged
	for _, a := range history {
		id, in := final[a.rowKey]
		end := int64(a.end)
		switch {
		case a.outcome == acked:
			id = a.id
			ended[id] = a.end
		case a.outcome == unknown && in:
			end = never
		default:
			continue
		}
		q.writes++
		ops = append(ops, porcupine.Operation{ClientId: a.client, Input: token{true, id}, Call: int64(a.begin), Return: end})
	}
	type connection struct{ client, life int }
	newest := make(map[connection]int64)
	slices.SortFunc(seen, func(a, b sight) int { return cmp.Compare(a.begin, b.begin) })
	for _, s := range seen {
		c := connection{s.client, s.life}
		if s.id < newest[c] {
			q.fault("client %d saw %d, and then, at %v, %d", s.client, newest[c], s.begin, s.id)
		}
		newest[c] = max(newest[c], s.id)
		if !s.primary {
			q.replicaReads++
			continue
		}
		if next, ok := ended[s.id+1]; ok && s.begin > next {
			q.late++
			switch {
			case s.unwatched:
				q.unwatched++
			case s.begin-next > slack:
				q.fault("client %d read %d as the primary, %v after %d was acknowledged", s.client, s.id, s.begin-next, s.id+1)
			default:
				q.overlap = max(q.overlap, s.begin-next)
			}
			continue
		}
		q.reads++
		ops = append(ops, porcupine.Operation{ClientId: s.client, Input: token{false, s.id}, Call: int64(s.begin), Return: int64(s.end)})
	}
	switch porcupine.CheckOperationsTimeout(tokens, ops, time.Minute) {
	case porcupine.Illegal:
		q.fault("%d writes and %d reads of the primary have no order", q.writes, q.reads)
	case porcupine.Unknown:
		q.fault("no order of %d writes and %d reads was found in a minute", q.writes, q.reads)
	}
	return q
}

// The checker of level quorum finds each fault that it is for, and nothing in a history without.
func TestHistoryQuorum(t *testing.T) {
	write := func(client int, n int64, begin, end int, o outcome, id int64) attempt {
		return attempt{rowKey: rowKey{client, n}, begin: time.Duration(begin) * time.Second, end: time.Duration(end) * time.Second, outcome: o, id: id}
	}
	read := func(client, begin, end int, primary bool, id int64) sight {
		return sight{client: client, begin: time.Duration(begin) * time.Second, end: time.Duration(end) * time.Second, primary: primary, id: id}
	}
	writes := []attempt{write(1, 1, 0, 1, acked, 1), write(2, 1, 2, 4, unknown, 0), write(1, 2, 5, 6, acked, 3), write(2, 2, 7, 8, refused, 0)}
	final := map[rowKey]int64{{1, 1}: 1, {2, 1}: 2, {1, 2}: 3}
	for _, c := range []struct {
		name string
		seen []sight
		want string // in the fault; "": none
	}{
		{"in order", []sight{read(3, 1, 2, true, 1), read(3, 2, 4, true, 2), read(4, 5, 6, true, 2), read(4, 6, 7, true, 3), read(5, 1, 2, false, 0), read(5, 9, 9, false, 1)}, ""},
		{"a replica that goes back", []sight{read(5, 1, 2, false, 1), read(5, 3, 4, false, 0)}, "client 5 saw 1, and then"},
		{"a write that nobody sees any more", []sight{read(3, 2, 3, true, 2), read(4, 4, 5, true, 1)}, "no order"},
		{"from the future", []sight{read(3, 1, 2, true, 3)}, "no order"},
		{"a primary that is none, for a moment", []sight{read(3, 7, 8, true, 2)}, ""},
		{"a primary that is none, for long", []sight{read(3, 17, 18, true, 2)}, "read 2 as the primary, 11s after 3"},
	} {
		got := strings.Join(judgeQuorum(writes, c.seen, final, 2*time.Second).faults, "; ")
		if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	lost := append(writes, write(4, 1, 9, 10, acked, 3))
	if got := judgeQuorum(lost, nil, final, time.Second).faults; len(got) == 0 {
		t.Error("two writes have one token, and the checker finds an order")
	}
}

// lag checks that what was lost with each reign was acknowledged within a time: writers were held back after it. Nobody
// holds those back who write below a daemon that is stopped.
func (v *verdict) lag(history []attempt, final map[rowKey]int64, tails []map[rowKey]int64, bound time.Duration) {
	for _, tail := range tails {
		first, last := time.Duration(1<<63-1), time.Duration(0)
		for _, a := range history {
			_, in := tail[a.rowKey]
			if _, kept := final[a.rowKey]; a.outcome != acked || !in || kept || a.unwatched {
				continue
			}
			first, last = min(first, a.end), max(last, a.end)
		}
		if span := last - first; span > 0 {
			v.lostSpan = max(v.lostSpan, span)
			if span > bound {
				v.fault("writes were acknowledged for %v that no replica got, want %v at most", span, bound)
			}
		}
	}
}

// What is lost at level max-lag is measured from the first to the last of one reign.
func TestHistoryMaxLag(t *testing.T) {
	at := func(n int64, end int) attempt {
		return attempt{rowKey: rowKey{1, n}, end: time.Duration(end) * time.Second, id: n}
	}
	history := []attempt{at(1, 1), at(2, 10), at(3, 11), at(4, 20)}
	stopped := at(5, 90)
	stopped.unwatched = true
	history = append(history, stopped)
	final := map[rowKey]int64{{1, 1}: 1}
	for name, c := range map[string]struct {
		tails []map[rowKey]int64
		want  int // faults
	}{
		"within":                  {[]map[rowKey]int64{{{1, 1}: 1, {1, 2}: 2, {1, 3}: 3}}, 0},
		"of two reigns":           {[]map[rowKey]int64{{{1, 1}: 1, {1, 2}: 2}, {{1, 1}: 1, {1, 4}: 4}}, 0},
		"for too long":            {[]map[rowKey]int64{{{1, 1}: 1, {1, 2}: 2, {1, 4}: 4}}, 1},
		"below a stopped daemon":  {[]map[rowKey]int64{{{1, 4}: 4, {1, 5}: 5}}, 0},
		"nothing was lost at all": {nil, 0},
	} {
		var v verdict
		if v.lag(history, final, c.tails, 2*time.Second); len(v.faults) != c.want {
			t.Errorf("%s: %v, want %d faults", name, v.faults, c.want)
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
