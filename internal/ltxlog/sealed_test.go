package ltxlog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/seal"
	"github.com/litefs/litefs/internal/vfs"
)

// sealedWith returns options of a log that is encrypted with a new key, and kept as recentOptions' is.
func sealedWith(t testing.TB) func(vfs.FS) Options {
	t.Helper()
	key, err := seal.NewDataKey()
	if err != nil {
		t.Fatal(err)
	}
	return func(fsys vfs.FS) Options {
		opt := recentOptions(fsys)
		opt.Sealing = &Sealing{Key: key}
		return opt
	}
}

// preparedSealed is preparedRecent for a log that is encrypted.
func preparedSealed(options func(vfs.FS) Options) preparer {
	return func(t testing.TB, seed uint64) (*vfs.Mem, *model, *Log) {
		t.Helper()
		return preparedWith(t, seed, options, func(n int) bool { return n >= 3 })
	}
}

// What the tests of the same names find out about logs in the clear holds for encrypted ones.
func TestSealedEveryOperationFails(t *testing.T) {
	for _, op := range recentOperations {
		t.Run(op.name, func(t *testing.T) {
			options := sealedWith(t)
			for n := 0; failAt(t, op, n, n%2 == 1, faults["ENOSPC"], preparedSealed(options), options); n++ {
			}
		})
	}
}

func TestSealedPowerCut(t *testing.T) {
	for _, op := range recentOperations {
		t.Run(op.name, func(t *testing.T) {
			options := sealedWith(t)
			for n := 0; cutAt(t, op, n, 1, preparedSealed(options), options); n++ {
			}
		})
	}
}

// fileOf is an entry as it lies on the disk.
func fileOf(t testing.TB, disk vfs.FS, path string) []byte {
	t.Helper()
	f, err := disk.OpenFile(path, os.O_RDONLY, 0)
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
	return b
}

// TestSealedTampering: whatever is changed in the file of an encrypted entry is corrupt, and not an error of the disk: each
// byte, each length, another entry of the log, the same one of another log, the entry itself in the clear.
func TestSealedTampering(t *testing.T) {
	options := sealedWith(t)
	disk, m, l := preparedSealed(options)(t, 3)
	large := m.noise(20)
	if _, err := l.Append(large.h, large.emit, large.post, true); err != nil {
		t.Fatal(err)
	}
	c := m.next()
	e, err := l.Append(c.h, c.emit, c.post, true)
	if err != nil {
		t.Fatal(err)
	}
	entries := l.Entries()
	path := filepath.Join(memDir, entryName(e.Min, e.Max))
	good := fileOf(t, disk, path)
	// Another log of the same history.
	elsewhere, _, other := preparedSealed(sealedWith(t))(t, 3)
	foreign := fileOf(t, elsewhere, other.entryPath(other.Entries()[5]))

	check := func(what string, e Entry, b []byte) {
		t.Helper()
		rewrite(t, disk, e, func([]byte) []byte { return b })
		if err := l.Verify(e); !errors.Is(err, ErrCorrupt) && int64(len(b)) <= seal.SealedSize(e.Size) {
			t.Fatalf("%s: verify: %v, want ErrCorrupt", what, err)
		}
		c, err := l.readEnds(e.Min, e.Max)
		if bad, err2 := l.check(c); err != nil || err2 != nil || !errors.Is(bad, ErrCorrupt) {
			t.Fatalf("%s: found as %v, %v, %v, want ErrCorrupt", what, bad, err, err2)
		}
	}
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 0x10
		check(fmt.Sprintf("byte %d", i), e, b)
		check(fmt.Sprintf("cut at %d", i), e, good[:i])
	}
	check("a byte more", e, append(bytes.Clone(good), 0))
	check("another entry", e, fileOf(t, disk, l.entryPath(entries[4])))
	check("an entry in the clear", e, c.bytes())
	rewrite(t, disk, e, func([]byte) []byte { return good })
	check("the entry of another log", entries[5], foreign)

	big := entries[len(entries)-2]
	b := fileOf(t, disk, l.entryPath(big))
	for _, at := range []int{0, seal.HeadSize - 1, seal.HeadSize, len(b) / 2, len(b) - 1} {
		bad := bytes.Clone(b)
		bad[at] ^= 1
		check(fmt.Sprintf("byte %d of a large one", at), big, bad)
		check(fmt.Sprintf("a large one cut at %d", at), big, b[:at])
	}
}

