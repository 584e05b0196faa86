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
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/vfs"
)

const memRecent = "/data/recent"

// recentOn opens the file of recent entries of a node with one log.
func recentOn(fsys vfs.FS, opt RecentOptions) (*Recent, error) {
	opt.FS, opt.syncInline = fsys, true
	return OpenRecent(memRecent, func(uint64) string { return memDir }, opt)
}

// sharedRecent is recentOn with that log's options.
func sharedRecent(fsys vfs.FS, opt RecentOptions) Options {
	r, err := recentOn(fsys, opt)
	if err != nil {
		panic(err) // the disk is whole
	}
	return Options{FS: fsys, spillSize: testSpill, Recent: r, ID: 7}
}

// recentOptions use the recent file from the first durable append on, and it is full soon.
func recentOptions(fsys vfs.FS) Options {
	return sharedRecent(fsys, RecentOptions{after: -1, size: 8 * recordAlign})
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
			for n := 0; cutAt(t, op, n, cutSeeds, preparedRecent, recentOptions); n++ {
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
	large := func(fsys vfs.FS) Options { return sharedRecent(fsys, RecentOptions{after: -1}) }
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
	f, err := disk.OpenFile(memRecent, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	records, err := l.recent.read()
	if err != nil {
		t.Fatal(err)
	}
	at := l.recent.size / 2 // the half that is used first
	for _, p := range records[:len(records)-2] {
		at += align(recordPrefix + int64(len(p.b)))
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
		if !mended && o.Kind == vfs.OpWrite && (o.Path == memRecent || filepath.Base(o.Path) == durableName) {
			return &vfs.ShortWrite{N: o.Size, Err: syscall.EIO}
		}
		return nil
	}))
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
		"file":   func(fsys vfs.FS) Options { return Options{FS: fsys} },
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
		if o.Kind == vfs.OpWrite && o.Path == memRecent {
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
	if _, err := disk.Stat(memRecent); err == nil {
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
		if records, err := l.recent.read(); err != nil || len(want) != 1 || len(records) < 2 {
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
	l := open(t, memDir, sharedRecent(disk, RecentOptions{}))
	for n := range 2 * recentAfter {
		m.append(t, l, true)
		_, err := disk.Stat(memRecent)
		if has := err == nil; has != (n >= recentAfter) {
			t.Fatalf("after %d durable appends there is a file: %v", n+1, has)
		}
	}
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

// Logs that wait at the same time share writes; after a power cut, whatever it takes, each log has what was acknowledged,
// and only its own. One whose directory is gone gets nothing.
func TestRecentIsShared(t *testing.T) {
	disk := vfs.NewMem()
	const logs = 8
	dir := func(id uint64) string { return fmt.Sprintf("/data/%d/ltx", id) }
	opt := RecentOptions{after: -1, syncInline: true, size: 64 * recordAlign}
	start := func(fsys vfs.FS) *Recent {
		t.Helper()
		opt.FS = fsys
		r, err := OpenRecent(memRecent, dir, opt)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if err := disk.MkdirAll("/data", 0o700); err != nil {
		t.Fatal(err)
	}
	writes := 0
	all := make(chan struct{}) // closed when the others wait behind the first write
	r := start(vfs.NewFaulty(disk, func(o vfs.Op) error {
		if o.Kind == vfs.OpWrite && o.Path == memRecent && o.Size < int(opt.size) {
			if writes++; writes == 1 {
				<-all
			}
		}
		return nil
	}))
	var ms []*model
	var ls []*Log
	for id := range uint64(logs) {
		l := open(t, dir(id), Options{FS: disk, spillSize: testSpill, Recent: r, ID: id})
		m := newModel(id, 512)
		m.append(t, l, false)
		if err := l.Sync(); err != nil {
			t.Fatal(err)
		}
		ms, ls = append(ms, m), append(ls, l)
	}
	var wg sync.WaitGroup
	for i, l := range ls {
		c := ms[i].next()
		wg.Go(func() {
			if _, err := l.Append(c.h, c.emit, c.post, true); err != nil {
				t.Error(err)
			}
		})
	}
	waiting := func() int {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.queue)
	}
	for deadline := time.Now().Add(time.Minute); waiting() < logs-1 && time.Now().Before(deadline); {
		runtime.Gosched()
	}
	close(all)
	wg.Wait()
	if writes != 2 {
		t.Errorf("%d writes for %d entries, want 2", writes, logs)
	}
	for round := range 30 {
		for i, l := range ls {
			if i > round%logs { // some have written long ago
				ms[i].append(t, l, true)
			}
		}
		for seed := range uint64(5) {
			cut := disk.Cut(rand.New(rand.NewPCG(uint64(round), seed)))
			gone := uint64(seed) % logs
			for _, name := range dirNames(t, cut, dir(gone)) {
				if err := cut.Remove(filepath.Join(dir(gone), name)); err != nil {
					t.Fatal(err)
				}
			}
			if err := cut.Remove(dir(gone)); err != nil {
				t.Fatal(err)
			}
			again := start(cut)
			if _, err := cut.Stat(dir(gone)); err == nil {
				t.Fatal("a log that was dropped is there")
			}
			for id, m := range ms {
				if uint64(id) == gone {
					continue
				}
				l := open(t, dir(uint64(id)), Options{FS: cut, spillSize: testSpill, Recent: again, ID: uint64(id)})
				if head, _ := l.Head(); head.Max != m.txid {
					t.Fatalf("round %d, seed %d: log %d is at %d, want %d", round, seed, id, head.Max, m.txid)
				}
				m.checkReplay(t, l, m.txid)
			}
		}
	}
}

func dirNames(t *testing.T, disk vfs.FS, dir string) (names []string) {
	t.Helper()
	files, err := disk.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		names = append(names, f.Name())
	}
	return names
}

// A log that cannot be opened keeps its copies over starts at which the others go on, and fill the file again.
func TestRecentOfALogThatDoesNotOpen(t *testing.T) {
	disk, m, l := preparedRecent(t, 1)
	want := l.Entries()
	for _, e := range want[len(want)-2:] {
		lose(t, disk, e, true)
	}
	for range 3 { // nobody opens it
		other := recentOptions(disk)
		other.ID = 8
		log := open(t, "/data/other", other)
		om := newModel(2, 512)
		if err := om.rewindTo(log); err == nil && om.txid == 0 {
			for range 20 {
				om.append(t, log, true)
			}
		}
		if err := errors.Join(log.Close(), other.Recent.Close()); err != nil {
			t.Fatal(err)
		}
	}
	l = open(t, memDir, recentOptions(disk))
	if got := l.Entries(); !reflect.DeepEqual(got, want) {
		t.Fatalf("found %v, want %v", got, want)
	}
	m.checkReplay(t, l, m.txid)
	if slices.Contains(listing(t, disk), recentName) {
		t.Error("copies of entries that are on disk were kept")
	}
}
