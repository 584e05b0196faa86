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

// maxWrite is how much a stream hands to the connection at once, in bytes: whole blocks, where there is so
// much to send. Each hand-over changes goroutines several times, on both sides. One deadline covers it: at
// the slowest pace that is still progress, a stream gets this much through in the time of one stall.
const maxWrite = 4 * (maxBlock + blockHeader)

// blockBuffer gathers what is written into blocks, and blocks up to maxWrite, until Flush. What is written
// is copied once: a bufio.Writer before a blockWriter would copy it again, and cut it where it is full, so
// that each large write left a tiny block behind. Its first error stays.
type blockBuffer struct {
	w    io.Writer
	n    uint64 // number of the next block
	buf  []byte // blocks; the header of the last one is not filled in yet
	last int    // where that one begins in buf; len(buf): there is none
	err  error
}

func (bb *blockBuffer) Write(p []byte) (n int, err error) {
	for len(p) > 0 && bb.err == nil {
		if bb.last == len(bb.buf) {
			bb.buf = append(bb.buf, make([]byte, blockHeader)...)
		}
		m := min(len(p), bb.last+blockHeader+maxBlock-len(bb.buf))
		bb.buf = append(bb.buf, p[:m]...)
		n += m
		p = p[m:]
		if len(bb.buf) == bb.last+blockHeader+maxBlock {
			bb.seal()
		}
		if len(bb.buf) >= maxWrite {
			bb.send()
		}
	}
	return n, bb.err
}

// Flush sends what was written.
func (bb *blockBuffer) Flush() error {
	bb.seal()
	bb.send()
	return bb.err
}

// seal ends the last block, if it has content.
func (bb *blockBuffer) seal() {
	if bb.last == len(bb.buf) {
		return
	}
	head, data := bb.buf[bb.last:], bb.buf[bb.last+blockHeader:]
	binary.BigEndian.PutUint32(head, uint32(len(data)))
	binary.BigEndian.PutUint32(head[4:], blockSum(bb.n, data))
	bb.n++
	bb.last = len(bb.buf)
}

// send hands on the blocks, all of which are sealed.
func (bb *blockBuffer) send() {
	if bb.err == nil && len(bb.buf) > 0 {
		_, bb.err = bb.w.Write(bb.buf)
	}
	bb.buf, bb.last = bb.buf[:0], 0
}

// blockReader reads what a blockWriter has written. It gives out nothing of a block before it has checked
// the whole. At the end between two blocks it returns io.EOF. Its first error stays.
type blockReader struct {
	r    *bufio.Reader
	n    uint64 // number of the next block
	held int    // bytes at the head of r that are the block at hand
	left []byte // of that block, in the memory of r, not given out yet
	err  error
}

func newBlockReader(r io.Reader) *blockReader { return newBlockReaderSize(r, maxBlock+blockHeader) }

// newBlockReaderSize reads size bytes at a time, at least one block.
func newBlockReaderSize(r io.Reader, size int) *blockReader {
	return &blockReader{r: bufio.NewReaderSize(r, max(size, maxBlock+blockHeader))}
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

// next reads a block, which is checked where it lies in the reader's memory.
func (br *blockReader) next() ([]byte, error) {
	if _, err := br.r.Discard(br.held); err != nil {
		return nil, err
	}
	br.held = 0
	head, err := br.r.Peek(blockHeader)
	if err == io.EOF && len(head) > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	size, want := binary.BigEndian.Uint32(head), binary.BigEndian.Uint32(head[4:])
	if size == 0 || size > maxBlock {
		return nil, fmt.Errorf("%w: block %d is of %d bytes, want 1 to %d", errCorrupt, br.n, size, maxBlock)
	}
	block, err := br.r.Peek(blockHeader + int(size))
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	data := block[blockHeader:]
	if got := blockSum(br.n, data); got != want {
		return nil, fmt.Errorf("%w: block %d has the checksum %08x, want %08x", errCorrupt, br.n, got, want)
	}
	br.n++
	br.held = len(block)
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
