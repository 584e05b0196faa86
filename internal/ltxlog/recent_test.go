package ltxlog

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/vfs"
)

// recentOptions use the recent file from the first durable append on, and it is full soon.
func recentOptions(fsys vfs.FS) Options {
	return Options{FS: fsys, spillSize: testSpill, recentAfter: -1, recentSize: 6 * recordAlign, syncInline: true}
}

// preparedRecent returns a log whose last entries are durable by their copies alone; in front of
// them are copies that are not needed any more.
func preparedRecent(t testing.TB, seed uint64) (*vfs.Mem, *model, *Log) {
	t.Helper()
	disk, m, l := preparedWith(t, seed, recentOptions, func(n int) bool { return n >= 3 })
	if head, _ := l.Head(); l.Durable() != head.Max || l.synced() == head.Max {
		t.Fatalf("durable up to %d, under their names up to %d, head is %d", l.Durable(), l.synced(), head.Max)
	}
	return disk, m, l
}

var recentOperations = append([]operation{
	{"appends sync", func(m *model, l *Log) func(l *Log) error {
		var changes []change
		for range 9 {
			changes = append(changes, m.next())
		}
		return func(l *Log) error {
			for _, c := range changes {
				if _, ok := l.Find(c.h.Max); ok {
					continue
				}
				if _, err := l.Append(c.h, c.emit, c.post, true); err != nil {
					return err
				}
			}
			return nil
		}
	}},
	// The copies of the entries that were dropped stand behind the one that is
	// appended again, and would follow it.
	{"truncate and again", func(m *model, l *Log) func(l *Log) error {
		entries := l.Entries()
		again := entries[len(entries)-3]
		b, err := l.readEntry(again)
		return func(l *Log) error {
			if err != nil {
				return err
			}
			if err := l.TruncateAfter(again.Min - 1); err != nil {
				return err
			}
			_, err := l.Import(bytes.NewReader(b), again.Size, true)
			return err
		}
	}},
}, slices.DeleteFunc(slices.Clone(operations), func(op operation) bool {
	return !slices.Contains([]string{"append sync", "append", "import sync", "append large sync", "import snapshot", "sync", "compact", "retain", "truncate"}, op.name)
})...)

func TestRecentEveryOperationFails(t *testing.T) {
	for _, op := range recentOperations {
		for kind, fail := range faults {
			for _, lasting := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/lasting=%v", op.name, kind, lasting), func(t *testing.T) {
					for n := 0; failAt(t, op, n, lasting, fail, preparedRecent, recentOptions); n++ {
					}
				})
			}
		}
	}
}

func TestRecentPowerCut(t *testing.T) {
	for _, op := range recentOperations {
		t.Run(op.name, func(t *testing.T) {
			for n := 0; cutAt(t, op, n, preparedRecent, recentOptions); n++ {
			}
		})
	}
}

// lose takes what was not made durable: the names of entries, or what is in them.
func lose(t *testing.T, disk *vfs.Mem, e Entry, whole bool) {
	t.Helper()
	if whole {
		if err := disk.Remove(filepath.Join(memDir, entryName(e.Min, e.Max))); err != nil {
			t.Fatal(err)
		}
		return
	}
	rewrite(t, disk, e, empty)
}

