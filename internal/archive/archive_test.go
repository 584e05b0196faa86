package archive_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/superfly/ltx"

	"github.com/litefs/litefs/internal/archive"
)

func header(first, last uint64, pageSize, commit uint32) archive.Header {
	return archive.Header{
		Min: first, Max: last, PageSize: pageSize, Commit: commit, Time: time.UnixMilli(1700000000123).UTC(),
		State: archive.State{TXID: 10 * last, Count: 7, DB: 0xfedcba98, Sum: 1<<63 | last, Epoch: 3},
	}
}

// page is content that can be compressed, or not.
func page(r *rand.Rand, size uint32) []byte {
	b := make([]byte, size)
	switch r.IntN(3) {
	case 0:
		for i := range b {
			b[i] = byte(r.Uint32())
		}
	case 1:
		copy(b, fmt.Sprint("page ", r.Uint64()))
	}
	return b
}

func encode(t testing.TB, h archive.Header, have uint32, pages map[uint32][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := archive.NewWriter(&b, h, have)
	if err != nil {
		t.Fatal(err)
	}
	pgnos := make([]uint32, 0, len(pages))
	for pgno := range pages {
		pgnos = append(pgnos, pgno)
	}
	slices.Sort(pgnos)
	for _, pgno := range pgnos {
		if err := w.Page(pgno, pages[pgno]); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := w.Close(); err != nil || n != int64(b.Len()) {
		t.Fatalf("%d bytes, %v; want %d", n, err, b.Len())
	}
	return b.Bytes()
}

func decode(b []byte) (archive.Header, map[uint32][]byte, error) {
	d, err := archive.NewReader(bytes.NewReader(b), true)
	if err != nil {
		return archive.Header{}, nil, err
	}
	pages := map[uint32][]byte{}
	for {
		pgno, data, err := d.Next()
		if errors.Is(err, io.EOF) {
			return d.Header, pages, nil
		}
		if err != nil {
			return d.Header, nil, err
		}
		pages[pgno] = slices.Clone(data)
	}
}

// TestObject: what is written is read again, also by the library of Litestream, and every byte counts.
func TestObject(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, pageSize := range []uint32{512, 4096, 65536} {
		for _, first := range []uint64{1, 2} {
			h := header(first, 2, pageSize, 9)
			pages := map[uint32][]byte{2: page(r, pageSize), 3: page(r, pageSize), 7: page(r, pageSize)}
			b := encode(t, h, 5, pages)
			want := map[uint32][]byte{6: make([]byte, pageSize), 8: make([]byte, pageSize), 9: make([]byte, pageSize)}
			if first == 1 {
				for _, pgno := range []uint32{1, 4, 5} {
					want[pgno] = make([]byte, pageSize)
				}
			}
			for pgno, data := range pages {
				want[pgno] = data
			}
			got, gotPages, err := decode(b)
			if err != nil || got != h || !reflect.DeepEqual(gotPages, want) {
				t.Fatalf("got %+v, %d pages, %v; want %+v, %d", got, len(gotPages), err, h, len(want))
			}
			dec := ltx.NewDecoder(bytes.NewReader(b))
			if err := dec.Verify(); err != nil {
				t.Errorf("Litestream's library: %v", err)
			}
			for i := 0; i < len(b); i += 1 + len(b)/500 {
				damaged := slices.Clone(b)
				damaged[i] ^= 1 << r.IntN(8)
				// The checksums that LZ4 frames have of themselves are not part of the content.
				if got, gotPages, err := decode(damaged); err == nil && !reflect.DeepEqual(gotPages, want) {
					t.Fatalf("a bit of byte %d is another and nothing is found: %+v", i, got)
				}
			}
			for _, n := range []int{0, 1, 99, 100, len(b) / 2, len(b) - 1} {
				if _, _, err := decode(b[:n]); !errors.Is(err, archive.ErrCorrupt) {
					t.Errorf("%d of %d bytes: %v", n, len(b), err)
				}
			}
			if _, _, err := decode(append(slices.Clone(b), 0)); !errors.Is(err, archive.ErrCorrupt) {
				t.Errorf("a byte behind the end: %v", err)
			}
		}
	}
}

// TestMerge: the pages of a merged object are those that a database has after the parts, whatever grew
// and shrank in between.
func TestMerge(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		const pageSize = 512
		database := [][]byte{}
		var parts []io.Reader
		start := 1 + r.Uint64N(2)
		n := 1 + r.Uint64N(6)
		if start == 2 {
			for range 1 + r.IntN(10) {
				database = append(database, page(r, pageSize))
			}
		}
		before := slices.Clone(database)
		for i := range n {
			have := uint32(len(database))
			commit := 1 + r.IntN(12)
			for len(database) < commit {
				database = append(database, make([]byte, pageSize))
			}
			database = database[:commit]
			changed := map[uint32][]byte{}
			for range r.IntN(5) {
				pgno := 1 + r.Uint32N(uint32(commit))
				database[pgno-1] = page(r, pageSize)
				changed[pgno] = database[pgno-1]
			}
			parts = append(parts, bytes.NewReader(encode(t, header(start+i, start+i, pageSize, uint32(commit)), have, changed)))
		}
		var out bytes.Buffer
		h, size, err := archive.Merge(&out, parts)
		if err != nil || size != int64(out.Len()) {
			t.Fatalf("seed %d: %v", seed, err)
		}
		got, pages, err := decode(out.Bytes())
		if err != nil || got != h || h.Min != start || h.Max != start+n-1 || h.State.Count != uint32(7*n) {
			t.Fatalf("seed %d: %+v %v", seed, got, err)
		}
		made := slices.Clone(before[:min(len(before), len(database))])
		for len(made) < len(database) {
			made = append(made, nil)
		}
		for pgno, data := range pages {
			made[pgno-1] = data
		}
		if !reflect.DeepEqual(made, database) {
			t.Fatalf("seed %d: merged pages make another database", seed)
		}
	}
}

func obj(level int, first, last uint64) archive.Object {
	return archive.Object{Level: level, Min: first, Max: last, Size: int64(last - first + 1)}
}

func TestPlan(t *testing.T) {
	raw := func(from, to uint64) (out []archive.Object) {
		for n := from; n <= to; n++ {
			out = append(out, obj(0, n, n))
		}
		return out
	}
	for _, tt := range []struct {
		name    string
		objects []archive.Object
		target  uint64
		want    string
	}{
		{"raw only", raw(1, 3), 0, "[0/0000000000000001-0000000000000001.ltx 0/0000000000000002-0000000000000002.ltx 0/0000000000000003-0000000000000003.ltx]"},
		{"snapshot", append(raw(3, 5), obj(9, 1, 4)), 0, "[9/0000000000000001-0000000000000004.ltx 0/0000000000000005-0000000000000005.ltx]"},
		{"before the snapshot", append(raw(1, 5), obj(9, 1, 4)), 2, "[0/0000000000000001-0000000000000001.ltx 0/0000000000000002-0000000000000002.ltx]"},
		{"run over a hole", append(raw(1, 2), obj(1, 2, 4), obj(0, 5, 5)), 0, "[0/0000000000000001-0000000000000001.ltx 1/0000000000000002-0000000000000004.ltx 0/0000000000000005-0000000000000005.ltx]"},
		{"inside a run", []archive.Object{obj(1, 1, 4)}, 3, "no object with every page leads to moment 3"},
		{"hole", append(raw(1, 2), raw(4, 5)...), 0, "moment 2 is reached, and no object leads on from there to moment 5"},
		{"no beginning", raw(2, 5), 0, "no object with every page leads to moment 5"},
		{"nothing", nil, 0, "it has no objects"},
	} {
		plan, err := archive.Plan(tt.objects, tt.target)
		got := fmt.Sprint(plan)
		if err != nil {
			if !errors.Is(err, archive.ErrNoPlan) {
				t.Errorf("%s: %v", tt.name, err)
			}
			got = err.Error()[len(archive.ErrNoPlan.Error())+2:]
		}
		if got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

// TestExpired: of random archives and limits, what stays gives its newest moment and every moment from
// the oldest snapshot on that it gave before, but for raw ones that were to go.
func TestExpired(t *testing.T) {
	start := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 2))
		n := 1 + r.Uint64N(60)
		at := func(m uint64) time.Time { return start.Add(time.Duration(m) * time.Minute) }
		var objects []archive.Object
		add := func(o archive.Object) { o.Modified = at(o.Max); objects = append(objects, o) }
		for m := uint64(1); m <= n; m++ {
			add(obj(0, m, m))
			if r.IntN(15) == 0 {
				add(obj(9, 1, m))
			}
		}
		ends := []uint64{0}
		for m := uint64(1); m <= n; m++ {
			if r.IntN(4) == 0 {
				add(obj(1, ends[len(ends)-1]+1, m))
				ends = append(ends, m)
			}
		}
		l := archive.Limits{Count: r.IntN(4), Size: r.Int64N(100)}
		if r.IntN(2) == 0 {
			l.Before = at(r.Uint64N(n + 1))
		}
		if r.IntN(2) == 0 {
			l.RawBefore = at(r.Uint64N(n + 1))
		}
		before := archive.Moments(objects)
		gone := archive.Expired(objects, l)
		left := slices.DeleteFunc(slices.Clone(objects), func(o archive.Object) bool { return slices.Contains(gone, o) })
		after := archive.Moments(left)
		if len(after) == 0 || after[len(after)-1] != n {
			t.Fatalf("seed %d: the newest moment of %d is gone: %v", seed, n, after)
		}
		for _, m := range before {
			kept := slices.Contains(after, m)
			coveredRaw := !l.RawBefore.IsZero() && at(m).Before(l.RawBefore)
			if !kept && m >= after[0] && !coveredRaw {
				t.Fatalf("seed %d: moment %d is gone, the oldest that is left is %d", seed, m, after[0])
			}
			if !kept && !l.Before.IsZero() && l.Count == 0 && l.Size == 0 && !at(m).Before(l.Before) && !coveredRaw {
				t.Fatalf("seed %d: moment %d is gone before its time", seed, m)
			}
		}
		if l.Count > 0 {
			snapshots := 0
			for _, o := range left {
				if o.Level == archive.LevelSnapshot {
					snapshots++
				}
			}
			if snapshots > l.Count {
				t.Fatalf("seed %d: %d snapshots, want at most %d", seed, snapshots, l.Count)
			}
		}
	}
}

func FuzzReader(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	f.Add(encode(f, header(1, 2, 512, 3), 0, map[uint32][]byte{1: page(r, 512)}))
	f.Add(encode(f, header(2, 2, 1024, 3), 3, map[uint32][]byte{2: page(r, 1024)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, pages, err := decode(b)
		if err != nil {
			return
		}
		if got, again, err := decode(encode(t, h, h.Commit, pages)); err != nil || got != h || !reflect.DeepEqual(again, pages) {
			t.Errorf("%+v: %v", got, err)
		}
	})
}
