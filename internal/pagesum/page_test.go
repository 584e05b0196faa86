package pagesum_test

import (
	"math/rand/v2"
	"testing"

	"github.com/superfly/ltx"

	"github.com/litefs/litefs/internal/pagesum"
)

func TestPage(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for _, size := range []int{512, 4096, 65536} {
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		pgno := rnd.Uint32()
		if got, want := pagesum.Page(pgno, b), uint64(ltx.ChecksumPage(pgno, b)); got != want {
			t.Errorf("page of %d bytes: got %016x, want %016x", size, got, want)
		}
	}
	b := make([]byte, 4096)
	if n := testing.AllocsPerRun(10, func() { pagesum.Page(1, b) }); n != 0 {
		t.Errorf("%v allocations a page, want none", n)
	}
}
