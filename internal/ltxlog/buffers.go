package ltxlog

import (
	"bufio"
	"io"
	"sync"
)

// Buffers are the encoders and decoders of logs. Both are large (the LZ4 table alone is 136 KB):
// shared by many logs they cost as many as work at once.
type Buffers struct{ encoders, decoders sync.Pool }

func (b *Buffers) encoder() *encoder {
	if e, ok := b.encoders.Get().(*encoder); ok {
		return e
	}
	return &encoder{}
}

// maxKept bounds the memory that an idle encoder or decoder holds on to.
const maxKept = 4 << 20

func (b *Buffers) putEncoder(e *encoder) {
	e.flush = nil
	if cap(e.buf)+cap(e.index)+cap(e.sealed)+cap(e.record) <= maxKept {
		b.encoders.Put(e)
	}
}

// decoder returns one that reads an entry of size bytes from r.
func (b *Buffers) decoder(r io.Reader, size int64) *decoder {
	d, ok := b.decoders.Get().(*decoder)
	if !ok {
		d = &decoder{r: bufio.NewReaderSize(nil, 32<<10)}
	}
	d.r.Reset(r)
	d.entryState = entryState{size: size}
	return d
}

func (b *Buffers) putDecoder(d *decoder) {
	d.r.Reset(nil)
	if cap(d.raw)+cap(d.arena) <= maxKept {
		b.decoders.Put(d)
	}
}
