package ltxlog

import (
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/litefs/litefs/internal/vfs"
)

// Whatever half a write and a power cut make of a mark, the last one that was synced, or a later one, is there.
func TestMarkIsNotLost(t *testing.T) {
	for seed := range uint64(2000) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		disk := vfs.NewMem()
		var synced mark
		for range 3 { // runs
			l := open(t, memDir, Options{FS: disk})
			torn := 1 + rnd.IntN(12)
			l.swapFS(vfs.NewFaulty(disk, func(o vfs.Op) error {
				if o.Kind == vfs.OpWrite {
					if torn--; torn == 0 {
						return &vfs.ShortWrite{N: rnd.IntN(o.Size), Err: syscall.EIO}
					}
				}
				return nil
			}))
			for torn > 0 {
				forgotten, sync := l.mark.forgotten, rnd.IntN(3) == 0
				if sync {
					forgotten++
				}
				if err := l.putMarkLocked(0, forgotten, sync); err == nil && sync {
					l.mark.forgotten = forgotten
					synced = mark{forgotten: forgotten, seq: l.mark.seq}
				}
			}
			disk = disk.Cut(rnd)
			got, err := readMark(disk, filepath.Join(memDir, durableName))
			if err != nil {
				t.Fatal(err)
			}
			if got.seq < synced.seq || got.forgotten < synced.forgotten {
				t.Fatalf("seed %d: found %+v, %+v was synced", seed, got, synced)
			}
		}
	}
}
