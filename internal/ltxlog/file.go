package ltxlog

import (
	"io"

	"github.com/superfly/ltx"
)

// An entry outside any log: one on its way to a node that decides whether it becomes one of its log.

// WriteEntry writes the bytes of one entry to w and returns how many those are.
func (b *Buffers) WriteEntry(w io.Writer, h Header, pages Pages, post uint64) (size int64, err error) {
	enc := b.encoder()
	defer b.putEncoder(enc)
	flush := func(p []byte) error {
		_, err := w.Write(p)
		return err
	}
	if err := enc.begin(h, spillSize, flush); err != nil {
		return 0, err
	}
	if err := pages(enc.page); err != nil {
		return 0, err
	}
	if err := enc.end(post); err != nil {
		return 0, err
	}
	return enc.n, flush(enc.buf)
}

// ReadEntry verifies an entry of size bytes: what page sees counts only when ReadEntry has returned without an error.
// header, which may be nil, is told what the entry claims before the first page. Wrong content is ErrCorrupt.
func (b *Buffers) ReadEntry(r io.Reader, size int64, header func(Entry) error, page func(pgno uint32, data []byte) error) (Entry, error) {
	var onHeader func(ltx.Header) error
	if header != nil {
		onHeader = func(h ltx.Header) error { return header(newEntry(h, 0, size)) }
	}
	return b.decode(r, size, onHeader, func(f frame) error { return page(f.pgno, f.data) })
}
