package ltxlog

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"time"
)

// does is what a step may leave behind when it fails.
type does int

const (
	looks   does = iota // it changes nothing
	syncs               // it has made less durable than all
	changes             // it has not done all
	adds                // it has added nothing; after more failures than one it may be found after a crash
	drops               // what it was to drop, or to add, may be found after a crash
)

// errNotDone: there is nothing to do it to.
var errNotDone = errors.New("not done")

// step is one thing that is done to a log.
type step struct {
	weight int
	does   does
	do     func(h *history) error
}

var steps = []step{
	{4, adds, func(h *history) error { return h.append("append", false) }},
	{12, adds, func(h *history) error { return h.append("append sync", true) }},
	{2, adds, (*history).imports},
	{3, drops, (*history).ahead},
	{2, adds, (*history).confirmed},
	{5, drops, (*history).refused},
	{2, drops, (*history).snapshot},
	{1, drops, (*history).restart},
	{1, drops, (*history).begin},
	{5, drops, (*history).truncate},
	{4, changes, (*history).compact},
	{4, changes, (*history).retain},
	{3, syncs, (*history).syncs},
	{3, looks, (*history).reads},
	{2, looks, (*history).finishes},
	{1, looks, (*history).looksBeside},
}

// change is the next entry, of a few pages or of many.
func (h *history) change() change {
	if h.rnd.IntN(20) == 0 {
		h.m.epoch++
	}
	if h.rnd.IntN(8) == 0 {
		return h.m.noise(1 + h.rnd.IntN(30))
	}
	return h.m.next()
}

// isHead: what was added is the newest entry, and durable if that was asked for.
func (h *history) isHead(c change, e Entry, durably bool) {
	h.t.Helper()
	head, _ := h.l.Head()
	if head != e || e.Min != c.h.Min || e.Max != c.h.Max || e.Post != c.post {
		h.t.Fatalf("added %v, the newest is %v", e, head)
	}
	if durably && h.l.Durable() != e.Max {
		h.t.Fatalf("durable up to %d, want %d", h.l.Durable(), e.Max)
	}
}

func (h *history) append(what string, sync bool) error {
	c := h.change()
	h.note("%s %d-%d", what, c.h.Min, c.h.Max)
	e, err := h.l.Append(c.h, c.emit, c.post, sync)
	if err == nil {
		h.isHead(c, e, sync)
	}
	return err
}

func (h *history) imports() error {
	c, sync := h.change(), h.rnd.IntN(2) == 0
	b := c.bytes()
	h.note("import %d-%d, sync %t", c.h.Min, c.h.Max, sync)
	e, err := h.l.Import(bytes.NewReader(b), int64(len(b)), sync)
	if err == nil {
		h.isHead(c, e, sync)
	}
	return err
}

// syncBeside is a sync by somebody else, while something is being added.
func (h *history) syncBeside() {
	if h.rnd.IntN(3) > 0 || !h.l.sync.TryLock() {
		return
	}
	h.l.sync.Unlock()
	h.note("    sync beside: %v", h.l.Sync())
}

func (h *history) ahead() error {
	if lastOf(h.l) == 0 {
		return errNotDone
	}
	before, c := h.l.Entries(), h.change()
	h.note("append ahead %d-%d", c.h.Min, c.h.Max)
	e, added, err := h.l.AppendAhead(c.h, c.emit, c.post, h.syncBeside)
	switch {
	case err == nil:
		h.isHead(c, e, true)
	case added && lastOf(h.l) != c.h.Max:
		h.t.Fatalf("added %d, the log ends with %d", c.h.Max, lastOf(h.l))
	case !added && !slices.Equal(h.l.Entries(), before):
		h.t.Fatalf("%v; and the list changed", err)
	}
	return err
}

func (h *history) confirmed() error {
	c := h.change()
	h.note("append confirmed %d-%d", c.h.Min, c.h.Max)
	e, err := h.l.AppendConfirmed(c.h, c.emit, c.post, func() error { h.syncBeside(); return nil })
	if err == nil {
		h.isHead(c, e, true)
	}
	return err
}

// refused is what nobody confirms. Taken back by a disk that works, it is no failure.
func (h *history) refused() error {
	before, c := h.l.Entries(), h.change()
	h.note("append refused %d-%d", c.h.Min, c.h.Max)
	refused := errors.New("refused")
	_, err := h.l.AppendConfirmed(c.h, c.emit, c.post, func() error { h.syncBeside(); return refused })
	if err == nil || !slices.Equal(h.l.Entries(), before) {
		h.t.Fatalf("%v, and the list is %v", err, h.l.Entries())
	}
	if errors.Is(err, refused) && h.disk.faults == 0 && !h.disk.lost {
		return nil
	}
	return err
}

func (h *history) snapshot() error {
	c := h.m.snapshot()
	h.note("snapshot %d", c.h.Max)
	h.promiseOnly(0)
	e, err := h.l.Append(c.h, c.emit, c.post, true)
	if err == nil {
		h.isHead(c, e, true)
	}
	return err
}

// restart replaces all by an entry from elsewhere.
func (h *history) restart() error {
	c := h.change()
	b := c.bytes()
	h.note("restart with %d-%d", c.h.Min, c.h.Max)
	h.promiseOnly(0)
	e, err := h.l.Restart(bytes.NewReader(b), int64(len(b)))
	if err == nil {
		h.isHead(c, e, true)
		h.m.current = map[uint64]uint64{e.Max: e.Post}
	}
	return err
}

