package locktab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWriteLockedParse(t *testing.T) {
	table := `1: POSIX  ADVISORY  READ 708 00:2f:12 100 200
2: POSIX  ADVISORY  WRITE 708 00:2f:12 300 400
2: -> POSIX  ADVISORY  WRITE 709 00:2f:12 100 200
3: FLOCK  ADVISORY  WRITE 708 00:2f:12 0 EOF
4: OFDLCK ADVISORY  WRITE -1 00:2f:13 50 EOF
5: LEASE  ACTIVE    READ 708 00:2f:12 0 EOF
`
	for _, tt := range []struct {
		ino, off uint64
		want     bool
	}{{12, 150, false}, {12, 299, false}, {12, 300, true}, {12, 400, true}, {12, 401, false}, {13, 49, false}, {13, 1 << 40, true}, {14, 300, false}} {
		got, err := writeLocked(strings.NewReader(table), File{Minor: 0x2f, Ino: tt.ino}, tt.off)
		if err != nil || got != tt.want {
			t.Errorf("ino %d off %d: got %v, %v, want %v", tt.ino, tt.off, got, err, tt.want)
		}
	}
}

// TestWriteLocked asks the real kernel about a lock of this process.
func TestWriteLocked(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	file := FileOf(st.Dev, st.Ino)
	check := func(want bool) {
		t.Helper()
		if got, err := WriteLocked(file, 0x40000001); err != nil || got != want {
			t.Fatalf("got %v, %v, want %v", got, err, want)
		}
	}
	check(false)
	lk := unix.Flock_t{Type: unix.F_WRLCK, Start: 0x40000001, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk); err != nil {
		t.Fatal(err)
	}
	check(true)
	lk.Type = unix.F_UNLCK
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk); err != nil {
		t.Fatal(err)
	}
	check(false)
}
