package pagesum_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/litefs/litefs/internal/pagesum"
	"github.com/superfly/ltx"
)

const flag = uint64(ltx.ChecksumFlag)

func open(t testing.TB, path, boot string) *pagesum.File {
	t.Helper()
	f, err := pagesum.Open(path, boot)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(false); err != nil {
			t.Error(err)
		}
	})
	return f
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// model is the file as a map.
type model struct {
	count uint32
	sums  map[uint32]uint64
}

func (m *model) sum() uint64 {
	x := uint64(0)
	for _, s := range m.sums {
		x ^= s
	}
	return flag | x
}

func (m *model) resize(count uint32) {
	m.count = count
	maps.DeleteFunc(m.sums, func(p uint32, _ uint64) bool { return p > count })
}

func (m *model) check(t *testing.T, f *pagesum.File) {
	t.Helper()
	if got := f.Count(); got != m.count {
		t.Fatalf("count %d, want %d", got, m.count)
	}
	if got, want := f.Sum(), m.sum(); got != want {
		t.Fatalf("sum %016x, want %016x", got, want)
	}
	for p := range m.count + 3 {
		if got, want := f.Get(p), m.sums[p]; got != want {
			t.Fatalf("page %d: %016x, want %016x", p, got, want)
		}
	}
}

func TestNewFileIsEmpty(t *testing.T) {
	f := open(t, filepath.Join(t.TempDir(), "checksums"), "boot")
	if got, want := f.Stamp(), (pagesum.Stamp{}); got != want {
		t.Fatalf("stamp %+v, want %+v", got, want)
	}
	if f.Count() != 0 || f.PageSize() != 0 || f.Sum() != flag || f.Get(1) != 0 {
		t.Fatalf("count %d, page size %d, sum %x", f.Count(), f.PageSize(), f.Sum())
	}
	if err := f.Set(1, 5); err == nil {
		t.Fatal("set without a page size: no error")
	}
}

func TestRandomOperationsMatchModel(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			path := filepath.Join(t.TempDir(), "checksums")
			m := &model{sums: map[uint32]uint64{}}
			f := open(t, path, "boot")
			must(t, f.SetPageSize(4096))
			for step := range 400 {
				switch n := rnd.IntN(20); {
				case n < 12:
					p, s := 1+rnd.Uint32N(m.count+5), flag|rnd.Uint64()
					must(t, f.Set(p, s))
					m.count = max(m.count, p)
					m.sums[p] = s
				case n < 14:
					c := rnd.Uint32N(600)
					must(t, f.Resize(c))
					m.resize(c)
				case n < 15:
					must(t, f.Mark(uint64(step)))
				case n < 18:
					// SumAfter says what the changes then do.
					changes := map[uint32]uint64{}
					for range rnd.IntN(10) {
						changes[1+rnd.Uint32N(700)] = flag | rnd.Uint64()
					}
					c := rnd.Uint32N(700)
					before := f.Sum()
					want := f.SumAfter(maps.All(changes), c)
					if f.Sum() != before {
						t.Fatal("SumAfter changed the sum")
					}
					must(t, f.Resize(c))
					m.resize(c)
					for p, s := range changes {
						if p <= c {
							must(t, f.Set(p, s))
							m.sums[p] = s
						}
					}
					if got := f.Sum(); got != want {
						t.Fatalf("sum %016x, SumAfter said %016x", got, want)
					}
				case n < 19:
					must(t, f.Close(rnd.IntN(2) == 0))
					f = open(t, path, "boot")
				default:
					f = open(t, crashCopy(t, path), "boot")
					path = f.Path()
				}
				m.check(t, f)
			}
		})
	}
}

// crashCopy copies the file as it is while its owner still has it open: what a
// killed process leaves.
func crashCopy(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	dst := filepath.Join(t.TempDir(), "checksums")
	must(t, os.WriteFile(dst, b, 0o600))
	return dst
}

