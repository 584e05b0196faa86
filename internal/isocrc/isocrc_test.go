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
		if got, want := Update(start, b), crc64.Update(start, table, b); got != want {
			t.Fatalf("%d bytes after %016x: got %016x, want %016x", len(b), start, got, want)
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
	for bit := range 64 * 8 {
		b := make([]byte, 64)
		b[bit/8] = 1 << (bit % 8)
		check(0, b)
		check(1<<(bit%64), b)
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
