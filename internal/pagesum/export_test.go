package pagesum

import (
	"encoding/binary"
	"os/signal"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Path returns the path of the file.
func (p *File) Path() string { return p.path }

// FutureVersion makes both header slots of b those of a later version.
func FutureVersion(b []byte) []byte {
	for slot := range 2 {
		s := b[slot*slotSize:][:headerSize]
		binary.LittleEndian.PutUint32(s[8:], version+1)
		binary.LittleEndian.PutUint64(s[crcOffset:], crc(s[:crcOffset]))
	}
	return b
}

// LimitFileSize runs fn while no file may grow beyond n bytes: the nearest
// thing to a full disk that needs no disk.
func LimitFileSize(t *testing.T, n uint64, fn func()) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	limit := old
	limit.Cur = n
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
			t.Error(err)
		}
	}()
	fn()
}
