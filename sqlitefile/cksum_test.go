package sqlitefile

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// slowCksum is the sum as the format's description has it.
func slowCksum(c Cksum, order binary.ByteOrder, b []byte) Cksum {
	for i := 0; i+8 <= len(b); i += 8 {
		c[0] += order.Uint32(b[i:]) + c[1]
		c[1] += order.Uint32(b[i+4:]) + c[0]
	}
	return c
}

func TestCksumMatchesDescription(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{0, 8, 16, 24, 32, 40, 56, 64, 512, 4096 + 8} {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		start := Cksum{rng.Uint32(), rng.Uint32()}
		if got, want := start.add(false, b), slowCksum(start, binary.LittleEndian, b); got != want {
			t.Errorf("little-endian, %d bytes: got %08x, want %08x", n, got, want)
		}
		if got, want := start.add(true, b), slowCksum(start, binary.BigEndian, b); got != want {
			t.Errorf("big-endian, %d bytes: got %08x, want %08x", n, got, want)
		}
	}
}

func TestCksumStoredBigEndian(t *testing.T) {
	var b [8]byte
	c := Cksum{0x01020304, 0x05060708}
	c.put(b[:])
	if b != [8]byte{1, 2, 3, 4, 5, 6, 7, 8} {
		t.Errorf("stored as %x", b)
	}
	if got := parseCksum(b[:]); got != c {
		t.Errorf("got %08x, want %08x", got, c)
	}
}

func BenchmarkFrameCksum(b *testing.B) {
	for _, order := range []struct {
		name string
		big  bool
	}{{"little", false}, {"big", true}} {
		b.Run(order.name, func(b *testing.B) {
			h := WALHeader{BigEndian: order.big, PageSize: 4096}
			var head [8]byte
			page := make([]byte, 4096)
			b.SetBytes(4096)
			b.ReportAllocs()
			var c Cksum
			for b.Loop() {
				c = h.FrameCksum(c, head[:], page)
			}
		})
	}
}