func TestStamp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "checksums")
	f := open(t, path, "boot-1")
	must(t, f.SetPageSize(512))
	must(t, f.Set(1, flag|1))
	must(t, f.Mark(7))
	must(t, f.Set(2, flag|2))

	crashed := crashCopy(t, path)
	if got, want := open(t, crashCopy(t, crashed), "boot-1").Stamp(), (pagesum.Stamp{TXID: 7, SameBoot: true}); got != want {
		t.Fatalf("after a kill: %+v, want %+v", got, want)
	}
	if got, want := open(t, crashed, "boot-2").Stamp(), (pagesum.Stamp{TXID: 7}); got != want {
		t.Fatalf("after a power cut: %+v, want %+v", got, want)
	}

	must(t, f.Mark(8))
	must(t, f.Close(true))
	g := open(t, path, "boot-2")
	if got, want := g.Stamp(), (pagesum.Stamp{TXID: 8, Clean: true}); got != want {
		t.Fatalf("after a clean stop: %+v, want %+v", got, want)
	}
	// Unchanged, the file stays clean; changed, it does not.
	if got := open(t, crashCopy(t, path), "boot-2").Stamp(); !got.Clean {
		t.Fatalf("opened and not changed: %+v, want clean", got)
	}
	must(t, g.Set(1, flag|9))
	if got, want := open(t, crashCopy(t, path), "boot-2").Stamp(), (pagesum.Stamp{TXID: 8, SameBoot: true}); got != want {
		t.Fatalf("after a change: %+v, want %+v", got, want)
	}
}

func TestCloseWithoutCleanIsNotClean(t *testing.T) {
	path := filepath.Join(t.TempDir(), "checksums")
	f := open(t, path, "b")
	must(t, f.SetPageSize(512))
	must(t, f.Mark(3))
	must(t, f.Close(false))
	must(t, f.Close(true)) // twice does nothing
	if got, want := open(t, path, "b").Stamp(), (pagesum.Stamp{TXID: 3, SameBoot: true}); got != want {
		t.Fatalf("stamp %+v, want %+v", got, want)
	}
}

func TestClosedFileRefusesChanges(t *testing.T) {
	f := open(t, filepath.Join(t.TempDir(), "checksums"), "b")
	must(t, f.SetPageSize(512))
	must(t, f.Set(3, flag|3))
	must(t, f.Close(true))
	if f.Get(3) != 0 {
		t.Fatal("a closed file has sums")
	}
	for name, err := range map[string]error{"set": f.Set(1, flag), "resize": f.Resize(3), "mark": f.Mark(1), "page size": f.SetPageSize(1024)} {
		if !errors.Is(err, pagesum.ErrClosed) {
			t.Errorf("%s: %v, want ErrClosed", name, err)
		}
	}
}

func TestPageSizeDropsSums(t *testing.T) {
	f := open(t, filepath.Join(t.TempDir(), "checksums"), "b")
	must(t, f.SetPageSize(512))
	must(t, f.Set(3, flag|3))
	must(t, f.SetPageSize(512))
	if f.Get(3) != flag|3 {
		t.Fatal("the same page size dropped a sum")
	}
	must(t, f.SetPageSize(1024))
	must(t, f.Resize(3))
	if f.Get(3) != 0 || f.Sum() != flag || f.PageSize() != 1024 {
		t.Fatalf("page 3 %x, sum %x, page size %d", f.Get(3), f.Sum(), f.PageSize())
	}
	for _, bad := range []uint32{0, 256, 513, 131072} {
		if err := f.SetPageSize(bad); err == nil {
			t.Errorf("page size %d: no error", bad)
		}
	}
}

func TestLockPageHasNoSum(t *testing.T) {
	for size := uint32(16384); size <= 65536; size *= 2 {
		f := open(t, filepath.Join(t.TempDir(), "checksums"), "b")
		must(t, f.SetPageSize(size))
		lock := ltx.LockPgno(size)
		must(t, f.Set(lock, flag|5))
		must(t, f.Set(lock+1, flag|6))
		if f.Get(lock) != 0 || f.Sum() != flag|6 || f.Count() != lock+1 {
			t.Fatalf("page size %d: lock page %x, sum %x, count %d", size, f.Get(lock), f.Sum(), f.Count())
		}
		if got := f.SumAfter(maps.All(map[uint32]uint64{lock: flag | 9}), lock+1); got != flag|6 {
			t.Fatalf("SumAfter counts the lock page: %x", got)
		}
	}
}

