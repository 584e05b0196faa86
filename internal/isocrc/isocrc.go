// Package isocrc computes CRC-64/ISO, the checksum of LTX files and of pages.
//
// The polynomial x^64 + x^4 + x^3 + x + 1 has so few terms that no table is
// needed: 64 bits more are a few shifts, and words that are far apart do not
// wait for each other. The table of hash/crc64 makes 1 GB/s, this some times
// as much, and every page that is captured, sent or applied goes through it.
package isocrc

import "encoding/binary"

// Update adds p to a checksum, as hash/crc64.Update does with the table of
// crc64.ISO. The checksum of nothing is 0.
func Update(crc uint64, p []byte) uint64 {
	c := ^crc
	if len(p) >= 64 {
		c, p = blocks(c, p)
	}
	for ; len(p) >= 8; p = p[8:] {
		c = shift64(c ^ binary.LittleEndian.Uint64(p))
	}
	for _, b := range p {
		c = shift8(c ^ uint64(b))
	}
	return ^c
}

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
