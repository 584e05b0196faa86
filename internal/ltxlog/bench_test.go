package ltxlog

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/litefs/litefs/internal/vfs"
)

// benchLog returns a log with a snapshot of 1000 pages, and a function that makes entries of n
// pages that look like b-tree leaves: half filled with text, half free.
func benchLog(b *testing.B, fsys vfs.FS) (*Log, func(n int) (Header, Pages, uint64)) {
	b.Helper()
	l := open(b, b.TempDir(), Options{FS: fsys})
	m := newModel(1, 4096)
	m.resize(1000)
	c := change{h: m.header(1), pages: map[uint32][]byte{}}
	for i := range m.pages {
		copy(m.pages[i][2000:], bytes.Repeat(fmt.Appendf(nil, "row %d of the table, ", i), 100))
		c.pages[uint32(i+1)] = m.pages[i]
	}
	c = m.finish(c)
	if _, err := l.Append(c.h, c.emit, c.post, true); err != nil {
		b.Fatal(err)
	}
	return l, func(n int) (Header, Pages, uint64) {
		m.txid++
		h := c.h
		h.Min, h.Max, h.Pre = m.txid, m.txid, c.post
		return h, func(emit func(uint32, []byte) error) error {
			for i := range n {
				if err := emit(uint32(i*7+1), m.pages[i*7]); err != nil {
					return err
				}
			}
			return nil
		}, c.post
	}
}

func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{1, 5, 20} {
		for _, sync := range []bool{false, true} {
			b.Run(fmt.Sprintf("pages=%d/sync=%v", n, sync), func(b *testing.B) {
				l, next := benchLog(b, vfs.OS())
				b.ReportAllocs()
				for b.Loop() {
					h, pages, post := next(n)
					if _, err := l.Append(h, pages, post, sync); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkEncode is the part of Append that is not the disk.
func BenchmarkEncode(b *testing.B) {
	for _, n := range []int{1, 5, 20} {
		b.Run(fmt.Sprintf("pages=%d", n), func(b *testing.B) {
			_, next := benchLog(b, vfs.NewMem())
			enc := (&Buffers{}).encoder()
			w := &writer{log: &Log{spill: spillSize}, enc: enc}
			b.ReportAllocs()
			for b.Loop() {
				h, pages, post := next(n)
				if err := encode(w, h, pages, post); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkImport is what a replica does with an entry before it applies it: verify and write.
func BenchmarkImport(b *testing.B) {
	for _, n := range []int{1, 5, 20} {
		b.Run(fmt.Sprintf("pages=%d", n), func(b *testing.B) {
			src, next := benchLog(b, vfs.NewMem())
			dst, _ := benchLog(b, vfs.NewMem())
			b.ReportAllocs()
			for b.Loop() {
				h, pages, post := next(n)
				e, err := src.Append(h, pages, post, false)
				if err != nil {
					b.Fatal(err)
				}
				r, err := src.OpenEntry(e)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := dst.Import(r, e.Size, false); err != nil {
					b.Fatal(err)
				}
				if err := r.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
