package ltxlog

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/vfs"
)

const memDir = "/data/ltx"

// testSpill makes entries of a few pages take the way of large ones.
const testSpill = 3000

// operation is one thing done to a log that has entries, some of them not durable.
type operation struct {
	name string
	make func(m *model, l *Log) func(l *Log) error
}

func appendOp(name string, sync bool, pages int) operation {
	return operation{name, func(m *model, l *Log) func(l *Log) error {
		var c change
		if pages > 0 {
			c = m.noise(pages)
		} else {
			c = m.next()
		}
		return func(l *Log) error {
			_, err := l.Append(c.h, c.emit, c.post, sync)
			return err
		}
	}}
}

func importOp(name string, sync bool, pages int, snapshot bool) operation {
	return operation{name, func(m *model, l *Log) func(l *Log) error {
		var c change
		switch {
		case snapshot:
			m.noise(3)
			c = m.snapshot()
		case pages > 0:
			c = m.noise(pages)
		default:
			c = m.next()
		}
		b := c.bytes()
		return func(l *Log) error {
			_, err := l.Import(bytes.NewReader(b), int64(len(b)), sync)
			return err
		}
	}}
}

var operations = []operation{
	appendOp("append", false, 0),
	appendOp("append sync", true, 0),
	appendOp("append large", false, 20),
	appendOp("append large sync", true, 20),
	importOp("import", false, 0, false),
	importOp("import sync", true, 0, false),
	importOp("import large", false, 20, false),
	importOp("import large sync", true, 20, false),
	importOp("import snapshot", false, 0, true),
	{"sync", func(m *model, l *Log) func(l *Log) error {
		return func(l *Log) error { return l.Sync() }
	}},
	{"compact", func(m *model, l *Log) func(l *Log) error {
		return func(l *Log) error { _, err := l.Compact(Compaction{MinEntries: 2}); return err }
	}},
	{"compact small", func(m *model, l *Log) func(l *Log) error {
		return func(l *Log) error { _, err := l.Compact(Compaction{MinEntries: 2, MaxBytes: 8000}); return err }
	}},
	{"retain", func(m *model, l *Log) func(l *Log) error {
		return func(l *Log) error {
			_, _, err := l.Retain(time.Time{}, Retention{MaxBytes: 2500})
			return err
		}
	}},
	{"truncate", func(m *model, l *Log) func(l *Log) error {
		entries := l.Entries()
		return func(l *Log) error { return l.TruncateAfter(entries[4].Max) }
	}},
	{"append after retain", func(m *model, l *Log) func(l *Log) error {
		a, b := m.next(), m.next()
		return func(l *Log) error {
			if _, _, err := l.Retain(time.Time{}, Retention{MaxBytes: 2500}); err != nil {
				return err
			}
			for _, c := range []change{a, b} {
				if _, ok := l.Find(c.h.Max); ok {
					continue
				}
				if _, err := l.Append(c.h, c.emit, c.post, false); err != nil {
					return err
				}
			}
			return nil
		}
	}},
}

// inSteps are the operations that may leave a part of their work done.
var inSteps = []string{"retain", "truncate", "import snapshot", "append after retain", "compact small", "appends sync", "truncate and again"}

// shortening are those that may drop entries from the newer end.
var shortening = []string{"truncate", "import snapshot", "truncate and again"}

// noise is an entry of so many pages that do not compress.
func (m *model) noise(pages int) change {
	c := change{h: m.header(1), pages: map[uint32][]byte{}}
	m.resize(max(len(m.pages), pages+5))
	for i := range len(m.pages) {
		p := make([]byte, m.pageSize)
		for j := range p {
			p[j] = byte(m.rnd.Uint32())
		}
		if i < pages {
			m.pages[i] = p
		}
		c.pages[uint32(i+1)] = m.pages[i]
	}
	return m.finish(c)
}

func (c change) bytes() []byte {
	enc := (&Buffers{}).encoder()
	w := &writer{log: &Log{spill: 1 << 30}, enc: enc}
	if err := encode(w, c.h, c.emit, c.post); err != nil {
		return nil
	}
	return bytes.Clone(enc.buf)
}

// testOptions are those of the logs in these tests.
func testOptions(fsys vfs.FS) Options { return Options{FS: fsys, spillSize: testSpill} }

