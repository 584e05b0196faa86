package ltxlog

import (
	"errors"
	flags "flag" // flag is taken
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/seal"
	"github.com/litefs/litefs/internal/vfs"
)

var (
	seeds     = flags.Int("ltxlog.seeds", 160, "random histories")
	firstSeed = flags.Uint64("ltxlog.from", 1, "first seed")
	oneSeed   = flags.Uint64("ltxlog.seed", 0, "run this one only, and print what happens")
)

// TestRandomHistories does to a log what may be done to it, on a disk that fails at any operation, loses what was written
// when it cannot sync it, and stops: then the power fails, or the process dies, and the next one goes on. Logs lie in
// packs or in files, encrypted or in the clear, with copies of recent entries or without, and change from run to run. Each
// time what was promised must be there, and what was dropped must not.
func TestRandomHistories(t *testing.T) {
	key, err := seal.NewDataKey()
	if err != nil {
		t.Fatal(err)
	}
	first, last := *firstSeed, *firstSeed+uint64(*seeds)-1
	if *oneSeed != 0 {
		first, last = *oneSeed, *oneSeed
	}
	printed := false
	for seed := first; seed <= last; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			h := newHistory(t, seed, key)
			defer func() {
				if *oneSeed != 0 || t.Failed() && !printed {
					printed = true
					t.Log("\n" + strings.Join(h.trace, "\n"))
				}
				if t.Failed() {
					t.Logf("go test ./internal/ltxlog -run TestRandomHistories -ltxlog.seed %d -v", seed)
				}
			}()
			for range 5 {
				h.life()
			}
		})
	}
}

// history is a log, what is done to it, and what it owes to who did it.
type history struct {
	t     *testing.T
	rnd   *rand.Rand
	m     *model
	disk  *badDisk
	key   *seal.DataKey // nil: never encrypted
	onOff bool          // encryption is switched on and off
	trace []string

	l       *Log
	busy    bool // something is being done to it
	readers []*halfRead

	// durable is what was promised: the log is found up to here, or farther.
	durable uint64
	least   uint64 // the smallest durable in this step
	// unsure are the states of histories that were dropped, or were about to be, by operations that failed: they may be
	// found until the log was changed without an error.
	unsure map[state]bool
	cut    bool // the last run ended with a power cut: what is on the disk is all that there is
}

func newHistory(t *testing.T, seed uint64, key seal.DataKey) *history {
	h := &history{t: t, rnd: rand.New(rand.NewPCG(seed, 99)), m: newModel(seed, 512)}
	h.disk = &badDisk{mem: vfs.NewMem(), rnd: h.rnd, note: h.note}
	if kind := h.rnd.IntN(3); kind > 0 {
		h.key, h.onOff = &key, kind == 1
	}
	h.disk.calm = h.rnd.IntN(4) == 0
	return h
}

func (h *history) note(format string, args ...any) {
	h.trace = append(h.trace, fmt.Sprintf(format, args...))
}

// life is a run of the machine.
func (h *history) life() {
	d := h.disk
	d.ops, d.stop, d.fail, d.lost = 0, 20+h.rnd.IntN(600), -1, false
	h.l = nil
	if h.rnd.IntN(3) == 0 {
		d.fail = 1 + h.rnd.IntN(30)
	}
	if h.start() {
		for !d.stopped() {
			h.step()
		}
	}
	h.finishReaders()
	h.crash()
}

// start opens the log, again while the disk fails. It returns false when the disk has stopped.
func (h *history) start() bool {
	h.t.Helper()
	for {
		h.disk.faults = 0
		l, err := h.open(h.fsys(), false)
		h.checkCuts(h.durable, h.m.current)
		if err == nil {
			h.l = l
			h.disk.whole = true
			defer func() { h.disk.whole = false }()
			h.note("opened: packs %t, recent %t, encrypted %t, up to %d; dropped %v",
				l.packs, l.recent != nil, h.key != nil && !l.form.(*sealedForm).Off, lastOf(l), l.Dropped())
			h.check(l, h.durable)
			h.takeUp()
			return true
		}
		h.note("open: %v", err)
		h.mayFind(h.m.current) // what it dropped
		if h.disk.stopped() {
			return false
		}
		if h.disk.faults == 0 || !isFault(err) {
			h.t.Fatalf("open: %v", err)
		}
	}
}

// open opens the log as one run of the process does: each may have other options.
func (h *history) open(fsys vfs.FS, readOnly bool) (*Log, error) {
	opt := Options{FS: fsys, ReadOnly: readOnly, Packs: h.rnd.IntN(4) > 0}
	opt.packSize = []int64{0, 3 * recordAlign, 9 * recordAlign}[h.rnd.IntN(3)]
	opt.spillSize = []int{0, testSpill}[h.rnd.IntN(2)]
	if h.key != nil {
		opt.Sealing = &Sealing{Key: *h.key}
		if h.onOff {
			opt.Sealing.PlainUpTo, opt.Sealing.Off = MaxTXID, h.rnd.IntN(2) == 0
		}
	}
	if readOnly {
		return Open(memDir, opt)
	}
	r, err := recentOn(fsys, RecentOptions{after: []int{-1, -1, -1, 6}[h.rnd.IntN(4)], size: 8 * recordAlign})
	if err != nil {
		return nil, err
	}
	if h.rnd.IntN(6) > 0 {
		opt.Recent, opt.ID = r, 7
	}
	l, err := Open(memDir, opt)
	if err != nil || opt.Recent == nil {
		err = errors.Join(err, r.Close())
	}
	return l, err
}

