package ltxlog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/litefs/litefs/internal/vfs"
)

// damaged is a log of 20 entries, all durable or all but the first 12, after damage.
func damaged(t *testing.T, allDurable bool, damage func(disk *vfs.Mem, entries []Entry)) (*vfs.Mem, []Entry, *model) {
	t.Helper()
	m := newModel(5, 512)
	disk := vfs.NewMem()
	l, err := Open(memDir, Options{FS: disk})
	if err != nil {
		t.Fatal(err)
	}
	for n := range 20 {
		m.append(t, l, n == 11)
	}
	if allDurable {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	entries := l.Entries()
	damage(disk, entries)
	return disk, entries, m
}

func rewrite(t *testing.T, disk vfs.FS, e Entry, change func(b []byte) []byte) {
	t.Helper()
	rewriteFile(t, disk, entryName(e.Min, e.Max), change)
}

func rewriteFile(t *testing.T, disk vfs.FS, name string, change func(b []byte) []byte) {
	t.Helper()
	f, err := disk.OpenFile(filepath.Join(memDir, name), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, info.Size())
	if _, err := f.ReadAt(b, 0); len(b) > 0 && err != nil {
		t.Fatal(err)
	}
	b = change(b)
	if err := f.Truncate(int64(len(b))); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
}

func short(b []byte) []byte   { return b[:len(b)-1] }
func empty([]byte) []byte     { return nil }
func flipped(b []byte) []byte { b[len(b)/2] ^= 1; return b }

func TestOpenDamaged(t *testing.T) {
	remove := func(t *testing.T, disk vfs.FS, e Entry) {
		if err := disk.Remove(filepath.Join(memDir, entryName(e.Min, e.Max))); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name       string
		allDurable bool
		damage     func(t *testing.T, disk vfs.FS, entries []Entry)
		kept       int // entries left; -1: broken
		broken     int // first entry that is broken
	}{
		{"nothing", true, func(t *testing.T, disk vfs.FS, e []Entry) {}, 20, 0},
		{"torn last", false, func(t *testing.T, disk vfs.FS, e []Entry) { rewrite(t, disk, e[19], short) }, 19, 0},
		{"empty last", false, func(t *testing.T, disk vfs.FS, e []Entry) { rewrite(t, disk, e[19], empty) }, 19, 0},
		{"one bit in the last", false, func(t *testing.T, disk vfs.FS, e []Entry) { rewrite(t, disk, e[19], flipped) }, 19, 0},
		{"durable last", true, func(t *testing.T, disk vfs.FS, e []Entry) { rewrite(t, disk, e[19], flipped) }, 19, 0},
		{"last gone, not durable", false, func(t *testing.T, disk vfs.FS, e []Entry) { remove(t, disk, e[19]) }, 19, 0},
		{"last gone, durable", true, func(t *testing.T, disk vfs.FS, e []Entry) { remove(t, disk, e[19]) }, -1, 19},
		{"all gone", true, func(t *testing.T, disk vfs.FS, e []Entry) {
			for _, e := range e {
				remove(t, disk, e)
			}
		}, -1, 0},
		{"hole behind the durable ones", false, func(t *testing.T, disk vfs.FS, e []Entry) { remove(t, disk, e[15]) }, 15, 0},
		{"one bit behind the durable ones", false, func(t *testing.T, disk vfs.FS, e []Entry) { rewrite(t, disk, e[13], flipped) }, 13, 0},
		{"hole", true, func(t *testing.T, disk vfs.FS, e []Entry) { remove(t, disk, e[15]) }, -1, 15},
		{"short in the middle", true, func(t *testing.T, disk vfs.FS, e []Entry) { rewrite(t, disk, e[7], short) }, -1, 7},
		{"empty in the middle", true, func(t *testing.T, disk vfs.FS, e []Entry) { rewrite(t, disk, e[7], empty) }, -1, 7},
		{"first empty", true, func(t *testing.T, disk vfs.FS, e []Entry) { rewrite(t, disk, e[0], empty) }, -1, 0},
		{"two last, durable", true, func(t *testing.T, disk vfs.FS, e []Entry) {
			rewrite(t, disk, e[19], flipped)
			rewrite(t, disk, e[18], flipped)
		}, -1, 18},
		{"post of one", true, func(t *testing.T, disk vfs.FS, e []Entry) {
			rewrite(t, disk, e[7], func(b []byte) []byte { b[len(b)-9] ^= 1; return b })
		}, -1, 7},
		{"old ones gone", true, func(t *testing.T, disk vfs.FS, e []Entry) { remove(t, disk, e[0]); remove(t, disk, e[1]) }, 18, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			disk, entries, _ := damaged(t, tt.allDurable, func(disk *vfs.Mem, e []Entry) { tt.damage(t, disk, e) })
			if tt.kept < 0 {
				checkBroken(t, disk, entries, tt.broken)
				return
			}
			l := open(t, memDir, Options{FS: disk})
			checkChain(t, l)
			got := l.Entries()
			if len(got) != tt.kept {
				t.Fatalf("%d entries, want %d; dropped %v", len(got), tt.kept, l.Dropped())
			}
			head := got[len(got)-1]
			for _, d := range l.Dropped() {
				if d.Min <= head.Max || d.Durable != tt.allDurable || d.Err == nil {
					t.Fatalf("dropped %+v behind %d", d, head.Max)
				}
			}
			goOn(t, l)
		})
	}
}