// prepared returns a log in memory with entries, the last few of which are not durable.
func prepared(t testing.TB, seed uint64) (*vfs.Mem, *model, *Log) {
	t.Helper()
	return preparedWith(t, seed, testOptions, func(n int) bool { return n == 7 })
}

// preparedWith returns a log in memory with entries, those durable that sync says.
func preparedWith(t testing.TB, seed uint64, options func(vfs.FS) Options, sync func(n int) bool) (*vfs.Mem, *model, *Log) {
	t.Helper()
	disk := vfs.NewMem()
	m := newModel(seed, 512)
	l, err := Open(memDir, options(disk))
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.SyncDir("/data"); err != nil {
		t.Fatal(err)
	}
	for n := range 12 {
		m.append(t, l, sync(n))
	}
	return disk, m, l
}

// swapFS lets a test put another file system under an open log.
func (l *Log) swapFS(fsys vfs.FS) {
	l.fs = fsys
	l.mark.file = nil // opened through the other one
	if p := l.change.pack; p != nil {
		p.write.file = nil
	}
	if l.recent != nil {
		l.recent.fs, l.recent.file = fsys, nil
	}
}

// faults are an operation that does nothing, and a write that is half done on a full disk.
var faults = map[string]func(op vfs.Op) error{
	"EIO": func(vfs.Op) error { return syscall.EIO },
	"ENOSPC": func(op vfs.Op) error {
		return &vfs.ShortWrite{N: op.Size / 2, Err: syscall.ENOSPC}
	},
}

// TestEveryOperationFails lets each disk operation of each operation of the log fail in turn: once,
// or from then on until the disk is mended. The log must live, hold nothing half, do the same when
// asked again, and be found whole.
func TestEveryOperationFails(t *testing.T) {
	for _, op := range operations {
		for kind, fail := range faults {
			for _, lasting := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/lasting=%v", op.name, kind, lasting), func(t *testing.T) {
					for n := 0; failAt(t, op, n, lasting, fail, prepared, testOptions); n++ {
					}
				})
			}
		}
	}
}

// preparer makes a log to do an operation on.
type preparer func(t testing.TB, seed uint64) (*vfs.Mem, *model, *Log)

// failAt returns false when op does fewer than n+1 disk operations.
func failAt(t *testing.T, op operation, n int, lasting bool, fail func(vfs.Op) error, prepare preparer, options func(vfs.FS) Options) bool {
	disk, m, l := prepare(t, uint64(n))
	do := op.make(m, l)
	before := l.Entries()
	hit := false
	l.swapFS(vfs.NewFaulty(disk, func(o vfs.Op) error {
		if o.N == n || (lasting && o.N > n) {
			hit = true
			return fail(o)
		}
		return nil
	}))
	err := do(l)
	l.swapFS(disk)
	checkChain(t, l)
	if err != nil && !slices.Contains(inSteps, op.name) {
		if got := l.Entries(); !reflect.DeepEqual(got, before) {
			t.Fatalf("operation %d failed (%v) and changed the list", n, err)
		}
	}
	if err != nil {
		if err := do(l); err != nil {
			t.Fatalf("again after operation %d failed: %v", n, err)
		}
	}
	goOn(t, l)
	checkFiles(t, disk, l)
	want := l.Entries()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = open(t, memDir, options(disk))
	got := l.Entries()
	if l.packs { // what was retired is there while the pack is
		got = slices.DeleteFunc(got, func(e Entry) bool { return e.Max < want[0].Min })
	}
	if !reflect.DeepEqual(got, want) || len(l.Dropped()) > 0 {
		t.Fatalf("operation %d failed: reopened with %v, want %v; dropped %v", n, got, want, l.Dropped())
	}
	return hit
}

// checkFiles: the entries listed are the entries in the directory.
func checkFiles(t *testing.T, disk vfs.FS, l *Log) {
	t.Helper()
	var want []string
	for _, e := range l.Entries() {
		want = append(want, l.fileOf(e))
	}
	slices.Sort(want)
	want = slices.Compact(want)
	got := slices.DeleteFunc(listing(t, disk), func(name string) bool { return isTempName(name) || name == durableName || name == recentName })
	if !slices.Equal(got, want) {
		t.Fatalf("files are %v, entries %v", got, want)
	}
}

