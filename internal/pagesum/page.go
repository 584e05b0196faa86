package pagesum

import (
	"encoding/binary"

	"github.com/superfly/ltx"

	"github.com/litefs/litefs/internal/isocrc"
)

// Page is the checksum of one page, as ltx.ChecksumPage computes it but with
// no allocation: it runs for every page of every transaction.
func Page(pgno uint32, data []byte) uint64 {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], pgno)
	return uint64(ltx.ChecksumFlag) | isocrc.Update(isocrc.Update(0, b[:]), data)
}