func TestForeignAndDamagedFiles(t *testing.T) {
	good := func(t *testing.T) []byte {
		path := filepath.Join(t.TempDir(), "checksums")
		f := open(t, path, "b")
		must(t, f.SetPageSize(512))
		must(t, f.Set(100, flag|1))
		must(t, f.Close(true))
		b, err := os.ReadFile(path)
		must(t, err)
		return b
	}
	tests := []struct {
		name string
		mend func(b []byte) []byte
		want error
	}{
		{"text", func([]byte) []byte { return bytes.Repeat([]byte("hello"), 2000) }, pagesum.ErrCorrupt},
		{"short", func(b []byte) []byte { return b[:100] }, pagesum.ErrCorrupt},
		{"sums missing", func(b []byte) []byte { return b[:4096] }, pagesum.ErrCorrupt},
		{"both slots torn", func(b []byte) []byte { b[20] ^= 1; b[512+20] ^= 1; return b }, pagesum.ErrCorrupt},
		{"one slot torn", func(b []byte) []byte { b[20] ^= 1; return b }, nil},
		{"other slot torn", func(b []byte) []byte { b[512+20] ^= 1; return b }, nil},
		{"never written", func(b []byte) []byte { return make([]byte, len(b)) }, nil},
		{"from the future", func(b []byte) []byte { return pagesum.FutureVersion(b) }, pagesum.ErrVersion},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "checksums")
			must(t, os.WriteFile(path, tt.mend(good(t)), 0o600))
			f, err := pagesum.Open(path, "b")
			if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Fatalf("open: %v, want %v", err, tt.want)
			}
			if err == nil {
				must(t, f.Close(false))
			}
		})
	}
}

// A shrink that died between the header and the stores leaves old sums behind
// the count.
func TestOldSumsBehindTheCountStayGone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "checksums")
	f := open(t, path, "b")
	must(t, f.SetPageSize(512))
	must(t, f.Set(1, flag|1))
	must(t, f.Close(true))
	b, err := os.ReadFile(path)
	must(t, err)
	for i := 4096 + 8; i < len(b); i++ {
		b[i] = 0xee
	}
	b = append(b, bytes.Repeat([]byte{0xee}, 5000)...)
	must(t, os.WriteFile(path, b, 0o600))
	f = open(t, path, "b")
	must(t, f.Resize(900))
	(&model{count: 900, sums: map[uint32]uint64{1: flag | 1}}).check(t, f)
}

func TestFullDiskIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "checksums")
	f := open(t, path, "b")
	must(t, f.SetPageSize(512))
	must(t, f.Set(1, flag|1))
	pagesum.LimitFileSize(t, 64<<10, func() {
		if err := f.Set(1<<20, flag|2); err == nil {
			t.Error("growing over the limit: no error")
		}
	})
	(&model{count: 1, sums: map[uint32]uint64{1: flag | 1}}).check(t, f)
	must(t, f.Set(1<<20, flag|2))
	if f.Sum() != flag|1|2 {
		t.Fatalf("sum %x", f.Sum())
	}
}

func TestReadersWhileTheFileGrows(t *testing.T) {
	f := open(t, filepath.Join(t.TempDir(), "checksums"), "b")
	must(t, f.SetPageSize(512))
	must(t, f.Set(1, flag|1))
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				n := f.Count()
				if s := f.Get(n); s != 0 && s != flag|uint64(n) {
					t.Errorf("page %d: %x", n, s)
					return
				}
				f.Sum()
				f.SumAfter(maps.All(map[uint32]uint64{1: 2}), n)
			}
		})
	}
	for n := uint32(2); n < 1<<21; n *= 2 {
		must(t, f.Set(n, flag|uint64(n)))
	}
	must(t, f.Resize(10))
	must(t, f.Close(true))
	close(done)
	wg.Wait()
}