// Entries that are on disk as copies alone come back, missing or torn, in whatever order they were
// lost; one whose copy is damaged does not, nor does what follows it.
func TestRecentBringsBack(t *testing.T) {
	large := func(fsys vfs.FS) Options { return Options{FS: fsys, recentAfter: -1, syncInline: true} }
	prepare := func() (*vfs.Mem, *model, *Log) {
		return preparedWith(t, 2, large, func(n int) bool { return n >= 3 })
	}
	for lost := range 16 {
		for _, whole := range []bool{true, false} {
			disk, m, l := prepare()
			want := l.Entries()
			last := want[len(want)-4:]
			for i, e := range last {
				if e.Max <= l.synced() {
					t.Fatalf("%d is synced already", e.Max)
				}
				if lost&(1<<i) != 0 {
					lose(t, disk, e, whole)
				}
			}
			l = open(t, memDir, large(disk))
			if got := l.Entries(); !reflect.DeepEqual(got, want) || len(l.Dropped()) > 0 {
				t.Fatalf("lost %04b: found %v, want %v; dropped %v", lost, got, want, l.Dropped())
			}
			m.checkReplay(t, l, m.txid)
		}
	}

	disk, _, l := prepare()
	want := l.Entries()
	f, err := disk.OpenFile(filepath.Join(memDir, recentName), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	records, err := l.readRecent()
	if err != nil {
		t.Fatal(err)
	}
	at := int64(0)
	for _, rec := range records[:len(records)-2] {
		at += recordSize(len(rec.content))
	}
	if _, err := f.WriteAt([]byte{0xff}, at+recordPrefix+100); err != nil {
		t.Fatal(err)
	}
	for _, e := range want[len(want)-2:] {
		lose(t, disk, e, true)
	}
	l = open(t, memDir, recentOptions(disk))
	if got := l.Entries(); !reflect.DeepEqual(got, want[:len(want)-2]) {
		t.Fatalf("found %v", got)
	}
}

// An append whose record could not be written, but is on the disk, is not found in place of what
// came after it.
func TestRecentFailedAppendDoesNotReturn(t *testing.T) {
	disk, m, l := preparedRecent(t, 1)
	failed := Header{Min: m.txid + 1, Max: m.txid + 1, Pre: m.sum(), Commit: uint32(len(m.pages)), PageSize: 512}
	mended := false
	l.swapFS(vfs.NewFaulty(disk, func(o vfs.Op) error {
		if !mended && o.Kind == vfs.OpWrite && filepath.Base(o.Path) == recentName {
			return &vfs.ShortWrite{N: o.Size, Err: syscall.EIO}
		}
		return nil
	}))
	l.change.recent.file = nil
	if _, err := l.Append(failed, NoPages, m.sum(), true); !errors.Is(err, syscall.EIO) {
		t.Fatalf("append: %v, want EIO", err)
	}
	c := m.next()
	if _, err := l.Append(c.h, c.emit, c.post, false); !errors.Is(err, syscall.EIO) {
		t.Fatalf("append while the failed record cannot be taken back: %v, want EIO", err)
	}
	mended = true
	if _, err := l.Append(c.h, c.emit, c.post, false); err != nil {
		t.Fatal(err)
	}
	want := l.Entries()
	lose(t, disk, want[len(want)-1], true)
	l = open(t, memDir, recentOptions(disk))
	if got := l.Entries(); !reflect.DeepEqual(got, want[:len(want)-1]) {
		t.Fatalf("found %v, want %v", got, want[:len(want)-1])
	}
}

// An entry that is not confirmed is not in the log, nor after a crash at once, whichever way it was made durable.
func TestAppendThatIsNotConfirmed(t *testing.T) {
	for name, options := range map[string]func(vfs.FS) Options{
		"recent": recentOptions,
		"file":   func(fsys vfs.FS) Options { return Options{FS: fsys, recentAfter: 1 << 30} },
	} {
		t.Run(name, func(t *testing.T) {
			disk, m, l := preparedWith(t, 1, options, func(n int) bool { return n >= 3 })
			want := l.Entries()
			refused := errors.New("refused")
			c := m.next()
			onDisk := false
			_, err := l.AppendConfirmed(c.h, c.emit, c.post, func() error {
				_, err := disk.Stat(filepath.Join(memDir, entryName(c.h.Min, c.h.Max)))
				onDisk = err == nil
				if head, _ := l.Head(); head != want[len(want)-1] {
					t.Errorf("the head is %+v before it is confirmed", head)
				}
				return refused
			})
			if !errors.Is(err, refused) || !onDisk {
				t.Fatalf("append: %v, on disk when asked: %t", err, onDisk)
			}
			if got := l.Entries(); !reflect.DeepEqual(got, want) {
				t.Errorf("the log has %v, want %v", got, want)
			}
			for seed := range uint64(50) {
				cut := open(t, memDir, options(disk.Cut(rand.New(rand.NewPCG(seed, 1)))))
				if got := cut.Entries(); !reflect.DeepEqual(got, want) {
					t.Fatalf("seed %d: after a power cut: %v, want %v", seed, got, want)
				}
			}
			if _, err := l.AppendConfirmed(c.h, c.emit, c.post, unconditionally); err != nil {
				t.Fatal(err)
			}
			m.checkReplay(t, l, m.txid)
		})
	}
}

// A disk that has no room for the file leaves the way of two syncs.
func TestRecentIsNotNeeded(t *testing.T) {
	disk := vfs.NewMem()
	l := open(t, memDir, recentOptions(vfs.NewFaulty(disk, func(o vfs.Op) error {
		if o.Kind == vfs.OpWrite && filepath.Base(o.Path) == recentName {
			return syscall.ENOSPC
		}
		return nil
	})))
	if err := disk.SyncDir("/data"); err != nil {
		t.Fatal(err)
	}
	m := newModel(1, 512)
	for range 5 {
		m.append(t, l, true)
		checkFound(t, m, disk.Cut(rand.New(rand.NewPCG(1, 1))), m.txid, m.txid, testOptions)
	}
	if slices.Contains(listing(t, disk), recentName) {
		t.Error("half a file of recent entries is left")
	}
}

// Copies that an earlier use of the file has left bring back no entry that was retired, whether or
// not the mark of what is on disk survived.
func TestRecentDoesNotBringBackWhatIsRetired(t *testing.T) {
	for _, marked := range []bool{true, false} {
		disk, _, l := preparedRecent(t, 2)
		if _, _, err := l.Retain(time.Time{}, Retention{MaxBytes: 1}); err != nil {
			t.Fatal(err)
		}
		want := l.Entries()
		if records, err := l.readRecent(); err != nil || len(want) != 1 || len(records) < 2 {
			t.Fatalf("%d entries and %d copies are left: %v", len(want), len(records), err)
		}
		if !marked {
			if err := disk.Remove(filepath.Join(memDir, durableName)); err != nil {
				t.Fatal(err)
			}
		}
		l = open(t, memDir, recentOptions(disk))
		if got := l.Entries(); !reflect.DeepEqual(got, want) {
			t.Fatalf("found %v, want %v", got, want)
		}
	}
}

// A log that is asked for few durable appends does without the file.
func TestRecentComesWithUse(t *testing.T) {
	disk := vfs.NewMem()
	m := newModel(1, 512)
	l := open(t, memDir, Options{FS: disk})
	for n := range 2 * recentAfter {
		m.append(t, l, true)
		if has := slices.Contains(listing(t, disk), recentName); has != (n >= recentAfter) {
			t.Fatalf("after %d durable appends there is a file: %v", n+1, has)
		}
	}
}

// Random histories with power cuts: after each, what was durable is there, what was dropped is not,
// and the log goes on.
func TestRandomPowerCuts(t *testing.T) {
	for seed := range uint64(80) {
		rnd := rand.New(rand.NewPCG(seed, 77))
		disk := vfs.NewMem()
		m := newModel(seed, 512)
		options := recentOptions
		if seed%3 == 0 {
			options = func(fsys vfs.FS) Options {
				return Options{FS: fsys, spillSize: testSpill, recentAfter: 1 << 30, syncInline: true}
			}
		}
		for range 6 {
			disk = lifeOfALog(t, disk, m, rnd, options)
		}
	}
}

// lifeOfALog opens a log, does this and that to it until its disk stops, and returns what a power
// cut leaves of the disk.
func lifeOfALog(t *testing.T, disk *vfs.Mem, m *model, rnd *rand.Rand, options func(vfs.FS) Options) *vfs.Mem {
	t.Helper()
	l, err := Open(memDir, options(disk))
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.SyncDir("/data"); err != nil {
		t.Fatal(err)
	}
	if err := m.rewindTo(l); err != nil {
		t.Fatal(err)
	}
	n, stop := 0, 20+rnd.IntN(400)
	l.swapFS(vfs.NewFaulty(disk, func(o vfs.Op) error {
		if n++; n > stop {
			if o.Kind == vfs.OpWrite && n == stop+1 {
				return &vfs.ShortWrite{N: o.Size / 2, Err: syscall.EIO}
			}
			return syscall.EIO
		}
		return nil
	}))
	durable := l.Durable()
	for n <= stop {
		err := something(m, l, rnd)
		if n <= stop && err != nil {
			t.Fatal(err)
		}
		durable = l.Durable()
	}
	head, _ := l.Head()
	after := disk.Cut(rnd)
	found, err := Open(memDir, options(after.Clone()))
	if err != nil {
		t.Fatal(err)
	}
	checkChain(t, found)
	got, ok := found.Head()
	if got.Max < durable || got.Max > max(head.Max, m.txid) {
		t.Fatalf("found up to %d, want %d to %d; dropped %v", got.Max, durable, max(head.Max, m.txid), found.Dropped())
	}
	if want := m.current[got.Max]; ok && got.Post != want {
		t.Fatalf("found %d with checksum %016x, which was dropped; want %016x", got.Max, got.Post, want)
	}
	opt := options(disk)
	opt.ensureDefaults()
	if info, err := after.Stat(filepath.Join(memDir, recentName)); err == nil && info.Size() > opt.recentSize {
		t.Fatalf("the file of recent entries has %d bytes", info.Size())
	}
	if tail, ok := found.Tail(); ok && tail.IsSnapshot() {
		m.checkReplay(t, found, got.Max)
	}
	return after
}

// something changes the log.
func something(m *model, l *Log, rnd *rand.Rand) (err error) {
	switch rnd.IntN(20) {
	case 0:
		return l.Sync()
	case 1:
		_, err = l.Compact(Compaction{MinEntries: 2})
	case 2:
		_, _, err = l.Retain(time.Time{}, Retention{MaxBytes: 6000})
	case 3:
		entries := l.Entries()
		if len(entries) < 4 {
			return nil
		}
		if err = l.TruncateAfter(entries[len(entries)-3].Max); err == nil {
			return m.rewindTo(l)
		}
	case 4:
		c := m.snapshot()
		_, err = l.Append(c.h, c.emit, c.post, true)
	case 5, 6, 7:
		c := m.next()
		_, err = l.Append(c.h, c.emit, c.post, false)
	default:
		c := m.next()
		_, err = l.Append(c.h, c.emit, c.post, true)
	}
	return err
}

// rewindTo makes the model what the log's head is.
func (m *model) rewindTo(l *Log) error {
	head, ok := l.Head()
	content, known := m.history[state{head.Max, head.Post}]
	if ok && !known {
		return fmt.Errorf("head %d with checksum %016x was never there", head.Max, head.Post)
	}
	maps.DeleteFunc(m.current, func(txid, _ uint64) bool { return txid > head.Max })
	m.txid, m.pages = head.Max, nil
	for len(content) > 0 {
		m.pages = append(m.pages, content[:m.pageSize:m.pageSize])
		content = content[m.pageSize:]
	}
	return nil
}
