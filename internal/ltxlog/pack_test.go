package ltxlog

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/vfs"
)

// inPacks makes the small entries of a log share files of a few entries.
func inPacks(options func(vfs.FS) Options) func(vfs.FS) Options {
	return func(fsys vfs.FS) Options {
		opt := options(fsys)
		opt.Packs, opt.packSize = true, 3*recordAlign
		return opt
	}
}

// packedLogs are kinds of logs with packs, and how much of them is durable at first.
var packedLogs = []struct {
	name    string
	options func(vfs.FS) Options
	sync    func(n int) bool
}{
	{"syncs", inPacks(testOptions), func(n int) bool { return n == 7 }},
	{"copies", inPacks(recentOptions), func(n int) bool { return n >= 3 }},
}

// What the tests of the same names find out about entries with files of their own holds for packs.
func TestPackedEveryOperationFails(t *testing.T) {
	for _, kind := range packedLogs {
		prepare := func(t testing.TB, seed uint64) (*vfs.Mem, *model, *Log) {
			return preparedWith(t, seed, kind.options, kind.sync)
		}
		for _, op := range append(recentOperations, operations...) {
			for fault, fail := range faults {
				t.Run(fmt.Sprintf("%s/%s/%s", kind.name, op.name, fault), func(t *testing.T) {
					for n := 0; failAt(t, op, n, (n%2 == 0) == (fault == "EIO"), fail, prepare, kind.options); n++ {
					}
				})
			}
		}
	}
}

func TestPackedPowerCut(t *testing.T) {
	for _, kind := range packedLogs {
		prepare := func(t testing.TB, seed uint64) (*vfs.Mem, *model, *Log) {
			return preparedWith(t, seed, kind.options, kind.sync)
		}
		for _, op := range append(recentOperations, operations...) {
			t.Run(kind.name+"/"+op.name, func(t *testing.T) {
				for n := 0; cutAt(t, op, n, cutSeeds/3, prepare, kind.options); n++ {
				}
			})
		}
	}
}

// onePack is a log whose entries lie in one file, durable up to the last but two.
func onePack(t *testing.T, entries int) (*vfs.Mem, *model, *Log) {
	t.Helper()
	disk, m := vfs.NewMem(), newModel(3, 512)
	l, err := Open(memDir, Options{FS: disk, Packs: true})
	if err != nil {
		t.Fatal(err)
	}
	for n := range entries {
		m.append(t, l, n == entries-3)
	}
	return disk, m, l
}

// Damage to a pack is damage to the entries in which it is.
func TestPackedDamage(t *testing.T) {
	const entries = 10
	for _, tt := range []struct {
		name   string
		damage func(b []byte, at []place) []byte
		kept   int // entries left; -1: broken
		broken int // first entry that is broken
	}{
		{"nothing", func(b []byte, _ []place) []byte { return b }, 10, 0},
		{"prefix of one that is durable", func(b []byte, at []place) []byte { b[at[4].at+20] ^= 1; return b }, -1, 4},
		{"the first record", func(b []byte, at []place) []byte { clear(b[:at[1].at]); return b }, -1, 0},
		{"the file ends within durable ones", func(b []byte, at []place) []byte { return b[:at[3].at+packPrefix+20] }, -1, 3},
		{"the file ends within those that are not", func(b []byte, at []place) []byte { return b[:at[8].at+packPrefix+20] }, 8, 0},
		{"the last one is torn", func(b []byte, at []place) []byte { b[at[9].at+packPrefix+at[9].stored/2] ^= 1; return b }, 9, 0},
		{"the prefix of the last one is torn", func(b []byte, at []place) []byte { b[at[9].at+41] ^= 1; return b }, 9, 0},
		{"zeros behind the last one", func(b []byte, _ []place) []byte { return append(b, make([]byte, 10000)...) }, 10, 0},
	} {
		disk, _, l := onePack(t, entries)
		want := l.Entries()
		var at []place
		for _, e := range want {
			at = append(at, l.placeOf(e))
		}
		rewriteFile(t, disk, packName(1), func(b []byte) []byte { return tt.damage(b, at) })
		l, err := Open(memDir, Options{FS: disk, Packs: true})
		if tt.kept < 0 {
			var broken *BrokenError
			if !errors.As(err, &broken) || broken.TXID != want[tt.broken].Min {
				t.Errorf("%s: %v, want broken at %d", tt.name, err, want[tt.broken].Min)
			}
			continue
		}
		if err != nil || len(l.Entries()) != tt.kept {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		goOn(t, l)
		want = l.Entries()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if l = open(t, memDir, Options{FS: disk}); len(l.Entries()) != len(want) || len(l.Dropped()) > 0 {
			t.Errorf("%s: the second time %d entries, want %d; dropped %v", tt.name, len(l.Entries()), len(want), l.Dropped())
		}
	}
}

// Entries of a pack that were merged into one that is dropped do not come back.
func TestPackedDropsWhatWasMerged(t *testing.T) {
	disk, m := vfs.NewMem(), newModel(3, 512)
	l, err := Open(memDir, Options{FS: disk, Packs: true})
	if err != nil {
		t.Fatal(err)
	}
	nineEntries(t, m, l)
	want := l.Entries()[:4]
	if n, err := l.Compact(Compaction{MaxBytes: 8000, MinEntries: 2}); err != nil || n != 3 || len(l.Entries()) != 6 {
		t.Fatalf("merged %d of %d entries: %v", n, len(l.Entries()), err)
	}
	if err := l.TruncateAfter(want[3].Max); err != nil {
		t.Fatal(err)
	}
	l = open(t, memDir, Options{FS: disk.Clone()})
	if got := l.Entries(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("found %v, want %v", got, want)
	}
}

// The limit in bytes is one of the disk, though a pack goes as a whole.
func TestPackedRetain(t *testing.T) {
	disk, m := vfs.NewMem(), newModel(3, 512)
	l := open(t, memDir, inPacks(testOptions)(disk))
	const limit = 10 * recordAlign
	for range 100 {
		m.append(t, l, false)
		if _, _, err := l.Retain(time.Time{}, Retention{MaxBytes: limit}); err != nil {
			t.Fatal(err)
		}
		size := int64(0)
		for _, name := range listing(t, disk) {
			info, err := disk.Stat(filepath.Join(memDir, name))
			if err != nil {
				t.Fatal(err)
			}
			size += info.Size()
		}
		if size > limit+recordAlign {
			t.Fatalf("%d bytes after %d transactions, want at most %d", size, m.txid, limit)
		}
	}
	checkChain(t, l)
}
