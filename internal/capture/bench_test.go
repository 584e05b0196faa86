package capture

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/litefs/litefs/sqlitefile"
)

// BenchmarkScan reads batches of one-page transactions from a file.
func BenchmarkScan(b *testing.B) {
	for _, ps := range []uint32{512, 4096, 8192, 65536} {
		for _, frames := range []uint32{1, 20, 1000} {
			w := newWAL(ps).frame(1, 100)
			first, err := w.scan(WALPos{}, Limit{})
			if err != nil {
				b.Fatal(err)
			}
			for i := range frames {
				w.frame(i%100+1, 100)
			}
			path := filepath.Join(b.TempDir(), "wal")
			if err := os.WriteFile(path, w.bytes, 0o600); err != nil {
				b.Fatal(err)
			}
			f, err := os.Open(path)
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() {
				if err := f.Close(); err != nil {
					b.Error(err)
				}
			})
			for name, limit := range map[string]Limit{"index": Published(w.index), "chain": {}} {
				b.Run(fmt.Sprintf("%d/%d/%s", ps, frames, name), func(b *testing.B) {
					b.ReportAllocs()
					for b.Loop() {
						if _, err := Scan(f, sqlitefile.FrameOffset(frames+2, ps), first.To, limit); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
	}
}