// begin replaces all by a position.
func (h *history) begin() error {
	head, ok := h.l.Head()
	before := state{head.Max - 1, head.Post}
	if _, known := h.m.history[before]; !ok || head.Max < 2 || known { // a sum may be of two contents
		return errNotDone
	}
	c := change{h: h.m.header(1), post: head.Post}
	c.h.Min, c.h.Max, c.h.Commit = head.Max, head.Max, head.Commit
	h.note("begin at %d", head.Max)
	h.m.history[before] = h.m.content()
	h.promiseOnly(0)
	e, err := h.l.Begin(c.h)
	if err == nil {
		h.isHead(c, e, true)
		h.m.current = map[uint64]uint64{e.Max: e.Post}
	}
	return err
}

func (h *history) truncate() error {
	before := h.l.Entries()
	if len(before) == 0 {
		return errNotDone
	}
	back := h.rnd.IntN(min(len(before), 7))
	if h.rnd.IntN(5) == 0 {
		back = h.rnd.IntN(len(before))
	}
	to := before[len(before)-1-back].Max
	h.note("truncate after %d", to)
	h.promiseOnly(to)
	err := h.l.TruncateAfter(to)
	if last := lastOf(h.l); err == nil && last != to {
		h.t.Fatalf("truncated after %d, the log ends with %d", to, last)
	}
	return err
}

func (h *history) compact() error {
	before := h.l.Entries()
	c := Compaction{MinEntries: 2}
	if h.rnd.IntN(2) == 0 {
		c.MaxBytes = int64(600 + h.rnd.IntN(6000))
	}
	if len(before) > 0 {
		for range h.rnd.IntN(3) {
			c.Cuts = append(c.Cuts, before[h.rnd.IntN(len(before))].Min)
		}
		if h.rnd.IntN(2) == 0 {
			c.Before = before[h.rnd.IntN(len(before))].Max
		}
	}
	h.note("compact %+v", c)
	_, err := h.l.Compact(c)
	after := h.l.Entries()
	if len(before) > 0 && (after[0].Min != before[0].Min || after[len(after)-1] != before[len(before)-1]) {
		h.t.Fatalf("compacted %v to %v", before, after)
	}
	return err
}

func (h *history) retain() error {
	before := h.l.Entries()
	r := Retention{MaxBytes: int64(1 + h.rnd.IntN(40000))}
	if h.rnd.IntN(4) == 0 {
		r = Retention{MaxAge: time.Duration(1+h.rnd.IntN(20)) * time.Second}
	}
	if len(before) > 0 && h.rnd.IntN(2) == 0 {
		r.KeepFrom = before[h.rnd.IntN(len(before))].Max
	}
	h.note("retain %+v", r)
	_, _, err := h.l.Retain(h.m.header(1).Timestamp, r)
	after := h.l.Entries()
	if !slices.Equal(after, before[len(before)-len(after):]) || len(before) > 0 && (len(after) == 0 || r.KeepFrom > 0 && after[0].Min > r.KeepFrom) {
		h.t.Fatalf("of %v stays %v", before, after)
	}
	return err
}

func (h *history) syncs() error {
	last := lastOf(h.l)
	what, do := "sync", h.l.Sync
	if h.rnd.IntN(3) == 0 {
		what, do = "make durable", h.l.MakeDurable
	}
	h.note("%s", what)
	err := do()
	if got := h.l.Durable(); err == nil && got != last {
		h.t.Fatalf("durable up to %d, want %d", got, last)
	}
	return err
}

// reads begins to read an entry.
func (h *history) reads() error {
	entries := h.l.Entries()
	if len(entries) == 0 {
		return nil
	}
	h.disk.whole = !h.disk.stopped()
	defer func() { h.disk.whole = false }()
	e := entries[h.rnd.IntN(len(entries))]
	want, err := h.l.readEntry(e)
	if err != nil {
		return h.unread(e, err)
	}
	r, err := h.l.OpenEntry(e)
	if err != nil {
		return h.unread(e, err)
	}
	half := make([]byte, h.rnd.IntN(len(want)+1))
	if _, err := io.ReadFull(r, half); err != nil {
		return h.unread(e, errors.Join(err, r.Close()))
	}
	if !bytes.Equal(half, want[:len(half)]) {
		h.t.Fatalf("%d to %d: other bytes", e.Min, e.Max)
	}
	h.readers = append(h.readers, &halfRead{e, want, len(half), r})
	return nil
}

// unread: an entry cannot be read when the disk is gone, or has lost it.
func (h *history) unread(e Entry, err error) error {
	h.t.Helper()
	if !h.disk.stopped() && !h.disk.lost {
		h.t.Fatalf("read %d to %d: %v", e.Min, e.Max, err)
	}
	return err
}

func (h *history) finishes() error {
	h.finishReaders()
	return nil
}

// looksBeside opens the log to be read, as another process does beside a node.
func (h *history) looksBeside() error {
	if h.disk.stopped() || h.disk.lost || len(h.unsure) > 0 {
		return nil
	}
	l, err := h.open(h.disk.mem, true)
	if err != nil {
		h.t.Fatalf("open read-only: %v", err)
	}
	checkChain(h.t, l)
	got, want := l.Entries(), h.l.Entries()
	if len(want) > 0 { // what was retired is there while its pack is
		got = slices.DeleteFunc(got, func(e Entry) bool { return e.Max < want[0].Min })
	}
	if !slices.Equal(got, want) {
		h.t.Fatalf("read-only: %v, want %v", got, want)
	}
	return nil
}