// TestSealedTornIsDropped: the newest entry, half written, goes as one in the clear would; so does a copy of it that was changed.
func TestSealedTornIsDropped(t *testing.T) {
	options := sealedWith(t)
	disk, m, l := preparedSealed(options)(t, 4)
	want := l.Entries()
	m.append(t, l, false)
	last, _ := l.Head()
	rewrite(t, disk, last, func(b []byte) []byte { return b[:len(b)/2] })
	l = open(t, memDir, options(disk))
	if got := l.Entries(); !reflect.DeepEqual(got, want) || len(l.Dropped()) != 1 || !errors.Is(l.Dropped()[0].Err, ErrCorrupt) {
		t.Fatalf("found %d entries of %d, dropped %v", len(got), len(want), l.Dropped())
	}
	goOn(t, l)
}

// TestSealedNeedsItsKey: without the key of an encrypted log, or with another one, it does not open, and stays as it is.
func TestSealedNeedsItsKey(t *testing.T) {
	options := sealedWith(t)
	for _, name := range []string{"closed", "crashed"} {
		t.Run(name, func(t *testing.T) {
			disk, _, l := preparedSealed(options)(t, 5)
			want := l.Entries()
			if name == "closed" {
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
			}
			before := listing(t, disk)
			if _, err := Open(memDir, recentOptions(disk)); !errors.Is(err, ErrSealed) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("without a key: %v, want ErrSealed in one line", err)
			}
			if _, err := Open(memDir, sealedWith(t)(disk)); !errors.Is(err, ErrBroken) {
				t.Fatalf("with another key: %v, want ErrBroken", err)
			}
			after := slices.DeleteFunc(listing(t, disk), func(name string) bool { return name == recentName })
			if !slices.Equal(before, after) {
				t.Fatalf("files are %v, were %v", after, before)
			}
			l = open(t, memDir, options(disk))
			if got := l.Entries(); !reflect.DeepEqual(got, want) {
				t.Fatalf("found %d entries, want %d", len(got), len(want))
			}
		})
	}
}

// TestSealedFromHereOn: encryption is switched on for a log, and off, and on again. What was written before can be read each
// time; what lies in the clear behind the place where it was switched on is not believed.
func TestSealedFromHereOn(t *testing.T) {
	disk, m, l := preparedRecent(t, 6)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	key, err := seal.NewDataKey()
	if err != nil {
		t.Fatal(err)
	}
	for n, s := range []Sealing{{Key: key}, {Key: key, Off: true}, {Key: key}} {
		head, _ := l.Head()
		s.PlainUpTo = head.Max
		opt := recentOptions(disk)
		opt.Sealing = &s
		l = open(t, memDir, opt)
		e := m.append(t, l, true)
		if got := seal.Sealed(fileOf(t, disk, l.entryPath(e))); got == s.Off {
			t.Fatalf("%d: the new entry is encrypted: %v", n, got)
		}
		checkChain(t, l)
		m.checkReplay(t, l, e.Max)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	opt := recentOptions(disk)
	opt.Sealing = &Sealing{Key: key, PlainUpTo: l.Entries()[3].Max}
	if _, err := Open(memDir, opt); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "not encrypted") {
		t.Fatalf("entries in the clear that came later: %v, want ErrCorrupt", err)
	}
	// Merged entries are encrypted, and the key opens all of them then.
	opt.Sealing.PlainUpTo = MaxTXID
	l = open(t, memDir, opt)
	if n, err := l.Compact(Compaction{MinEntries: 2}); err != nil || n == 0 {
		t.Fatalf("compact merged %d: %v", n, err)
	}
	if !seal.Sealed(fileOf(t, disk, l.entryPath(l.Entries()[0]))) {
		t.Fatal("a merged entry is not encrypted")
	}
}

