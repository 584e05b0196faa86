// Package isocrc computes CRC-64/ISO, the checksum of LTX files and of pages.
//
// The polynomial x^64 + x^4 + x^3 + x + 1 has so few terms that no table is
// needed: 64 bits more are a few shifts, and words that are far apart do not
// wait for each other. The table of hash/crc64 makes 1 GB/s, this some times
// as much, and a processor that multiplies polynomials some times that. Every
// page that is captured, sent or applied goes through it.
package isocrc

import "encoding/binary"

// Update adds p to a checksum, as hash/crc64.Update does with the table of
// crc64.ISO. The checksum of nothing is 0.
func Update(crc uint64, p []byte) uint64 {
	c := ^crc
	switch {
	case len(p) >= 2*foldSize && canFold():
		c, p = folded(c, p)
	case len(p) >= blockSize:
		c, p = blocks(c, p)
	}
	return rest(c, p)
}

// rest adds p by words and bytes, and ends the sum.
func rest(c uint64, p []byte) uint64 {
	for ; len(p) >= 8; p = p[8:] {
		c = shift64(c ^ binary.LittleEndian.Uint64(p))
	}
	for _, b := range p {
		c = shift8(c ^ uint64(b))
	}
	return ^c
}

// blockSize is from how many bytes on blocks is worth it.
const blockSize = 64

// blocks takes as many blocks of four words as there are. Each of four sums
// takes one word of each block; they are put together at the end.
func blocks(c uint64, p []byte) (uint64, []byte) {
	a0 := c ^ binary.LittleEndian.Uint64(p)
	a1 := binary.LittleEndian.Uint64(p[8:])
	a2 := binary.LittleEndian.Uint64(p[16:])
	a3 := binary.LittleEndian.Uint64(p[24:])
	for p = p[32:]; len(p) >= 32; p = p[32:] {
		a0 = shift256(a0) ^ binary.LittleEndian.Uint64(p)
		a1 = shift256(a1) ^ binary.LittleEndian.Uint64(p[8:])
		a2 = shift256(a2) ^ binary.LittleEndian.Uint64(p[16:])
		a3 = shift256(a3) ^ binary.LittleEndian.Uint64(p[24:])
	}
	return shift64(shift64(shift64(shift64(a0)^a1)^a2) ^ a3), p
}

// foldSize is how many bytes the processor folds at once: eight words, in four pairs.
const foldSize = 64

// folded takes as many blocks of eight words as there are, where the processor multiplies polynomials. It
// does so for pairs of words: a pair is multiplied by x^512, its first word thus by x^576 and its second
// one by x^512, and the pair of the next block is added. Products of words as they lie in memory have come
// out multiplied by x, so the factors lack it.
func folded(c uint64, p []byte) (uint64, []byte) {
	var acc [foldSize / 8]uint64
	for i := range acc {
		acc[i] = binary.LittleEndian.Uint64(p[8*i:])
	}
	acc[0] ^= c
	p = p[foldSize:]
	n := len(p) / foldSize * foldSize
	fold(&acc, &p[0], n, x575, x511)
	c = 0
	for _, word := range acc {
		c = shift64(c ^ word)
	}
	return c, p[n:]
}

const (
	x511 = 0xb100010100000001 // x^511
	x575 = 0x1b001b1b0000001  // x^575
)

// A word is a polynomial whose bit 63 is the coefficient of x^0. Multiplying
// by x^k is shifting to the right by k; what falls out is a multiple of x^64,
// and x^64 is x^4 + x^3 + x + 1.

// shift64 multiplies by x^64.
func shift64(v uint64) uint64 {
	v ^= v<<63 ^ v<<61 ^ v<<60
	return v ^ v>>1 ^ v>>3 ^ v>>4
}

// shift256 multiplies by x^256, which is x^16 + x^12 + x^4 + 1: the fourth power
// of x^64, in which all mixed terms come twice.
func shift256(v uint64) uint64 {
	out := v<<60 ^ v<<52 ^ v<<48
	return v ^ v>>4 ^ v>>12 ^ v>>16 ^ out ^ out>>1 ^ out>>3 ^ out>>4
}

// shift8 multiplies by x^8.
func shift8(v uint64) uint64 {
	out := v << 56
	return v>>8 ^ out ^ out>>1 ^ out>>3 ^ out>>4
}