// TestFailedAppendDoesNotReturn: an entry whose fsync failed is whole on the disk. When it cannot be
// removed either, it must not be found later in place of what was appended after it.
func TestFailedAppendDoesNotReturn(t *testing.T) {
	disk, m, l := prepared(t, 1)
	failed := Header{Min: m.txid + 1, Max: m.txid + 9, Pre: m.sum(), Commit: uint32(len(m.pages)), PageSize: 512}
	mended := false
	l.swapFS(vfs.NewFaulty(disk, func(o vfs.Op) error {
		if !mended && (o.Kind == vfs.OpRemove || o.Kind == vfs.OpSync && strings.HasSuffix(o.Path, entryName(failed.Min, failed.Max))) {
			return syscall.EIO
		}
		return nil
	}))
	if _, err := l.Append(failed, NoPages, m.sum(), true); !errors.Is(err, syscall.EIO) {
		t.Fatalf("append: %v, want EIO", err)
	}
	c := m.next()
	if _, err := l.Append(c.h, c.emit, c.post, true); !errors.Is(err, syscall.EIO) {
		t.Fatalf("append while the failed entry cannot be removed: %v, want EIO", err)
	}
	mended = true
	if _, err := l.Append(c.h, c.emit, c.post, true); err != nil {
		t.Fatal(err)
	}
	checkFiles(t, disk, l)
	l.swapFS(disk)
}

// TestTruncationThatFailsInAPack: what was merged into an entry that is dropped does not come back behind one that could not
// be dropped, in the pack of both.
func TestTruncationThatFailsInAPack(t *testing.T) {
	disk, m, l := logOn(t, bigPack)
	es := nineEntries(t, m, l)
	if n, err := l.Compact(Compaction{MaxBytes: 8000, MinEntries: 2}); err != nil || n != 3 {
		t.Fatal(n, err)
	}
	failOnce(l, disk, func(o vfs.Op) bool { return o.Kind == vfs.OpRename && strings.HasSuffix(o.To, packSuffix) })
	if err := l.TruncateAfter(es[2].Max); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if err := m.rewindTo(l); err != nil || m.txid != es[3].Max {
		t.Fatalf("%v, the log ends with %d, want %d", err, m.txid, es[3].Max)
	}
	want := append(es[:4:4], m.append(t, l, true))
	l = open(t, memDir, bigPack(disk.Clone()))
	if got := l.Entries(); !slices.Equal(got, want) {
		t.Fatalf("found %v, want %v", got, want)
	}
}

// TestOpenFails: an error of the disk while opening removes no entry.
func TestOpenFails(t *testing.T) {
	for _, op := range []string{"clean", "torn", "compact"} {
		t.Run(op, func(t *testing.T) {
			hit := true
			for n := 0; hit; n++ {
				disk, m, l := prepared(t, 1)
				want := l.Entries()
				switch op {
				case "clean":
					if err := l.Close(); err != nil {
						t.Fatal(err)
					}
				case "torn":
					tear(t, disk, l, m)
				case "compact":
					leaveCovered(t, disk, l)
					want = l.Entries()
				}
				hit = false
				broken := vfs.NewFaulty(disk, func(o vfs.Op) error {
					if o.N == n {
						hit = true
						return syscall.EIO
					}
					return nil
				})
				if l, err := Open(memDir, Options{FS: broken}); err == nil {
					l.swapFS(disk)
					checkChain(t, l)
				} else if !errors.Is(err, syscall.EIO) {
					t.Fatalf("operation %d: %v", n, err)
				}
				l = open(t, memDir, Options{FS: disk})
				if got := l.Entries(); !reflect.DeepEqual(got, want) {
					t.Fatalf("operation %d failed: opened with %v, want %v", n, got, want)
				}
			}
		})
	}
}

// tear leaves half of one more entry, as a process that dies in a write.
func tear(t testing.TB, disk vfs.FS, l *Log, m *model) {
	t.Helper()
	c := m.next()
	l.swapFS(vfs.NewFaulty(disk, func(o vfs.Op) error {
		switch o.Kind {
		case vfs.OpWrite:
			return &vfs.ShortWrite{N: o.Size - 1, Err: syscall.ENOSPC}
		case vfs.OpRemove:
			return syscall.EIO
		}
		return nil
	}))
	if _, err := l.Append(c.h, c.emit, c.post, false); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	l.swapFS(disk)
}