// fsys is the disk as a log sees it. Somebody else may sync the log while it makes a file.
func (h *history) fsys() vfs.FS {
	return &hookFS{FS: vfs.NewFaulty(h.disk.mem, h.disk.before), open: func(name string, flag int) {
		if flag&os.O_CREATE != 0 && filepath.Base(name) != durableName && h.busy && !h.disk.stopped() {
			h.syncBeside()
		}
	}}
}

func lastOf(l *Log) uint64 {
	head, _ := l.Head()
	return head.Max
}

// takeUp makes what was found the history that counts.
func (h *history) takeUp() {
	h.t.Helper()
	if err := h.m.rewindTo(h.l); err != nil {
		h.t.Fatal(err)
	}
	for _, e := range h.l.Entries() {
		h.m.current[e.Max] = e.Post
	}
	h.durable = max(h.durable, h.l.Durable())
	if h.cut {
		h.unsure = nil
	}
}

// crash ends a run of the machine: the power fails, or the process dies alone.
func (h *history) crash() {
	h.t.Helper()
	atLeast := h.durable
	if h.cut = h.rnd.IntN(4) > 0; h.cut {
		h.note("the power fails; durable %d", h.durable)
		h.disk.mem = h.disk.mem.Cut(h.rnd)
	} else {
		h.note("the process dies; durable %d", h.durable)
		h.disk.mem.Evict()
		if h.l != nil && !h.disk.lost {
			atLeast = max(atLeast, lastOf(h.l))
		}
	}
	h.checkDisk(h.disk.mem.Clone(), atLeast)
}

// reopen ends a run of the process and begins the next: the log is closed, or not.
func (h *history) reopen() {
	h.t.Helper()
	h.finishReaders()
	h.disk.faults = 0
	want := h.l.Entries()
	kill := h.rnd.IntN(2) == 0
	clean := kill && len(h.unsure) == 0
	if !kill {
		err := h.l.Close()
		if err != nil && h.disk.faults == 0 && !h.disk.lost {
			h.t.Fatalf("close: %v", err)
		}
		clean = err == nil
		if r := h.l.recent; r != nil && h.rnd.IntN(2) == 0 {
			if rerr := r.Close(); rerr != nil && h.disk.faults == 0 {
				h.t.Fatalf("close recent file: %v", rerr)
			}
		}
		h.checkCuts(h.durable, h.m.current)
		if h.durable = max(h.durable, h.l.Durable()); err == nil {
			h.unsure = nil
		}
	}
	h.cut = false
	h.disk.mem.Evict() // what was never written can be read by nobody for long
	h.note("ended: killed %t, clean %t", kill, clean)
	if h.disk.stopped() || !h.start() {
		return
	}
	got := h.l.Entries()
	if len(want) > 0 { // what was retired is there while its pack is
		got = slices.DeleteFunc(got, func(e Entry) bool { return e.Max < want[0].Min })
	}
	if clean && !h.disk.lost && !slices.Equal(got, want) {
		h.t.Fatalf("opened with %v, want %v", got, want)
	}
	h.disk.lost = false
}

// promiseOnly takes back what was promised beyond a transaction.
func (h *history) promiseOnly(txid uint64) {
	h.durable = min(h.durable, txid)
	h.least = h.durable
}

// mayFind notes that states may be found, though they are dropped.
func (h *history) mayFind(current map[uint64]uint64) {
	if h.unsure == nil {
		h.unsure = map[state]bool{}
	}
	for txid, sum := range current {
		h.unsure[state{txid, sum}] = true
	}
}

// step does one thing.
func (h *history) step() {
	h.t.Helper()
	d := h.disk
	if h.rnd.IntN(5) == 0 {
		d.arm()
	}
	switch {
	case h.rnd.IntN(30) == 0, d.lost && h.rnd.IntN(8) == 0:
		h.reopen()
		return
	case h.rnd.IntN(40) == 0:
		h.note("what a power cut would leave; durable %d", h.durable)
		h.checkDisk(d.mem.Cut(h.rnd), h.durable)
		return
	}
	s := steps[h.pick()]
	was, before := maps.Clone(h.m.current), h.l.Entries()
	d.faults, h.least = 0, h.durable
	h.busy = true
	err := s.do(h)
	h.busy = false
	if s.does == looks || errors.Is(err, errNotDone) {
		return
	}
	h.note("    %v; up to %d, durable %d, operation %d", err, lastOf(h.l), h.l.Durable(), d.ops)
	h.checkCuts(h.least, was, h.m.current)
	switch {
	case err == nil && s.does != syncs:
		h.unsure = nil
	case err == nil:
	case d.faults == 0 && !d.lost:
		h.t.Fatal(err)
	case s.does == adds && !slices.Equal(h.l.Entries(), before):
		h.t.Fatalf("%v; and the list changed", err)
	case s.does == drops, s.does != syncs && (d.faults > 1 || d.stopped() || d.lost):
		h.mayFind(was)
		h.mayFind(h.m.current)
	}
	if rerr := h.m.rewindTo(h.l); rerr != nil {
		h.t.Fatal(rerr)
	}
	durable := h.l.Durable()
	if last := lastOf(h.l); durable > last && last > 0 {
		h.t.Fatalf("durable up to %d, and the log ends with %d", durable, last)
	}
	h.durable = max(h.durable, durable)
}

// pick chooses a step by its weight.
func (h *history) pick() int {
	all := 0
	for _, s := range steps {
		all += s.weight
	}
	n := h.rnd.IntN(all)
	for i, s := range steps {
		if n -= s.weight; n < 0 {
			return i
		}
	}
	return len(steps) - 1
}