func TestCompute(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for size := uint32(512); size <= 65536; size *= 2 {
		const bytesWanted = 3<<20 + 1<<18
		b := make([]byte, bytesWanted)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		count := uint32(bytesWanted / size)
		got := map[uint32]uint64{}
		must(t, pagesum.Compute(bytes.NewReader(b), size, count, 4, func(p uint32, s uint64) { got[p] = s }))
		for p := uint32(1); p <= count; p++ {
			if want := uint64(ltx.ChecksumPage(p, b[(p-1)*size:p*size])); got[p] != want {
				t.Fatalf("page size %d, page %d: %x, want %x", size, p, got[p], want)
			}
		}
		if len(got) != int(count) {
			t.Fatalf("page size %d: %d sums, want %d", size, len(got), count)
		}
		if err := pagesum.Compute(bytes.NewReader(b), size, count+1, 4, func(uint32, uint64) {}); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("a page too many: %v", err)
		}
	}
	must(t, pagesum.Compute(nil, 0, 0, 0, nil))
}

// zeroes is a database of zeroes as large as asked.
type zeroes struct{}

func (zeroes) ReadAt(b []byte, _ int64) (int, error) { clear(b); return len(b), nil }

func TestComputeSkipsTheLockPage(t *testing.T) {
	lock := ltx.LockPgno(65536)
	n := uint32(0)
	must(t, pagesum.Compute(zeroes{}, 65536, lock+2, 0, func(p uint32, _ uint64) {
		n++
		if p == lock {
			t.Error("lock page has a sum")
		}
	}))
	if n != lock+1 {
		t.Fatalf("%d sums, want %d", n, lock+1)
	}
}

func BenchmarkOpen524288Pages(b *testing.B) {
	path := filepath.Join(b.TempDir(), "checksums")
	f := open(b, path, "b")
	must(b, f.SetPageSize(4096))
	for p := uint32(1); p <= 524288; p++ {
		must(b, f.Set(p, flag|uint64(p)*0x9e3779b97f4a7c15))
	}
	must(b, f.Close(true))
	for b.Loop() {
		f, err := pagesum.Open(path, "b")
		must(b, err)
		must(b, f.Close(true))
	}
}

func BenchmarkSetAndMark(b *testing.B) {
	f := open(b, filepath.Join(b.TempDir(), "checksums"), "b")
	must(b, f.SetPageSize(4096))
	must(b, f.Resize(1<<16))
	for i := 0; b.Loop(); i++ {
		for j := range uint32(4) {
			must(b, f.Set(1+(uint32(i)*977+j)%(1<<16), flag|uint64(i)))
		}
		must(b, f.Mark(uint64(i)))
	}
}

func BenchmarkCompute(b *testing.B) {
	const pages = 8192
	b.SetBytes(pages * 4096)
	for b.Loop() {
		must(b, pagesum.Compute(zeroes{}, 4096, pages, 0, func(uint32, uint64) {}))
	}
}

// A sum that somebody else has changed spoils the rolling checksum until it is counted anew.
func TestRecount(t *testing.T) {
	path := filepath.Join(t.TempDir(), "checksums")
	p, err := pagesum.Open(path, "boot")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.SetPageSize(512); err != nil {
		t.Fatal(err)
	}
	const flag = 1 << 63
	for pgno, sum := range []uint64{flag | 1, flag | 2, flag | 4} {
		if err := p.Set(uint32(pgno+1), sum); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{0xff}, 4096+8); err != nil { // page 2
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Set(2, flag|2); err != nil {
		t.Fatal(err)
	}
	if p.Sum() == flag|7 {
		t.Error("the rolling checksum does not follow the stores")
	}
	if err := p.Recount(); err != nil {
		t.Fatal(err)
	}
	if got := p.Sum(); got != flag|7 {
		t.Errorf("sum %016x after counting anew", got)
	}
	if err := p.Close(true); err != nil {
		t.Fatal(err)
	}
	if err := p.Recount(); !errors.Is(err, pagesum.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}