// leaveCovered compacts and leaves what was merged behind.
func leaveCovered(t testing.TB, disk vfs.FS, l *Log) {
	t.Helper()
	l.swapFS(vfs.NewFaulty(disk, func(o vfs.Op) error {
		isSpare := o.Kind == vfs.OpRename && isTempName(o.To)
		if o.Kind == vfs.OpRemove || isSpare {
			return syscall.EIO
		}
		return nil
	}))
	if n, err := l.Compact(Compaction{MinEntries: 2}); err != nil || n == 0 {
		t.Fatalf("compact merged %d: %v", n, err)
	}
	l.swapFS(disk)
}

// TestPowerCut stops the machine after each disk operation of each operation of the log. What was
// durable must be found; what is found must be a chain and replay to a state that was.
func TestPowerCut(t *testing.T) {
	for _, op := range operations {
		t.Run(op.name, func(t *testing.T) {
			for n := 0; cutAt(t, op, n, cutSeeds, prepared, testOptions); n++ {
			}
		})
	}
}

// cutSeeds is how many discs each power cut leaves.
const cutSeeds = 12

// cutAt returns false when op does fewer than n+1 disk operations.
func cutAt(t *testing.T, op operation, n int, seeds uint64, prepare preparer, options func(vfs.FS) Options) bool {
	disk, m, l := prepare(t, uint64(n))
	do := op.make(m, l)
	durable := l.Durable()
	hit := false
	l.swapFS(vfs.NewFaulty(disk, func(o vfs.Op) error {
		if o.N >= n {
			hit = true
			if o.Kind == vfs.OpWrite && o.N == n {
				return &vfs.ShortWrite{N: o.Size / 2, Err: syscall.EIO}
			}
			return syscall.EIO
		}
		return nil
	}))
	head, _ := l.Head()
	err := do(l)
	if err == nil {
		durable = l.Durable()
	}
	shortens := slices.Contains(shortening, op.name)
	if shortens {
		durable = min(durable, l.Durable())
	}
	// The process dies, the machine lives: nothing that was acknowledged is lost.
	now, _ := l.Head()
	if shortens {
		head = now
	}
	atMost := uint64(MaxTXID)
	if err == nil {
		atMost = now.Max // what was dropped stays dropped
	}
	whole := disk.Clone()
	checkFound(t, m, whole, max(min(head.Max, now.Max), durable), atMost, options)
	for seed := range seeds {
		checkFound(t, m, disk.Cut(rand.New(rand.NewPCG(uint64(n), seed))), durable, atMost, options)
	}
	return hit
}

// checkFound opens what is left and uses it.
func checkFound(t *testing.T, m *model, disk *vfs.Mem, atLeast, atMost uint64, options func(vfs.FS) Options) {
	t.Helper()
	l, err := Open(memDir, options(disk))
	if err != nil {
		t.Fatal(err)
	}
	checkChain(t, l)
	head, ok := l.Head()
	if head.Max < atLeast || head.Max > atMost {
		t.Fatalf("found up to %d, want %d to %d; dropped %v", head.Max, atLeast, atMost, l.Dropped())
	}
	if tail, _ := l.Tail(); ok && tail.IsSnapshot() {
		m.checkReplay(t, l, head.Max)
	}
	checkGoesOn(t, l, func() *Log { return open(t, memDir, options(disk)) })
}

// checkGoesOn: the log takes one more entry, and is found with it when it was closed.
func checkGoesOn(t *testing.T, l *Log, reopen func() *Log) {
	t.Helper()
	goOn(t, l)
	want := l.Entries()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if l = reopen(); !reflect.DeepEqual(l.Entries(), want) || len(l.Dropped()) > 0 {
		t.Fatalf("second opening: %v, want %v, dropped %v", l.Entries(), want, l.Dropped())
	}
}

// goOn appends one more entry, whatever the log ends with.
func goOn(t *testing.T, l *Log) {
	t.Helper()
	head, ok := l.Head()
	h := Header{Min: head.Max + 1, Max: head.Max + 1, Pre: head.Post, Commit: 1, PageSize: 512}
	post, page := head.Post, make([]byte, 512)
	if !ok {
		post = flag | pageSum(1, page)
	}
	one := func(emit func(uint32, []byte) error) error { return emit(1, page) }
	if _, err := l.Append(h, one, post, true); err != nil {
		t.Fatal(err)
	}
	checkChain(t, l)
}
