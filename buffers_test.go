package litefs

import "testing"

// Pages of a base go through memory that is used again, whatever their size.
func TestPageBuffers(t *testing.T) {
	var b pageBuffers
	n := testing.AllocsPerRun(100, func() {
		for _, size := range []int{MaxStreamChunkSize, 512, MaxStreamChunkSize} {
			data := b.get(size)
			if len(data) != size {
				t.Fatalf("%d bytes, want %d", len(data), size)
			}
			b.put(data)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations a turn, want none", n)
	}
}
