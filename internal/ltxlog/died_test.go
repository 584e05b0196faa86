package ltxlog

import (
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/litefs/litefs/internal/vfs"
)

// These are about what a run of the process that died has left half done, and the next one does not see.

// failOnce fails the first operation that is chosen.
func failOnce(l *Log, disk *vfs.Mem, choose func(vfs.Op) bool) {
	failed := false
	l.swapFS(vfs.NewFaulty(disk, func(o vfs.Op) error {
		if !failed && choose(o) {
			failed = true
			return syscall.EIO
		}
		return nil
	}))
}

// What was removed by a truncation that did not come to its end does not come back behind what is added then.
func TestDroppedByARunThatDied(t *testing.T) {
	for name, o := range map[string]func(vfs.FS) Options{"files": testOptions, "packs": inPacks(testOptions), "copies": recentOptions} {
		disk, m, l := logOn(t, o)
		var es []Entry
		for range 8 {
			es = append(es, m.append(t, l, true))
		}
		failOnce(l, disk, func(o vfs.Op) bool {
			head, _ := l.Head()
			return o.Kind == vfs.OpSyncDir && head == es[4]
		})
		if err := l.TruncateAfter(es[4].Max); !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
		l, err := Open(memDir, o(disk))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.rewindTo(l); err != nil || m.txid != es[4].Max {
			t.Fatalf("%s: %v, found up to %d, want %d", name, err, m.txid, es[4].Max)
		}
		e := m.append(t, l, false)
		checkCuts(t, disk, o, es[4].Max, e.Max)
		m.append(t, l, true)
		checkCuts(t, disk, o, m.txid, m.txid)
	}
}

// The same of an entry that was not confirmed, cut from its pack.
func TestCutByARunThatDied(t *testing.T) {
	disk, m, l := logOn(t, bigPack)
	was := m.append(t, l, true)
	c, refused := m.next(), errors.New("refused")
	_, err := l.AppendConfirmed(c.h, c.emit, c.post, func() error {
		failOnce(l, disk, func(o vfs.Op) bool { return o.Kind == vfs.OpSync && strings.HasSuffix(o.Path, packSuffix) })
		return refused
	})
	if !errors.Is(err, refused) || !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	l, err = Open(memDir, testOptions(disk))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.rewindTo(l); err != nil || m.txid != was.Max {
		t.Fatal(err, m.txid)
	}
	m.append(t, l, true)
	if err := l.TruncateAfter(was.Max); err != nil {
		t.Fatal(err)
	}
	checkCuts(t, disk, testOptions, was.Max, was.Max)
}

// A start that dies when it has emptied a half of the shared file, or before the name of the log's own is on disk, leaves
// all copies to the next one, and that to the one after it.
func TestUnpackedByARunThatDied(t *testing.T) {
	for name, fails := range map[string]func(o vfs.Op, writes int) bool{
		"half": func(o vfs.Op, writes int) bool { return o.Kind == vfs.OpWrite && writes == 2 },
		"name": func(o vfs.Op, _ int) bool { return o.Kind == vfs.OpSyncDir && o.Path == memDir },
	} {
		disk, m, _ := preparedRecent(t, 2)
		opt := RecentOptions{size: 8 * recordAlign}
		writes := 0
		if _, err := recentOn(vfs.NewFaulty(disk, func(o vfs.Op) error {
			if o.Kind == vfs.OpWrite && o.Path == memRecent {
				writes++
			}
			if fails(o, writes) {
				return syscall.EIO
			}
			return nil
		}), opt); !errors.Is(err, syscall.EIO) {
			t.Fatal(name, err)
		}
		checkCuts(t, disk, recentOptions, m.txid, m.txid)
		if _, err := recentOn(disk, opt); err != nil {
			t.Fatal(name, err)
		}
		checkCuts(t, disk, recentOptions, m.txid, m.txid)
		if t.Failed() {
			t.Fatal(name)
		}
	}
}

// A file of an entry that is durable since the last run, of which the mark does not tell, is written again when its fsync
// fails, and the power is cut then.
func TestSuspectFileOfTheLastRun(t *testing.T) {
	disk, m, l := logOn(t, testOptions)
	for range 4 {
		m.append(t, l, true)
	}
	if err := disk.Remove(l.path(durableName)); err != nil {
		t.Fatal(err)
	}
	disk = disk.Clone()
	l, err := Open(memDir, testOptions(disk))
	if err != nil {
		t.Fatal(err)
	}
	failOnce(l, disk, func(o vfs.Op) bool { return o.Kind == vfs.OpSync })
	if err := l.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	renamed := false
	l.swapFS(vfs.NewFaulty(disk, func(o vfs.Op) error {
		if renamed {
			return syscall.EIO
		}
		renamed = o.Kind == vfs.OpRename
		return nil
	}))
	if err := l.Sync(); !renamed || !errors.Is(err, syscall.EIO) {
		t.Fatal(renamed, err)
	}
	checkCuts(t, disk, testOptions, m.txid, m.txid)
}

// A start that died while it took an entry out of its pack has left half a file of it.
func TestHalfAFileOfAPackedEntry(t *testing.T) {
	opt := func(fsys vfs.FS) Options {
		o := sharedRecent(fsys, RecentOptions{after: -1})
		o.Packs = true
		return o
	}
	disk, m, l := logOn(t, opt)
	var es []Entry
	for n := range 8 {
		es = append(es, m.append(t, l, n < 6))
	}
	torn := l.placeOf(es[4])
	rewriteFile(t, disk, torn.pack.name, func(b []byte) []byte { clear(b[torn.at : torn.at+100]); return b })
	if err := l.writeFile(entryName(es[6].Min, es[6].Max), make([]byte, 10), true); err != nil {
		t.Fatal(err)
	}
	l, err := Open(memDir, opt(disk))
	if err != nil || !slices.Equal(l.Entries(), es) {
		t.Fatal(err, l.Entries())
	}
	checkChain(t, l)
}

// The shared file is used when its name is on disk: who made it may have died, or failed, before that.
func TestSharedFileWithoutItsName(t *testing.T) {
	disk, m, l := logOn(t, recentOptions)
	m.append(t, l, false)
	if err := l.Sync(); err != nil {
		t.Fatal(err)
	}
	broken := true
	l.swapFS(vfs.NewFaulty(disk, func(o vfs.Op) error {
		if broken && (o.Kind == vfs.OpSyncDir && o.Path == "/data" || o.Kind == vfs.OpRemove && o.Path == memRecent) {
			return syscall.EIO
		}
		return nil
	}))
	if err := l.recent.make(); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	broken = false
	m.append(t, l, true)
	if l.synced() == l.Durable() {
		t.Fatal("it is not durable by its copy")
	}
	checkCuts(t, disk, recentOptions, m.txid, m.txid)
}
