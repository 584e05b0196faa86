package cutdisk

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// TestImage: what was flushed is in every image, what was not has many, and a moment does not know of
// what came later.
func TestImage(t *testing.T) {
	const size = 64 << 10
	d := New(make([]byte, size))
	fill := func(n byte, off, length int64) {
		if err := d.WriteAt(bytes.Repeat([]byte{n}, int(length)), off); err != nil {
			t.Fatal(err)
		}
	}
	fill(1, 0, 4096)
	d.Flush()
	fill(2, 0, 2048)
	fill(3, 8192, 4096)
	before := d.Now()
	fill(4, 16384, 4096)
	d.Flush()
	after := d.Now()

	seen := map[[3]byte]int{}
	torn := false
	for seed := range uint64(300) {
		img := d.Image(before, rand.New(rand.NewPCG(seed, 0)))
		if img[2048] != 1 || img[4095] != 1 {
			t.Fatalf("seed %d: a flushed write is lost", seed)
		}
		if img[0] != img[2047] {
			t.Fatalf("seed %d: the file system's superblock is torn", seed)
		}
		if img[16384] != 0 {
			t.Fatalf("seed %d: a write of the future is there", seed)
		}
		seen[[3]byte{img[0], img[8192], img[12287]}]++
		torn = torn || img[8192] != img[12287]
	}
	for _, want := range [][3]byte{{1, 0, 0}, {2, 3, 3}, {1, 3, 3}, {2, 0, 0}} {
		if seen[want] == 0 {
			t.Errorf("no image with %v of %v", want, seen)
		}
	}
	if !torn {
		t.Error("no write is torn")
	}
	img := d.Image(after, rand.New(rand.NewPCG(0, 0)))
	now := make([]byte, size)
	if n := d.ReadAt(now, 0); n != size || !bytes.Equal(img, now) {
		t.Error("after a flush the image is not what was written")
	}
	if err := d.WriteAt([]byte{1}, size); err == nil {
		t.Error("a write beyond the end is taken")
	}
}
