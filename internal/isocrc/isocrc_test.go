package isocrc

import (
	"bytes"
	"hash/crc64"
	"math/rand/v2"
	"testing"
)

var table = crc64.MakeTable(crc64.ISO)

func TestUpdateIsThatOfHashCRC64(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 70_000)
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	check := func(start uint64, b []byte) {
		t.Helper()
		want := crc64.Update(start, table, b)
		if got := Update(start, b); got != want {
			t.Fatalf("%d bytes after %016x: got %016x, want %016x", len(b), start, got, want)
		}
		if got := portable(start, b); got != want {
			t.Fatalf("%d bytes after %016x, portably: got %016x, want %016x", len(b), start, got, want)
		}
	}
	for n := range 600 {
		check(0, data[:n])
		check(r.Uint64(), data[n:2*n])
	}
	for range 2000 {
		from := r.IntN(len(data))
		check(r.Uint64(), data[from:from+r.IntN(len(data)-from)])
	}
	for _, b := range []byte{0, 1, 0x80, 0xff} {
		check(0, bytes.Repeat([]byte{b}, 4096))
	}
	// Bit by bit: what a multiplication loses would show in one of them.
	for _, size := range []int{64, 128, 192, 200} {
		for bit := range size * 8 {
			b := make([]byte, size)
			b[bit/8] = 1 << (bit % 8)
			check(0, b)
			check(1<<(bit%64), b)
		}
	}
}

// portable is Update on a processor that does not multiply polynomials.
func portable(crc uint64, p []byte) uint64 {
	c := ^crc
	if len(p) >= blockSize {
		c, p = blocks(c, p)
	}
	return rest(c, p)
}

// The factors that fold gets are what the package's own multiplications make of x^63.
func TestFactors(t *testing.T) {
	v := uint64(1)
	for range 7 {
		v = shift64(v)
	}
	if v != x511 || shift64(v) != x575 {
		t.Fatalf("%#x and %#x, want %#x and %#x", uint64(x511), uint64(x575), v, shift64(v))
	}
}

func BenchmarkPortable(b *testing.B) {
	page := make([]byte, 4096)
	b.SetBytes(int64(len(page)))
	for b.Loop() {
		portable(0, page)
	}
}

func BenchmarkUpdate(b *testing.B) {
	page := make([]byte, 4096)
	b.SetBytes(int64(len(page)))
	for b.Loop() {
		Update(0, page)
	}
}

func BenchmarkHashCRC64(b *testing.B) {
	page := make([]byte, 4096)
	b.SetBytes(int64(len(page)))
	for b.Loop() {
		crc64.Update(0, table, page)
	}
}
