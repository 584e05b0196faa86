package litefs_test

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/litefs/litefs"
)

func TestFileType_IsValid(t *testing.T) {
	for typ, want := range map[litefs.FileType]bool{
		litefs.FileTypeNone:     false,
		litefs.FileTypeDatabase: true,
		litefs.FileTypeJournal:  true,
		litefs.FileTypeWAL:      true,
		litefs.FileTypeSHM:      true,
		litefs.FileType(5):      false,
		litefs.FileType(-1):     false,
	} {
		if got := typ.IsValid(); got != want {
			t.Errorf("FileType(%d).IsValid()=%v, want %v", typ, got, want)
		}
	}
}

func TestDBID(t *testing.T) {
	for id, s := range map[uint32]string{
		0:              "0000000000000000",
		1000:           "00000000000003e8",
		math.MaxUint32: "00000000ffffffff",
	} {
		if got := litefs.FormatDBID(id); got != s {
			t.Errorf("FormatDBID(%d)=%q, want %q", id, got, s)
		}
		if got, err := litefs.ParseDBID(s); err != nil || got != id {
			t.Errorf("ParseDBID(%q)=%d, %v, want %d", s, got, err, id)
		}
	}
	for _, s := range []string{"", "1", "000000000000003e8", "0000000100000000", "000000000000000x", "+000000000000001", "0x00000000000001", "0000_0000_000001"} {
		if id, err := litefs.ParseDBID(s); err == nil {
			t.Errorf("ParseDBID(%q)=%d, want an error", s, id)
		}
	}
}

func TestTrimName(t *testing.T) {
	for name, want := range map[string]string{
		"app.db":             "app.db",
		"app.db-journal":     "app.db",
		"app.db-shm":         "app.db",
		"app.db-wal":         "app.db",
		"app.db-wal-journal": "app.db-wal",
		"app.db-walx":        "app.db-walx",
		"-wal":               "",
		"":                   "",
	} {
		if got := litefs.TrimName(name); got != want {
			t.Errorf("TrimName(%q)=%q, want %q", name, got, want)
		}
	}
}

func TestPos(t *testing.T) {
	if !(litefs.Pos{}).IsZero() || (litefs.Pos{TXID: 1}).IsZero() || (litefs.Pos{Chksum: 1}).IsZero() {
		t.Error("only the empty position is zero")
	}
	p := litefs.Pos{TXID: 0x1a, Chksum: 1<<63 | 0xbeef}
	const s = "000000000000001a/800000000000beef"
	if got := p.String(); got != s {
		t.Errorf("String()=%q, want %q", got, s)
	}
	if got, err := litefs.ParsePos(s); err != nil || got != p {
		t.Errorf("ParsePos(%q)=%v, %v, want %v", s, got, err, p)
	}
	for _, s := range []string{"", "/", "1/2", s[:16], s + "0", s + "/", "0" + s, "00000000000000-1/0000000000000000", strings.Replace(s, "/", "-", 1)} {
		if p, err := litefs.ParsePos(s); err == nil {
			t.Errorf("ParsePos(%q)=%v, want an error", s, p)
		}
	}
}

func TestLTXReader_Pos(t *testing.T) {
	r := litefs.LTXReader{MinTXID: 3, MaxTXID: 7, Post: 99}
	if got, want := r.Pos(), (litefs.Pos{TXID: 7, Chksum: 99}); got != want {
		t.Errorf("Pos()=%v, want %v", got, want)
	}
}

func TestValidateName(t *testing.T) {
	for _, name := range []string{
		"app.db", "sub/app.db", "a/b/c/d", "...", "..a", "a..", ".hidden", "sub/.litefs-x", "app.db-wal/x",
		"with space\nand newline", "\xff\xfe", strings.Repeat("x", litefs.MaxNameLen),
	} {
		if err := litefs.ValidateName(name); err != nil {
			t.Errorf("ValidateName(%q): %v", name, err)
		}
	}
	for _, name := range []string{
		"", "/", "/app.db", "app.db/", "a//b", ".", "..", "../x", "a/../b", "a/..", "./a", "a/./b", "a/.",
		"app\x00.db", strings.Repeat("x", litefs.MaxNameLen+1),
		"app.db-wal", "app.db-shm", "app.db-journal", "app.db-pos", "app.db-lock", "sub/app.db-wal", "-wal",
		".litefs", ".litefs-x", ".litefs/app.db",
	} {
		err := litefs.ValidateName(name)
		if err == nil {
			t.Errorf("ValidateName(%q): want an error", name)
		} else if s := err.Error(); strings.ContainsAny(s, "\n\x00") || len(s) > 3*litefs.MaxNameLen {
			t.Errorf("ValidateName(%q): not one short line: %q", name, s)
		}
	}
}

func TestParseLockRange(t *testing.T) {
	const (
		pending  = litefs.LockType(litefs.LockTypePending)
		reserved = litefs.LockType(litefs.LockTypeReserved)
		shared   = litefs.LockType(litefs.LockTypeShared)
	)
	for _, tt := range []struct {
		start, end uint64
		want       []litefs.LockType
	}{
		{litefs.PENDING_BYTE, litefs.PENDING_BYTE, []litefs.LockType{pending}},
		{litefs.RESERVED_BYTE, litefs.RESERVED_BYTE, []litefs.LockType{reserved}},
		{litefs.SHARED_FIRST, litefs.SHARED_FIRST + litefs.SHARED_SIZE - 1, []litefs.LockType{shared}},
		{litefs.SHARED_FIRST + 100, litefs.SHARED_FIRST + 100, []litefs.LockType{shared}},
		{litefs.PENDING_BYTE, litefs.RESERVED_BYTE, []litefs.LockType{pending, reserved}},
		{litefs.PENDING_BYTE, litefs.SHARED_FIRST, []litefs.LockType{pending, reserved, shared}},
		{0, math.MaxUint64, []litefs.LockType{pending, reserved, shared}},
		{0, litefs.PENDING_BYTE - 1, nil},
		{litefs.SHARED_FIRST + litefs.SHARED_SIZE, math.MaxUint64, nil},
		{litefs.RESERVED_BYTE, litefs.PENDING_BYTE, nil},
		{litefs.SHARED_FIRST + 9, litefs.SHARED_FIRST + 8, nil},
	} {
		if got := litefs.ParseLockRange(tt.start, tt.end); !slices.Equal(got, tt.want) {
			t.Errorf("ParseLockRange(%#x, %#x)=%#x, want %#x", tt.start, tt.end, got, tt.want)
		}
	}
}
