package sqlitefile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// superTrailer is what follows the name of the super-journal at the end of a
// journal: length of the name, checksum, JournalMagic (pager.c:
// writeSuperJournal).
const superTrailer = 16

// MaxSuperName bounds the name of a super-journal in bytes. It is a path.
const MaxSuperName = 4096

// SuperJournalName returns the path of the super-journal that a journal of size
// bytes belongs to, "" when it belongs to none. With one, the transaction
// spans several databases and the removal of the super-journal commits it: a
// journal whose super-journal is gone is not rolled back.
func SuperJournalName(r io.ReaderAt, size int64) (string, error) {
	if size < superTrailer {
		return "", nil
	}
	var t [superTrailer]byte
	if err := readFull(r, t[:], size-superTrailer); err != nil {
		return "", fmt.Errorf("read end of journal: %w", err)
	}
	n := int64(binary.BigEndian.Uint32(t[:]))
	if string(t[8:]) != JournalMagic || n == 0 || n > MaxSuperName || n > size-superTrailer {
		return "", nil
	}
	name := make([]byte, n)
	if err := readFull(r, name, size-superTrailer-n); err != nil {
		return "", fmt.Errorf("read super-journal name: %w", err)
	}
	if !superCksumOK(binary.BigEndian.Uint32(t[4:]), name) {
		return "", nil
	}
	// The name ends at its first NUL, as SQLite's C string does.
	if i := bytes.IndexByte(name, 0); i >= 0 {
		name = name[:i]
	}
	return string(name), nil
}

// superCksumOK checks the sum of the name's bytes. SQLite sums C chars, which
// are signed on some machines and unsigned on others; both are accepted.
func superCksumOK(stored uint32, name []byte) bool {
	var unsigned, signed uint32
	for _, c := range name {
		unsigned += uint32(c)
		signed += uint32(int32(int8(c)))
	}
	return stored == unsigned || stored == signed
}

func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
