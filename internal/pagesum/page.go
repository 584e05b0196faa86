package pagesum

import (
	"encoding/binary"
	"hash/crc64"

	"github.com/superfly/ltx"
)

// Page is the checksum of one page, as ltx.ChecksumPage computes it but with
// no allocation: it runs for every page of every transaction.
func Page(pgno uint32, data []byte) uint64 {
	table := crc64.MakeTable(crc64.ISO) // the package's own, not made anew
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], pgno)
	return uint64(ltx.ChecksumFlag) | crc64.Update(crc64.Update(0, table, b[:]), table, data)
}
