package sqlitefile

import (
	"encoding/binary"
)

// Cksum is a running checksum of the WAL, a weighted sum of 32-bit words in
// Fibonacci order (fileformat2.html 4.2). A frame's covers all frames before it.
type Cksum [2]uint32

// add extends the checksum over b, whose length must be a multiple of 8; a
// shorter tail is left out. Words are read big-endian when bigEndian is set.
//
// The sum is one chain of additions, so its speed is that of the chain: two
// additions for 8 bytes. The parentheses keep the load off the chain.
func (c Cksum) add(bigEndian bool, b []byte) Cksum {
	if bigEndian {
		return c.addBig(b)
	}
	return c.addLittle(b)
}

func (c Cksum) addLittle(b []byte) Cksum {
	s1, s2 := c[0], c[1]
	for len(b) >= 32 {
		x0 := binary.LittleEndian.Uint64(b)
		x1 := binary.LittleEndian.Uint64(b[8:])
		x2 := binary.LittleEndian.Uint64(b[16:])
		x3 := binary.LittleEndian.Uint64(b[24:])
		s1 = (s1 + uint32(x0)) + s2
		s2 = (s2 + uint32(x0>>32)) + s1
		s1 = (s1 + uint32(x1)) + s2
		s2 = (s2 + uint32(x1>>32)) + s1
		s1 = (s1 + uint32(x2)) + s2
		s2 = (s2 + uint32(x2>>32)) + s1
		s1 = (s1 + uint32(x3)) + s2
		s2 = (s2 + uint32(x3>>32)) + s1
		b = b[32:]
	}
	for len(b) >= 8 {
		x := binary.LittleEndian.Uint64(b)
		s1 = (s1 + uint32(x)) + s2
		s2 = (s2 + uint32(x>>32)) + s1
		b = b[8:]
	}
	return Cksum{s1, s2}
}

func (c Cksum) addBig(b []byte) Cksum {
	s1, s2 := c[0], c[1]
	for len(b) >= 32 {
		x0 := binary.BigEndian.Uint64(b)
		x1 := binary.BigEndian.Uint64(b[8:])
		x2 := binary.BigEndian.Uint64(b[16:])
		x3 := binary.BigEndian.Uint64(b[24:])
		s1 = (s1 + uint32(x0>>32)) + s2
		s2 = (s2 + uint32(x0)) + s1
		s1 = (s1 + uint32(x1>>32)) + s2
		s2 = (s2 + uint32(x1)) + s1
		s1 = (s1 + uint32(x2>>32)) + s2
		s2 = (s2 + uint32(x2)) + s1
		s1 = (s1 + uint32(x3>>32)) + s2
		s2 = (s2 + uint32(x3)) + s1
		b = b[32:]
	}
	for len(b) >= 8 {
		x := binary.BigEndian.Uint64(b)
		s1 = (s1 + uint32(x>>32)) + s2
		s2 = (s2 + uint32(x)) + s1
		b = b[8:]
	}
	return Cksum{s1, s2}
}

// nativeBigEndian reports the byte order of this machine, the one the wal-index
// is stored and checksummed in.
func nativeBigEndian() bool {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], 1)
	return b[1] == 1
}

// parseCksum reads a checksum that a WAL stores, big-endian whatever the order
// that its words were summed in.
func parseCksum(b []byte) Cksum {
	v := binary.BigEndian.Uint64(b)
	return Cksum{uint32(v >> 32), uint32(v)}
}

func (c Cksum) put(b []byte) {
	binary.BigEndian.PutUint64(b, uint64(c[0])<<32|uint64(c[1]))
}
