package ltxlog

import (
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/vfs"
)

// hookFS calls a function before an open, which may use the log.
type hookFS struct {
	vfs.FS
	open func(name string, flag int)
}

func (h *hookFS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	if h.open != nil {
		h.open(name, flag)
	}
	return h.FS.OpenFile(name, flag, perm)
}

// logOn opens a log on an empty disk.
func logOn(t *testing.T, opt func(vfs.FS) Options) (*vfs.Mem, *model, *Log) {
	t.Helper()
	disk, m := vfs.NewMem(), newModel(3, 512)
	l, err := Open(memDir, opt(disk))
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.SyncDir("/data"); err != nil {
		t.Fatal(err)
	}
	return disk, m, l
}

// nineEntries appends entries of which a compaction merges the fifth to the eighth alone: those before are too large for it,
// and the last one, which is too large for a pack, is the newest.
func nineEntries(t *testing.T, m *model, l *Log) (entries []Entry) {
	t.Helper()
	for n := range 9 {
		make := m.next
		switch {
		case n < 4:
			make = func() change { return m.noise(20) }
		case n == 8:
			make = func() change { return m.noise(140) }
		}
		c := make()
		e, err := l.Append(c.h, c.emit, c.post, true)
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	return entries
}

func bigPack(fsys vfs.FS) Options { return Options{FS: fsys, Packs: true} }

// checkCuts opens what power cuts leave: it reaches from to.
func checkCuts(t *testing.T, disk *vfs.Mem, options func(vfs.FS) Options, from, to uint64) {
	t.Helper()
	bad := 0
	for seed := range uint64(60) {
		l, err := Open(memDir, options(disk.Cut(rand.New(rand.NewPCG(seed, 5)))))
		if err != nil {
			t.Errorf("seed %d: %v", seed, err)
			bad++
			continue
		}
		if head, _ := l.Head(); head.Max < from || head.Max > to {
			t.Errorf("seed %d: found up to %d, want %d to %d", seed, head.Max, from, to)
			bad++
		}
		if bad > 2 {
			return
		}
	}
}

// A Sync between the note that there is a new name and the making of the file.
func TestSyncBeforeTheFileIsMade(t *testing.T) {
	for _, o := range []func(vfs.FS) Options{testOptions, bigPack} {
		disk, m, l := logOn(t, o)
		m.append(t, l, true)
		m.append(t, l, false)
		h := &hookFS{FS: disk}
		l.swapFS(h)
		once := false
		h.open = func(name string, flag int) {
			if flag&os.O_CREATE != 0 && !once && filepath.Base(name) != durableName {
				once = true
				if err := l.Sync(); err != nil {
					t.Error(err)
				}
			}
		}
		c := m.noise(150) // has a file of its own, either way
		if _, err := l.Append(c.h, c.emit, c.post, false); err != nil {
			t.Fatal(err)
		}
		h.open = nil
		// a small one: its own file, or a new pack
		if err := l.Sync(); err != nil {
			t.Fatal(err)
		}
		checkCuts(t, disk, o, l.Durable(), l.Durable())
	}
}

// The same with an entry that is small (noise is spilled to a temporary file with testOptions).
func TestSyncBeforeTheFileIsMadeSmall(t *testing.T) {
	disk, m, l := logOn(t, testOptions)
	m.append(t, l, true)
	m.append(t, l, false)
	h := &hookFS{FS: disk}
	l.swapFS(h)
	once := false
	h.open = func(name string, flag int) {
		if flag&os.O_CREATE != 0 && !once && strings.HasSuffix(name, ".ltx") {
			once = true
			if err := l.Sync(); err != nil {
				t.Error(err)
			}
		}
	}
	m.append(t, l, false)
	h.open = nil
	if err := l.Sync(); err != nil || !once {
		t.Fatal(err, once)
	}
	checkCuts(t, disk, testOptions, l.Durable(), l.Durable())
}

// A pack whose fsync failed is replaced by a copy, and the machine stops before the copy is on disk.
func TestSuspectPackKeepsWhatIsDurable(t *testing.T) {
	for stop := range 30 {
		disk, m, l := logOn(t, bigPack)
		for n := range 8 {
			m.append(t, l, n == 5)
		}
		durable := l.Durable()
		failed, n := false, 0
		l.swapFS(vfs.NewFaulty(disk, func(o vfs.Op) error {
			if o.Kind == vfs.OpSync && strings.HasSuffix(o.Path, packSuffix) && !failed {
				failed = true
				return syscall.EIO
			}
			if failed {
				if n++; n > stop {
					return syscall.EIO
				}
			}
			return nil
		}))
		if err := l.Sync(); err == nil {
			t.Fatal("no error")
		}
		_ = l.Sync()
		durable = max(durable, l.Durable())
		checkCuts(t, disk, bigPack, durable, m.txid)
		if t.Failed() {
			t.Fatalf("stopped after %d", stop)
		}
	}
}

// loseFailed fails one fsync of a pack and takes from the file what was not synced, as the kernel may.
func loseFailed(disk *vfs.Mem, from func() int64) func(o vfs.Op) error {
	failed := false
	return func(o vfs.Op) error {
		if o.Kind != vfs.OpSync || !strings.HasSuffix(o.Path, packSuffix) || failed {
			return nil
		}
		failed = true
		f, err := disk.OpenFile(o.Path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		info, _ := f.Stat()
		if at := from(); at < info.Size() {
			if _, err := f.WriteAt(make([]byte, info.Size()-at), at); err != nil {
				return err
			}
		}
		return syscall.EIO
	}
}

// After a failed fsync the pack is cut; what stays is said to be durable and is not there.
func TestCutOfASuspectPack(t *testing.T) {
	disk, m, l := logOn(t, bigPack)
	var at []place
	var es []Entry
	for n := range 8 {
		es = append(es, m.append(t, l, n == 3))
		at = append(at, l.placeOf(es[n]))
	}
	l.swapFS(vfs.NewFaulty(disk, loseFailed(disk, func() int64 { return at[4].at })))
	if err := l.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if err := l.TruncateAfter(es[6].Max); err != nil {
		return // fine
	}
	if err := l.Sync(); err == nil {
		t.Errorf("durable up to %d, but %d is %v", l.Durable(), es[5].Max, l.verify(es[5], at[5]))
	}
}

// What was torn in a pack and came back from its copy is retired before what lies behind it in the pack.
func TestRestoredIsRetired(t *testing.T) {
	for _, what := range []string{"prefix", "content"} {
		opt := func(fsys vfs.FS) Options {
			o := sharedRecent(fsys, RecentOptions{after: -1})
			o.Packs = true
			return o
		}
		disk, m, l := logOn(t, opt)
		var at []place
		var es []Entry
		for n := range 8 {
			es = append(es, m.append(t, l, true))
			at = append(at, l.placeOf(es[n]))
		}
		pack := filepath.Join(memDir, at[4].pack.name)
		f, err := disk.OpenFile(pack, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		off := at[4].at
		if what == "content" {
			off += packPrefix + 120
		}
		if _, err := f.WriteAt(make([]byte, 40), off); err != nil {
			t.Fatal(err)
		}
		crashed := disk.Clone()
		l, err = Open(memDir, opt(crashed))
		if err != nil || !reflect.DeepEqual(l.Entries(), es) {
			t.Fatal(err, l.Entries())
		}
		if _, _, err := l.Retain(time.Time{}, Retention{MaxBytes: 1, KeepFrom: es[6].Min}); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l, err = Open(memDir, opt(crashed))
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if head, _ := l.Head(); head != es[7] {
			t.Errorf("%s: head %v", what, head)
		}
		for _, e := range l.Entries() {
			if err := l.Verify(e); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
}

// TruncateAfter that failed at its last step and is asked again says that the drop is durable.
func TestTruncateAgain(t *testing.T) {
	for name, o := range map[string]func(vfs.FS) Options{"files": testOptions, "packs": inPacks(testOptions), "one pack": bigPack} {
		t.Run(name, func(t *testing.T) {
			disk, m, l := logOn(t, o)
			var es []Entry
			for range 8 {
				es = append(es, m.append(t, l, true))
			}
			failed := false
			l.swapFS(vfs.NewFaulty(disk, func(o vfs.Op) error {
				if o.Kind == vfs.OpSyncDir && !failed {
					if n, _ := disk.Stat(filepath.Join(memDir, durableName)); n != nil {
						if _, ok := l.Find(es[7].Max); ok {
							return nil // of the mark
						}
					}
					failed = true
					return syscall.EIO
				}
				return nil
			}))
			if err := l.TruncateAfter(es[4].Max); !errors.Is(err, syscall.EIO) {
				t.Fatal(err)
			}
			if err := l.TruncateAfter(es[4].Max); err != nil {
				t.Fatal(err)
			}
			checkCuts(t, disk, o, es[4].Max, es[4].Max)
		})
	}
}

// The same, the cut of the pack failed. Who reads an entry that is dropped reads on.
func TestTruncateAgainAfterACut(t *testing.T) {
	disk, m, l := logOn(t, bigPack)
	es := nineEntries(t, m, l)
	r, err := l.OpenEntry(es[5])
	if err != nil {
		t.Fatal(err)
	}
	if n, err := l.Compact(Compaction{MaxBytes: 8000, MinEntries: 2}); err != nil || n != 3 {
		t.Fatal(n, err)
	}
	failed := false
	l.swapFS(vfs.NewFaulty(disk, func(o vfs.Op) error {
		if o.Kind == vfs.OpRename && strings.HasSuffix(o.To, packSuffix) && !failed {
			failed = true
			return syscall.EIO
		}
		return nil
	}))
	if err := l.TruncateAfter(es[3].Max); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if err := l.TruncateAfter(es[3].Max); err != nil {
		t.Fatal(err)
	}
	checkCuts(t, disk, bigPack, es[3].Max, es[3].Max)
	if b, err := io.ReadAll(r); err != nil || int64(len(b)) != es[5].Size {
		t.Errorf("a reader gets %d bytes of %d: %v", len(b), es[5].Size, err)
	}
}

// An append that failed after its record was on disk.
func TestFailedAppendAndPowerCut(t *testing.T) {
	for _, first := range []bool{false, true} {
		disk, m, l := logOn(t, bigPack)
		for range 4 {
			m.append(t, l, true)
		}
		if first { // the next entry is the first one of a pack
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			var err error
			if l, err = Open(memDir, bigPack(disk)); err != nil {
				t.Fatal(err)
			}
		}
		was := m.txid
		failed := false
		l.names.Store(true) // as after a compaction, or a new pack
		l.swapFS(vfs.NewFaulty(disk, func(o vfs.Op) error {
			if o.Kind == vfs.OpSyncDir && !failed {
				failed = true
				return syscall.EIO
			}
			return nil
		}))
		c := m.next()
		if _, err := l.Append(c.h, c.emit, c.post, true); !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
		checkCuts(t, disk, bigPack, was, was)
	}
}

// What could not be taken back, and the log is closed in good order.
func TestCloseAfterAFailedCut(t *testing.T) {
	disk, m, l := logOn(t, bigPack)
	for range 4 {
		m.append(t, l, true)
	}
	was := m.txid
	refused := errors.New("refused")
	broken := false
	l.swapFS(vfs.NewFaulty(disk, func(o vfs.Op) error {
		if broken && o.Kind == vfs.OpTruncate {
			return syscall.EIO
		}
		return nil
	}))
	c := m.next()
	_, err := l.AppendConfirmed(c.h, c.emit, c.post, func() error { broken = true; return refused })
	if !errors.Is(err, refused) || !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	broken = false
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = open(t, memDir, bigPack(disk))
	if head, _ := l.Head(); head.Max != was {
		t.Errorf("found %d, want %d", head.Max, was)
	}
}

// The first entry of a log is durable by its copy, its pack has a name and nothing in it yet, and what comes next has a
// file of its own.
func TestFirstEntryComesBack(t *testing.T) {
	opt := func(fsys vfs.FS) Options {
		o := sharedRecent(fsys, RecentOptions{after: -1})
		o.Packs, o.spillSize = true, 0
		return o
	}
	disk, m, l := logOn(t, opt)
	first := m.append(t, l, true)
	c := m.noise(140) // does not fit into a pack
	if _, err := l.Append(c.h, c.emit, c.post, true); err != nil {
		t.Fatal(err)
	}
	if l.synced() != 0 || l.Durable() != m.txid {
		t.Fatal(l.synced(), l.Durable())
	}
	for seed := range uint64(60) {
		l, err := Open(memDir, opt(disk.Cut(rand.New(rand.NewPCG(seed, 5)))))
		if err != nil {
			t.Fatal(err)
		}
		if tail, _ := l.Tail(); tail != first {
			t.Fatalf("seed %d: the log begins with %d, dropped %v", seed, tail.Min, l.Dropped())
		}
	}
}

// Who asks for a truncation again that could not remove a file whose fsync had failed gets no file with holes for a
// durable one.
func TestSuspectFileThatCouldNotBeRemoved(t *testing.T) {
	disk, m, l := logOn(t, func(fsys vfs.FS) Options { return Options{FS: fsys} })
	m.append(t, l, true)
	was := m.txid
	e := m.append(t, l, false)
	name := filepath.Join(memDir, entryName(e.Min, e.Max))
	synced := false
	l.swapFS(vfs.NewFaulty(disk, func(o vfs.Op) error {
		if o.Path == name && o.Kind == vfs.OpSync && !synced {
			synced = true
			f, err := disk.OpenFile(name, os.O_RDWR, 0)
			if err == nil {
				_, err = f.WriteAt(make([]byte, e.Size), 0) // the kernel threw it away
			}
			return errors.Join(syscall.EIO, err)
		}
		if o.Path == name && o.Kind == vfs.OpRemove {
			return syscall.EIO
		}
		return nil
	}))
	if err := l.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if err := l.TruncateAfter(was); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if err := l.Sync(); err == nil {
		t.Errorf("durable up to %d, which is %v", l.Durable(), l.verify(e, place{}))
	}
}

// An entry that is being added while the fsync of its pack fails.
func TestSuspectWhileAdding(t *testing.T) {
	opt := func(fsys vfs.FS) Options {
		o := sharedRecent(fsys, RecentOptions{after: -1})
		o.Packs = true
		return o
	}
	disk, m, l := logOn(t, opt)
	for range 4 {
		m.append(t, l, true)
	}
	if err := l.Sync(); err != nil {
		t.Fatal(err)
	}
	m.append(t, l, true)
	head, _ := l.Head()
	at := l.placeOf(head).end()
	l.swapFS(vfs.NewFaulty(disk, loseFailed(disk, func() int64 { return at })))
	c := m.next()
	e, err := l.AppendConfirmed(c.h, c.emit, c.post, func() error {
		if err := l.Sync(); !errors.Is(err, syscall.EIO) {
			t.Error(err)
		}
		return l.Sync()
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Sync(); err == nil {
		t.Errorf("on disk up to %d, which is %v", l.synced(), l.verify(e, l.placeOf(e)))
	}
}

// The fsync with which a pack is cut fails and takes entries before with it.
func TestFailedFsyncOfACut(t *testing.T) {
	disk, m, l := logOn(t, bigPack)
	var at []place
	var es []Entry
	for n := range 6 {
		es = append(es, m.append(t, l, n == 3))
		at = append(at, l.placeOf(es[n]))
	}
	step := 0
	lose := loseFailed(disk, func() int64 { return at[4].at })
	l.swapFS(vfs.NewFaulty(disk, func(o vfs.Op) error {
		switch {
		case step == 0 && o.Kind == vfs.OpWrite && strings.HasSuffix(o.Path, packSuffix):
			step++
			return &vfs.ShortWrite{N: o.Size / 2, Err: syscall.EIO}
		case step == 1 && o.Kind == vfs.OpTruncate:
			step++
			return syscall.EIO
		case step == 2:
			return lose(o)
		}
		return nil
	}))
	c := m.next()
	for range 2 {
		if _, err := l.Append(c.h, c.emit, c.post, false); !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
	}
	if _, err := l.Append(c.h, c.emit, c.post, false); err != nil {
		t.Fatal(err)
	}
	if err := l.Sync(); err == nil {
		t.Errorf("durable up to %d, but %d is %v", l.Durable(), es[5].Max, l.verify(es[5], at[5]))
	}
}

// Entries whose retirement gives nothing back stay: those of the pack of the newest one.
func TestRetainWithoutGain(t *testing.T) {
	_, m, l := logOn(t, bigPack)
	for range 40 {
		m.append(t, l, false)
	}
	if n, _, err := l.Retain(time.Time{}, Retention{MaxBytes: 30 * recordAlign}); err != nil || n > 0 {
		t.Errorf("%d entries went for nothing: %v", n, err)
	}
	es := l.Entries()
	if len(es) < 10 {
		return
	}
	if err := l.TruncateAfter(es[9].Max); err != nil {
		t.Fatal(err)
	}
	var sum int64
	for _, n := range l.onDisk(l.Entries()) {
		sum += n
	}
	if sum > 12*recordAlign {
		t.Errorf("%d bytes on disk, says the log", sum)
	}
}

// The oldest pack of a log that is durable loses its content, and Open says nothing.
func TestOldestPackIsGone(t *testing.T) {
	disk, m, l := logOn(t, inPacks(testOptions))
	for range 12 {
		m.append(t, l, true)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	rewriteFile(t, disk, packName(1), func(b []byte) []byte { return b[:0] })
	l, err := Open(memDir, inPacks(testOptions)(disk))
	if err != nil {
		return
	}
	tail, _ := l.Tail()
	t.Errorf("the log begins with %d; dropped %v; files %v", tail.Min, l.Dropped(), listing(t, disk))
}

// Nothing is durable, the first pack is lost in a power cut, the second one is not: the log does not begin in the middle.
func TestLogBeginsInTheMiddle(t *testing.T) {
	disk, m, l := logOn(t, inPacks(testOptions))
	for range 12 {
		m.append(t, l, false)
	}
	_ = l
	if err := disk.SyncDir(memDir); err != nil { // as a commit of the journal does
		t.Fatal(err)
	}
	rewriteFile(t, disk, packName(1), func(b []byte) []byte { return b[:0] })
	l = open(t, memDir, inPacks(testOptions)(disk))
	if tail, ok := l.Tail(); ok {
		t.Errorf("the log begins with %d", tail.Min)
	}
}

// A process dies between the writing of a lower mark and its fsync; the next one truncates there, and then the power
// fails: the log is not broken.
func TestLowerMarkOfARunThatDied(t *testing.T) {
	disk, m, l := logOn(t, testOptions)
	var es []Entry
	for range 8 {
		es = append(es, m.append(t, l, true))
	}
	if err := l.putMark(l.synced(), true); err != nil {
		t.Fatal(err)
	}
	dead := false
	l.swapFS(vfs.NewFaulty(disk, func(o vfs.Op) error {
		dead = dead || o.Kind == vfs.OpSync && filepath.Base(o.Path) == durableName && l.mark.file != nil
		if dead {
			return syscall.EIO
		}
		return nil
	}))
	if err := l.TruncateAfter(es[4].Max); err == nil {
		t.Fatal("no error")
	}
	l, err := Open(memDir, testOptions(disk))
	if err != nil || l.synced() != es[4].Max {
		t.Fatal(err, l.synced())
	}
	if err := l.TruncateAfter(es[4].Max); err != nil {
		t.Fatal(err)
	}
	checkCuts(t, disk, testOptions, es[4].Max, es[4].Max)
}
