package http

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"strings"
)

// What travels on a stream, in either direction, travels in blocks: length uint32, checksum uint32, then
// so many bytes, all integers big-endian. The checksum is CRC-32C of the block's number, a uint64 that
// counts from 0 and is not sent, of the length, and of the bytes.
//
// Files are verified whole, frames are not: one bit of a frame makes another name of a database, another
// database to drop, an epoch that no primary will ever have. TCP's own checksum has 16 bits, and what
// stands between two machines may take it off and put it on again. A block that is another, or not the
// next one, ends the connection, and nothing of it is used.
const (
	blockHeader = 8
	maxBlock    = 64 << 10 // bytes in a block
)

// errCorrupt reports bytes that are not those that were sent.
var errCorrupt = errors.New("the connection has changed bytes on the way")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// blockSum returns the checksum of the nth block.
func blockSum(n uint64, data []byte) uint32 {
	var b [12]byte
	binary.BigEndian.PutUint64(b[:], n)
	binary.BigEndian.PutUint32(b[8:], uint32(len(data)))
	return crc32.Update(crc32.Checksum(b[:], castagnoli), castagnoli, data)
}

// blockWriter puts what is written into blocks, each of which is one write.
type blockWriter struct {
	w   io.Writer
	n   uint64 // number of the next block
	buf []byte
}

func newBlockWriter(w io.Writer) *blockWriter { return &blockWriter{w: w} }

func (bw *blockWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		data := p[:min(len(p), maxBlock)]
		bw.buf = binary.BigEndian.AppendUint32(bw.buf[:0], uint32(len(data)))
		bw.buf = binary.BigEndian.AppendUint32(bw.buf, blockSum(bw.n, data))
		bw.buf = append(bw.buf, data...)
		if _, err := bw.w.Write(bw.buf); err != nil {
			return n, err
		}
		bw.n++
		n += len(data)
		p = p[len(data):]
	}
	return n, nil
}

// blockReader reads what a blockWriter has written. It gives out nothing of a block before it has checked
// the whole. At the end between two blocks it returns io.EOF. Its first error stays.
type blockReader struct {
	r    *bufio.Reader
	n    uint64 // number of the next block
	buf  []byte // memory of a block
	left []byte // of the block, not given out yet
	err  error
}

func newBlockReader(r io.Reader) *blockReader {
	return &blockReader{r: bufio.NewReaderSize(r, maxWrite)}
}

func (br *blockReader) Read(p []byte) (int, error) {
	if len(br.left) == 0 && br.err == nil {
		br.left, br.err = br.next()
	}
	if len(br.left) == 0 {
		return 0, br.err
	}
	n := copy(p, br.left)
	br.left = br.left[n:]
	return n, nil
}

// next reads a block.
func (br *blockReader) next() ([]byte, error) {
	var head [blockHeader]byte
	if _, err := io.ReadFull(br.r, head[:]); err != nil {
		return nil, err
	}
	size, want := binary.BigEndian.Uint32(head[:]), binary.BigEndian.Uint32(head[4:])
	if size == 0 || size > maxBlock {
		return nil, fmt.Errorf("%w: block %d is of %d bytes, want 1 to %d", errCorrupt, br.n, size, maxBlock)
	}
	if br.buf == nil {
		br.buf = make([]byte, maxBlock)
	}
	data := br.buf[:size]
	if err := readFull(br.r, data); err != nil {
		return nil, err
	}
	if got := blockSum(br.n, data); got != want {
		return nil, fmt.Errorf("%w: block %d has the checksum %08x, want %08x", errCorrupt, br.n, got, want)
	}
	br.n++
	return data, nil
}

// handshakeSum returns the checksum that goes with the headers of a handshake: a digit of the epoch or of
// an id is as easily another as a byte of a frame.
func handshakeSum(h http.Header) string {
	var b strings.Builder
	for _, name := range []string{headerProtocol, headerLTX, headerClusterID, headerID, headerEpoch, headerDatabases} {
		fmt.Fprintf(&b, "%s: %q\n", name, h.Values(name))
	}
	return fmt.Sprintf("%08x", crc32.Checksum([]byte(b.String()), castagnoli))
}
