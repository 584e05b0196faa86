package fuse

import (
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkRequest measures one system call of an application that costs one request.
func BenchmarkRequest(b *testing.B) {
	for _, bb := range []struct {
		name, op string
		mode     Mode
	}{
		{"read/direct", "pread", Direct},
		{"write/direct", "pwrite", Direct},
		{"write/cached", "pwrite", Cached},
		{"write/passthrough", "pwrite", Passthrough}, // none
		{"ftruncate", "ftruncate", Passthrough},
		{"fsync", "fsync", Passthrough},
	} {
		b.Run(bb.name, func(b *testing.B) {
			m := newMount(b, bb.mode)
			a := startApp(b, 0)
			fd := a.open(m.Path("f"), unix.O_CREAT|unix.O_RDWR)
			a.pwrite(fd, 0, string(make([]byte, 4096)))
			m.back.set(func() { m.back.silent = true })
			b.ResetTimer()
			ns := a.do(appRequest{Op: "time", FD: fd, Data: []byte(bb.op), Len: int64(b.N)}).N
			b.ReportMetric(float64(ns)/float64(b.N), "ns/call")
			b.StopTimer()
			a.stop()
		})
	}
}