// checkBroken: the first bad transaction is named, nothing is removed, reading it all the same
// leaves everything, and a repair keeps what is in front of the fault.
func checkBroken(t *testing.T, disk *vfs.Mem, entries []Entry, broken int) {
	t.Helper()
	before := listing(t, disk)
	_, err := Open(memDir, Options{FS: disk})
	var b *BrokenError
	if !errors.As(err, &b) || !errors.Is(err, ErrBroken) {
		t.Fatalf("open: %v, want a BrokenError", err)
	}
	if b.TXID != entries[broken].Min {
		t.Fatalf("broken at %d, want %d", b.TXID, entries[broken].Min)
	}
	ro, err := Open(memDir, Options{FS: disk, Repair: true, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := ro.Entries(); !slices.Equal(got, entries[:broken]) {
		t.Fatalf("read-only repair: %d entries, want %d", len(got), broken)
	}
	if after := listing(t, disk); !slices.Equal(before, after) {
		t.Fatalf("files before %v, after %v", before, after)
	}
	l := open(t, memDir, Options{FS: disk, Repair: true})
	if got := l.Entries(); !slices.Equal(got, entries[:broken]) {
		t.Fatalf("repair: %d entries, want %d", len(got), broken)
	}
	goOn(t, l)
	want := l.Entries()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if l = open(t, memDir, Options{FS: disk}); !reflect.DeepEqual(l.Entries(), want) {
		t.Fatalf("after the repair: %v, want %v", l.Entries(), want)
	}
}

func listing(t *testing.T, disk vfs.FS) []string {
	t.Helper()
	files, err := disk.ReadDir(memDir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Name())
	}
	return names
}

func TestReadOnly(t *testing.T) {
	disk, entries, m := damaged(t, false, func(disk *vfs.Mem, e []Entry) { rewrite(t, disk, e[19], short) })
	f, err := disk.OpenFile(filepath.Join(memDir, "x"+tempSuffix), os.O_CREATE, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	before := listing(t, disk)
	l := open(t, memDir, Options{FS: disk, ReadOnly: true})
	if got := l.Entries(); !slices.Equal(got, entries[:19]) || len(l.Dropped()) != 1 {
		t.Fatalf("%d entries, dropped %v", len(got), l.Dropped())
	}
	c := m.next()
	_, aerr := l.Append(c.h, c.emit, c.post, false)
	_, cerr := l.Compact(Compaction{MinEntries: 2})
	for _, err := range []error{aerr, cerr, l.Sync(), l.TruncateAfter(1)} {
		if !errors.Is(err, ErrReadOnly) {
			t.Fatalf("change of a read-only log: %v, want ErrReadOnly", err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if after := listing(t, disk); !slices.Equal(before, after) {
		t.Fatalf("files before %v, after %v", before, after)
	}
	if _, err := Open("/none", Options{FS: disk, ReadOnly: true}); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("read-only open of nothing: %v", err)
	}
}

// TestInterruptedCompaction: what a merged entry covers goes at the next opening; a merged entry
// that is not whole goes instead.
func TestInterruptedCompaction(t *testing.T) {
	for _, whole := range []bool{true, false} {
		m := newModel(9, 512)
		disk := vfs.NewMem()
		l, err := Open(memDir, Options{FS: disk})
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			m.append(t, l, false)
		}
		before := l.Entries()
		leaveCovered(t, disk, l)
		want := l.Entries()
		if !whole {
			rewrite(t, disk, want[0], flipped)
			want = before
		}
		l = open(t, memDir, Options{FS: disk})
		if got := l.Entries(); !slices.Equal(got, want) {
			t.Fatalf("whole %v: opened with %v, want %v", whole, got, want)
		}
		m.checkReplay(t, l, m.txid)
		if n := len(listing(t, disk)); n != len(want)+1 {
			t.Fatalf("whole %v: %d files left", whole, n)
		}
	}
}

// TestForeignFiles: what is no entry is left alone.
func TestForeignFiles(t *testing.T) {
	disk, entries, _ := damaged(t, true, func(*vfs.Mem, []Entry) {})
	names := []string{"README", "0000000000000001-0000000000000001.LTX", "0000000000000000-0000000000000001.ltx", "0000000000000003-0000000000000001.ltx"}
	for _, name := range names {
		f, err := disk.OpenFile(filepath.Join(memDir, name), os.O_CREATE, 0o600)
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	l := open(t, memDir, Options{FS: disk})
	if !slices.Equal(l.Entries(), entries) {
		t.Fatal("foreign files changed the list")
	}
	for _, name := range names {
		if !slices.Contains(listing(t, disk), name) {
			t.Fatalf("%s is gone", name)
		}
	}
}

// TestFailedSyncIsWrittenAnew: after a failed fsync the content is written again, because the next
// fsync may succeed without it.
func TestFailedSyncIsWrittenAnew(t *testing.T) {
	disk, m, l := prepared(t, 3)
	var synced string
	l.swapFS(vfs.NewFaulty(disk, func(o vfs.Op) error {
		if o.Kind == vfs.OpSync && synced == "" {
			synced = o.Path
			return syscall.EIO
		}
		return nil
	}))
	if err := l.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("sync: %v, want EIO", err)
	}
	var written []string
	l.swapFS(vfs.NewFaulty(disk, func(o vfs.Op) error {
		if o.Kind == vfs.OpRename {
			written = append(written, o.To)
		}
		return nil
	}))
	if err := l.Sync(); err != nil {
		t.Fatal(err)
	}
	if len(written) != 1 || written[0] != synced {
		t.Fatalf("written anew: %v, want %s", written, synced)
	}
	l.swapFS(disk)
	checkChain(t, l)
	m.checkReplay(t, l, m.txid)
	if l.Durable() != m.txid {
		t.Fatalf("durable up to %d, want %d", l.Durable(), m.txid)
	}
}

// TestThousands: a log with thousands of entries opens by reading the ends of each. The number of
// disk operations is the measure; the time is in a benchmark.
func TestThousands(t *testing.T) {
	const n = 3000
	disk := manyEntries(t, n)
	counted := vfs.NewFaulty(disk, func(vfs.Op) error { return nil })
	l := open(t, memDir, Options{FS: counted})
	if got := len(l.Entries()); got != n {
		t.Fatalf("%d entries, want %d", got, n)
	}
	if ops := counted.Count(); ops > 6*n {
		t.Fatalf("%d disk operations for %d entries", ops, n)
	}
}

func manyEntries(t testing.TB, n int) *vfs.Mem {
	t.Helper()
	disk := vfs.NewMem()
	l, err := Open(memDir, Options{FS: disk})
	if err != nil {
		t.Fatal(err)
	}
	m := newModel(1, 512)
	for range n {
		m.append(t, l, false)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return disk
}

func TestErrorsSayWhat(t *testing.T) {
	disk, entries, _ := damaged(t, true, func(disk *vfs.Mem, e []Entry) { rewrite(t, disk, e[7], short) })
	_, err := Open(memDir, Options{FS: disk})
	want := fmt.Sprintf("open transaction log %s: transaction log is broken at transaction %016x: ", memDir, entries[7].Min)
	if err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		t.Fatalf("got %q, want one line with %q", err, want)
	}
}
