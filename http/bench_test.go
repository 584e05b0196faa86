package http

import (
	"fmt"
	"io"
	"testing"

	"github.com/litefs/litefs"
)

// BenchmarkStream_File measures one large file over loopback: what a fresh replica waits for.
func BenchmarkStream_File(b *testing.B) {
	const size = 64 << 20
	src := newFakeSource("a.db")
	src.commit(1, string(make([]byte, size)))
	srv := testServer(b, src, "", defaultLimits())
	b.SetBytes(size)
	for b.Loop() {
		s := testStream(b, srv.URL(), nil)
		if n := skipFile(b, s); n != size {
			b.Fatalf("read %d bytes", n)
		}
	}
}

// skipFile reads up to the end of the next file, acknowledges it and returns its size.
func skipFile(b *testing.B, s *fakeReplica) (size int64) {
	b.Helper()
	for {
		f, err := s.NextFrame()
		if err != nil {
			b.Fatal(err)
		}
		piece, last := int64(0), false
		switch f := f.(type) {
		case *litefs.LTXStreamFrame:
			piece, last = f.Size, true
		case *litefs.ChunkStreamFrame:
			piece, last = int64(f.Len), f.Last()
		default:
			continue
		}
		if n, err := io.Copy(io.Discard, s); n != piece || err != nil {
			b.Fatalf("%d of %d bytes, %v", n, piece, err)
		}
		if err := s.take(1, int(piece)); err != nil {
			b.Fatal(err)
		}
		if size += piece; last {
			return size
		}
	}
}

// BenchmarkStream_Commit measures the way of one small transaction from the mark to the other end, in
// a caught-up stream.
func BenchmarkStream_Commit(b *testing.B) {
	for _, size := range []int{1 << 10, 16 << 10} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			src := newFakeSource("a.db")
			srv := testServer(b, src, "", defaultLimits())
			s := testStream(b, srv.URL(), nil)
			wantNext(b, s, "db 1 a.db")
			file := make([]byte, size)
			for b.Loop() {
				src.change(1, func() { src.dbs[1].log = append(src.dbs[1].log, file) })
				skipFile(b, s)
			}
		})
	}
}
