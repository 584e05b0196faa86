package ltxlog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"testing"
	"time"

	"github.com/superfly/ltx"

	"github.com/litefs/litefs/internal/vfs"
)

// TestCompact merges random histories in random ways. The database must come out the same, and a
// follower that has applied everything before a merged entry must get the same from it.
func TestCompact(t *testing.T) {
	for seed := range uint64(20) {
		m := newModel(seed, 512)
		disk := vfs.NewMem()
		l := open(t, memDir, Options{FS: disk})
		for n := range 60 {
			if n == 30 {
				m.epoch++
			}
			m.append(t, l, n%9 == 0)
		}
		before := l.Entries()
		c := Compaction{MinEntries: 2 + m.rnd.IntN(6), MaxBytes: int64(2000 + m.rnd.IntN(20000)), Before: uint64(m.rnd.IntN(100)),
			Cuts: []uint64{before[m.rnd.IntN(len(before))].Min, before[m.rnd.IntN(len(before))].Min}}
		merged, err := l.Compact(c)
		if err != nil {
			t.Fatal(err)
		}
		after := l.Entries()
		if len(after) != len(before)-merged {
			t.Fatalf("seed %d: %d entries became %d, reported %d", seed, len(before), len(after), merged)
		}
		checkChain(t, l)
		m.checkReplay(t, l, m.txid)
		for _, cut := range c.Cuts {
			if e, ok := find(after, cut); !ok || e.Min != cut {
				t.Errorf("seed %d: %d is within %d-%d, want an entry that begins with it", seed, cut, e.Min, e.Max)
			}
		}
		for _, e := range after {
			checkMerged(t, e, before, c)
			m.checkFollower(t, l, e)
			if err := ltx.NewDecoder(bytes.NewReader(read(t, l, e))).Verify(); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if l = open(t, memDir, Options{FS: disk}); !reflect.DeepEqual(l.Entries(), after) {
			t.Fatalf("seed %d: reopened with other entries", seed)
		}
	}
}

// checkMerged compares an entry with those it was made of.
func checkMerged(t *testing.T, e Entry, before []Entry, c Compaction) {
	t.Helper()
	first, ok := find(before, e.Min)
	last, ok2 := find(before, e.Max)
	if !ok || !ok2 || first.Min != e.Min || last.Max != e.Max {
		t.Fatalf("%v ends inside an entry", e)
	}
	want := last
	want.Min, want.Pre, want.Size = first.Min, first.Pre, e.Size
	if e != want {
		t.Fatalf("merged entry is %+v, want %+v", e, want)
	}
	if first == last {
		return
	}
	if first.Epoch != last.Epoch {
		t.Fatalf("%v has parts of epochs %d and %d", e, first.Epoch, last.Epoch)
	}
	if newest := before[len(before)-1]; last == newest {
		t.Fatal("the newest entry was merged")
	}
	if c.Before > 0 && e.Max >= c.Before {
		t.Fatalf("%v was merged, it is not before %d", e, c.Before)
	}
}

// checkFollower applies e to the state before it, as a follower does that keeps what it has.
func (m *model) checkFollower(t *testing.T, l *Log, e Entry) {
	t.Helper()
	db := bytes.Clone(m.history[state{e.Min - 1, e.Pre}])
	size := int(e.Commit) * int(e.PageSize)
	db = append(db, make([]byte, max(0, size-len(db)))...)[:size]
	err := l.Pages(e, func(pgno uint32, data []byte) error {
		copy(db[(pgno-1)*e.PageSize:], data)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(db, m.history[state{e.Max, e.Post}]) {
		t.Fatalf("a follower at %d gets another database from %s", e.Min-1, entryName(e.Min, e.Max))
	}
}

// TestCompactRegrownPages: a page that was cut off and added again without being written is zero,
// for a follower that still has its old content too.
func TestCompactRegrownPages(t *testing.T) {
	m := newModel(1, 512)
	l := open(t, memDir, Options{FS: vfs.NewMem()})
	step := func(count int, written ...uint32) {
		c := change{h: m.header(1), pages: map[uint32][]byte{}}
		m.resize(count)
		for _, pgno := range written {
			m.pages[pgno-1] = bytes.Repeat([]byte{byte(m.txid) + 1}, 512)
			c.pages[pgno] = m.pages[pgno-1]
		}
		c = m.finish(c)
		if _, err := l.Append(c.h, c.emit, c.post, false); err != nil {
			t.Fatal(err)
		}
	}
	step(6, 1, 2, 3, 4, 5, 6)
	m.epoch++ // the snapshot is not merged
	step(6, 2, 5)
	step(3, 1)
	step(7, 7)
	step(7, 1)
	if _, err := l.Compact(Compaction{MinEntries: 3}); err != nil {
		t.Fatal(err)
	}
	entries := l.Entries()
	if len(entries) != 3 || entries[1].Min != 2 || entries[1].Max != 4 {
		t.Fatalf("entries are %v, want 1, 2 to 4, 5", entries)
	}
	m.checkFollower(t, l, entries[1])
	m.checkReplay(t, l, 5)
}

func TestPlanCompaction(t *testing.T) {
	e := func(txid uint64, size int64) Entry {
		return Entry{Min: txid, Max: txid, Size: size, Commit: 1, PageSize: 512, Epoch: 1}
	}
	dropped, other, wide := e(4, 10), e(4, 10), e(4, 10)
	dropped.Commit, other.Epoch, wide.PageSize = 0, 2, 1024
	for _, tt := range []struct {
		name    string
		entries []Entry
		c       Compaction
		want    string
	}{
		{"all but the newest", []Entry{e(1, 10), e(2, 10), e(3, 10), e(4, 10)}, Compaction{MinEntries: 2}, "[1-3]"},
		{"too few", []Entry{e(1, 10), e(2, 10), e(3, 10)}, Compaction{MinEntries: 3}, "[]"},
		{"newest only", []Entry{e(1, 10)}, Compaction{MinEntries: 2}, "[]"},
		{"none", nil, Compaction{MinEntries: 2}, "[]"},
		{"followers", []Entry{e(1, 10), e(2, 10), e(3, 10), e(4, 10), e(5, 10)}, Compaction{MinEntries: 2, Before: 3}, "[1-2]"},
		{"size", []Entry{e(1, 10), e(2, 10), e(3, 10), e(4, 10), e(5, 10)}, Compaction{MinEntries: 2, MaxBytes: 20}, "[1-2 3-4]"},
		{"large one between", []Entry{e(1, 10), e(2, 10), e(3, 90), e(4, 10), e(5, 10), e(6, 10)}, Compaction{MinEntries: 2, MaxBytes: 50}, "[1-2 4-5]"},
		{"drop", []Entry{e(1, 10), e(2, 10), e(3, 10), dropped, e(5, 10), e(6, 10), e(7, 10)}, Compaction{MinEntries: 2}, "[1-3 5-6]"},
		{"epoch", []Entry{e(1, 10), e(2, 10), e(3, 10), other, e(5, 10), e(6, 10), e(7, 10)}, Compaction{MinEntries: 2}, "[1-3 5-6]"},
		{"page size", []Entry{e(2, 10), e(3, 10), wide, e(5, 10)}, Compaction{MinEntries: 2}, "[2-3]"},
	} {
		tt.c.ensureDefaults()
		var got []string
		for _, r := range planCompaction(tt.entries, tt.c) {
			got = append(got, fmt.Sprintf("%d-%d", r[0].Min, r[len(r)-1].Max))
		}
		if fmt.Sprint(got) != tt.want {
			t.Errorf("%s: %v, want %s", tt.name, got, tt.want)
		}
	}
}

func TestExpired(t *testing.T) {
	now := time.UnixMilli(1e12)
	var entries []Entry
	for i := range 5 {
		entries = append(entries, Entry{Min: uint64(2*i + 1), Max: uint64(2*i + 2), Size: 10, Timestamp: now.Add(time.Duration(i-5) * time.Minute)})
	}
	for _, tt := range []struct {
		name string
		r    Retention
		want int
	}{
		{"no limit", Retention{}, 0},
		{"age", Retention{MaxAge: 3*time.Minute + 30*time.Second}, 2},
		{"age of all", Retention{MaxAge: time.Second}, 4},
		{"size", Retention{MaxBytes: 30}, 2},
		{"size below the newest", Retention{MaxBytes: 1}, 4},
		{"either", Retention{MaxBytes: 40, MaxAge: 3*time.Minute + 30*time.Second}, 2},
		{"a follower needs 4", Retention{MaxBytes: 1, KeepFrom: 4}, 1},
		{"a follower needs 3", Retention{MaxBytes: 1, KeepFrom: 3}, 1},
		{"a follower needs 5", Retention{MaxBytes: 1, KeepFrom: 5}, 2},
	} {
		if got := expired(entries, []int64{10, 10, 10, 10, 10}, now, tt.r); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

// TestRetain: what is read stays readable, what is retired is reused, and the log goes on.
func TestRetain(t *testing.T) {
	m := newModel(2, 512)
	disk := vfs.NewMem()
	l := open(t, memDir, Options{FS: disk})
	for range 20 {
		m.append(t, l, false)
	}
	entries := l.Entries()
	want := read(t, l, entries[2])
	r, err := l.OpenEntry(entries[2])
	if err != nil {
		t.Fatal(err)
	}
	n, bytesGone, err := l.Retain(time.Time{}, Retention{MaxBytes: entries[19].Size + entries[18].Size + entries[17].Size})
	if err != nil || n != 17 {
		t.Fatalf("retain: %d, %v, want 17", n, err)
	}
	var size int64
	for _, e := range entries[:17] {
		size += e.Size
	}
	if bytesGone != size {
		t.Fatalf("retain: %d bytes, want %d", bytesGone, size)
	}
	if _, err := l.OpenEntry(entries[0]); !errors.Is(err, ErrNotFound) {
		t.Fatalf("open a retired entry: %v, want ErrNotFound", err)
	}
	for range 30 {
		m.append(t, l, false)
	}
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("an entry changed while it was read: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	checkChain(t, l)
	if _, _, err := l.Replay(&memory{}, m.txid); !errors.Is(err, ErrNoSnapshot) {
		t.Fatalf("replay without a snapshot: %v, want ErrNoSnapshot", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := disk.ReadDir(memDir)
	if err != nil || len(files) != 3+30+1 {
		t.Fatalf("%d files left, want 33 entries and the durable position: %v", len(files), err)
	}
	l = open(t, memDir, Options{FS: disk})
	if tail, _ := l.Tail(); tail != entries[17] || len(l.Dropped()) > 0 {
		t.Fatalf("reopened from %v, want %v; dropped %v", tail, entries[17], l.Dropped())
	}
}

// A transaction whose commit was refused, and what takes it back, stay entries of their own: who has the one is to be told
// by the other.
func TestCompactionLeavesWhatIsTakenBack(t *testing.T) {
	at := time.UnixMilli(1_700_000_000_000)
	const flag = 1 << 63
	var entries []Entry
	for i := range uint64(12) {
		entries = append(entries, Entry{
			Min: i + 2, Max: i + 2, Size: 100, Pre: flag | i, Post: flag | (i + 1), Commit: 1, PageSize: 512, Epoch: 1,
			Timestamp: at.Add(time.Duration(i) * time.Second),
		})
	}
	refused, back := &entries[5], &entries[6]
	back.Post, back.Timestamp = refused.Pre, refused.Timestamp
	entries[7].Pre = back.Post
	if !back.TakesBack(*refused) || refused.TakesBack(entries[4]) || entries[7].TakesBack(*back) || back.TakesBack(Entry{}) {
		t.Fatal("it is not known which entry takes which back")
	}
	var got [][2]uint64
	for _, run := range planCompaction(entries, Compaction{MaxBytes: 1 << 20, MinEntries: 2}) {
		got = append(got, [2]uint64{run[0].Min, run[len(run)-1].Max})
	}
	if want := [][2]uint64{{2, 6}, {9, 12}}; !reflect.DeepEqual(got, want) {
		t.Errorf("merged are %v, want %v", got, want)
	}
}