// TestSealedLeavesNothing: no file of a log has what was written to it, whatever became of it; with encryption off there are such
// files. The pages are noise, which is not compressed.
func TestSealedLeavesNothing(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		options := recentOptions
		if sealed {
			options = sealedWith(t)
		}
		disk, m, l := preparedWith(t, 8, options, func(int) bool { return true })
		marker := []byte("0k3uYq8ZrW1vXbT7nGdE")
		mark := func() {
			for n, pages := range []int{1, 1, 20, 1} { // copied, copied, through a temporary file, synced later
				c := m.noise(pages)
				copy(c.pages[1], marker)
				c = m.finish(c)
				if _, err := l.Append(c.h, c.emit, c.post, n < 3); err != nil {
					t.Fatal(err)
				}
			}
		}
		mark()
		if _, err := l.Compact(Compaction{MinEntries: 2}); err != nil {
			t.Fatal(err)
		}
		mark()
		if err := l.Copy("/data/copy", l.Entries()); err != nil {
			t.Fatal(err)
		}
		recent := options(disk.Clone()) // unpacks, too
		if err := recent.Recent.Close(); err != nil {
			t.Fatal(err)
		}
		places := map[string]bool{}
		for _, dir := range []string{"/data", memDir, "/data/copy"} {
			files, err := disk.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				path := filepath.Join(dir, f.Name())
				if !f.IsDir() && bytes.Contains(fileOf(t, disk, path), marker) {
					places[dir] = true
				}
			}
		}
		if want := map[bool]int{false: 3}[sealed]; len(places) != want {
			t.Fatalf("encrypted %v: the marker is found in %v, want %d places", sealed, places, want)
		}
	}
}

// TestSealedWipesTheRecentFile: what it had from a time in the clear is written over, and what is needed of it comes back.
func TestSealedWipesTheRecentFile(t *testing.T) {
	disk, m, l := preparedRecent(t, 11)
	c := m.noise(2)
	marker := bytes.Clone(c.pages[1][:20])
	e, err := l.Append(c.h, c.emit, c.post, true)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(fileOf(t, disk, memRecent), marker) {
		t.Fatal("there was nothing to write over")
	}
	disk = disk.Clone() // it is not closed
	opt := sharedRecent(disk, RecentOptions{after: -1, size: 8 * recordAlign, Wipe: true})
	if bytes.Contains(fileOf(t, disk, memRecent), marker) {
		t.Fatal("the file still has it")
	}
	if err := disk.Remove(l.entryPath(e)); err != nil {
		t.Fatal(err)
	}
	l = open(t, memDir, opt)
	if got, _ := l.Head(); got != e {
		t.Fatalf("head is %v, want %v", got, e)
	}
}

// TestSealedCostsNoOperation: encrypted entries are written with the same operations on the disk as others, one by one.
func TestSealedCostsNoOperation(t *testing.T) {
	var counted [2]map[string][]string
	for i, options := range []func(vfs.FS) Options{recentOptions, sealedWith(t)} {
		counted[i] = map[string][]string{}
		for _, op := range operations[:9] {
			disk, m, l := preparedWith(t, 9, options, func(n int) bool { return n >= 3 })
			do := op.make(m, l)
			l.swapFS(vfs.NewFaulty(disk, func(o vfs.Op) error {
				counted[i][op.name] = append(counted[i][op.name], string(o.Kind))
				return nil
			}))
			if err := do(l); err != nil {
				t.Fatal(err)
			}
			l.swapFS(disk)
		}
	}
	for name, plain := range counted[0] {
		// A large one is written in chunks of another size: the parts of these tests are small.
		if sealed := counted[1][name]; len(sealed) > len(plain) || !strings.Contains(name, "large") && !slices.Equal(sealed, plain) {
			t.Errorf("%s: in the clear %v, encrypted %v", name, plain, sealed)
		}
	}
	t.Logf("append: %v", counted[1]["append"])
}
