package ltxlog

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

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

// BenchmarkAppendPaced is a durable Append of an application that does something else in between.
// The mean says little: it is what other users of the disk make of it.
func BenchmarkAppendPaced(b *testing.B) {
	l, next := benchLog(b, vfs.OS())
	var took []time.Duration
	for b.Loop() {
		b.StopTimer()
		time.Sleep(time.Millisecond)
		h, pages, post := next(3)
		start := time.Now()
		b.StartTimer()
		if _, err := l.Append(h, pages, post, true); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/10].Microseconds()), "p10-us")
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
}

// BenchmarkAppendSteady is Append in a log that is kept at one size, so that files are reused.
func BenchmarkAppendSteady(b *testing.B) {
	l, next := benchLog(b, vfs.OS())
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		h, pages, post := next(3)
		if _, err := l.Append(h, pages, post, false); err != nil {
			b.Fatal(err)
		}
		if n++; n%200 == 0 {
			b.StopTimer()
			if _, _, err := l.Retain(time.Time{}, Retention{MaxBytes: 1, KeepFrom: h.Max - 50}); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	}
}

// BenchmarkSync makes some small entries durable at once, as a barrier does.
func BenchmarkSync(b *testing.B) {
	for _, n := range []int{1, 4, 20, 100} {
		b.Run(fmt.Sprintf("entries=%d", n), func(b *testing.B) {
			l, next := benchLog(b, vfs.OS())
			for b.Loop() {
				b.StopTimer()
				for range n {
					h, pages, post := next(2)
					if _, err := l.Append(h, pages, post, false); err != nil {
						b.Fatal(err)
					}
				}
				b.StartTimer()
				if err := l.Sync(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkOpen opens a log of 5000 small entries.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	l, err := Open(dir, Options{})
	if err != nil {
		b.Fatal(err)
	}
	m := newModel(1, 512)
	for range 5000 {
		m.append(b, l, false)
	}
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		l, err := Open(dir, Options{ReadOnly: true})
		if err == nil {
			err = l.Close()
		}
		if err != nil {
			b.Fatal(err)
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

// BenchmarkForm is what encryption costs: an entry is made, and verified, in the clear and encrypted, without a disk.
func BenchmarkForm(b *testing.B) {
	for _, n := range []int{1, 5, 20, 140} {
		for _, how := range []string{"clear", "sealed"} {
			var f form = plainForm{}
			if how == "sealed" {
				f = newForm(sealedWith(b)(vfs.NewMem()).Sealing)
			}
			l, next := benchLog(b, vfs.NewMem())
			l.form = f
			w := &writer{log: l, enc: (&Buffers{}).encoder()}
			h, pages, post := next(n)
			b.Run(fmt.Sprintf("make/pages=%d/%s", n, how), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					w.bytes = nil
					if err := encode(w, h, pages, post); err != nil {
						b.Fatal(err)
					}
					if _, err := w.stored(); err != nil {
						b.Fatal(err)
					}
				}
			})
			stored, err := w.stored()
			if err != nil {
				b.Fatal(err)
			}
			b.Run(fmt.Sprintf("verify/pages=%d/%s", n, how), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := l.decodeStored(stored, h.Max); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
