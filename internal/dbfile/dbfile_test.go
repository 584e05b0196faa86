package dbfile_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/dbfile"
	"github.com/litefs/litefs/internal/sqlitetest"
)

func TestMain(m *testing.M) { sqlitetest.Main(m) }

// database makes a database file and returns its path and bytes.
func database(t *testing.T, script string) (string, []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.db")
	sqlitetest.CLI(t, path, script)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, b
}

const rows = `CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE INDEX i ON t(v);
	WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 200) INSERT INTO t SELECT i, randomblob(i*20) FROM n;`

func TestImage(t *testing.T) {
	path, b := database(t, "PRAGMA page_size=1024;"+rows)
	im, f, err := dbfile.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if im.Size() != int64(len(b)) || im.PageCount() != uint32(len(b)/1024) || im.Header().PageSize != 1024 {
		t.Errorf("%d bytes, %d pages of %d; the file has %d bytes", im.Size(), im.PageCount(), im.Header().PageSize, len(b))
	}
	if err := im.Check(t.Context()); err != nil {
		t.Error(err)
	}
	last := int64(0)
	sum, err := im.Checksum(t.Context(), func(done, total int64) { last = done })
	if err != nil || last != int64(len(b)) {
		t.Errorf("progress ended at %d of %d, %v", last, len(b), err)
	}

	// A copy is checked on its way.
	var out bytes.Buffer
	if err := dbfile.Copy(&out, bytes.NewReader(b), im.Size(), sum, nil); err != nil || !bytes.Equal(out.Bytes(), b) {
		t.Errorf("the copy is another one, %v", err)
	}
	changed := bytes.Clone(b)
	changed[len(changed)-1] ^= 1
	for name, in := range map[string][]byte{"a changed bit": changed, "cut off": b[:len(b)-1], "nothing": nil} {
		if err := dbfile.Copy(&bytes.Buffer{}, bytes.NewReader(in), im.Size(), sum, nil); err == nil {
			t.Errorf("%s: the copy is taken for good", name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := im.Check(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// A database that takes another one's place keeps that one's journal mode, and differs from all that its
// connections have seen.
func TestReplace(t *testing.T) {
	_, old := database(t, "PRAGMA journal_mode=wal; CREATE TABLE x(y);")
	path, _ := database(t, rows)
	before, err := dbfile.Open(bytes.NewReader(old), int64(len(old)))
	if err != nil {
		t.Fatal(err)
	}
	im, f, err := dbfile.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	im.Replace(before.Header())
	var out bytes.Buffer
	if err := im.Pages(func(_ uint32, data []byte) error { out.Write(data); return nil }); err != nil {
		t.Fatal(err)
	}
	after, err := dbfile.Open(bytes.NewReader(out.Bytes()), int64(out.Len()))
	if err != nil {
		t.Fatal(err)
	}
	h, was := after.Header(), before.Header()
	if !h.IsWAL() || h.ChangeCounter != was.ChangeCounter+1 || h.VersionValidFor != h.ChangeCounter || h.SchemaCookie != was.SchemaCookie+1 || h.PageCount != im.PageCount() {
		t.Errorf("after %+v comes %+v", was, h)
	}
	if err := after.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestNoImage(t *testing.T) {
	_, b := database(t, rows)
	damaged := bytes.Clone(b)
	binary.BigEndian.PutUint32(damaged[32:], 2) // the free-list begins with a page of a b-tree
	for name, tt := range map[string]struct {
		bytes []byte
		want  string
	}{
		"nothing":       {nil, "0 bytes"},
		"text":          {[]byte(strings.Repeat("text", 100)), "does not start with"},
		"cut off":       {b[:len(b)-4096], "it was cut off"},
		"half a page":   {b[:len(b)-100], "it was cut off"},
		"too long":      {append(bytes.Clone(b), make([]byte, 4096)...), "the header says"},
		"used and free": {damaged, "pointed to twice"},
	} {
		im, err := dbfile.Open(bytes.NewReader(tt.bytes), int64(len(tt.bytes)))
		if err == nil {
			err = im.Check(t.Context())
		}
		if !errors.Is(err, dbfile.ErrNoImage) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want ErrNoImage with %q", name, err, tt.want)
		}
	}
}

// A file with a part of its database beside it is not the database.
func TestOpenFileInUse(t *testing.T) {
	path, _ := database(t, rows)
	for _, suffix := range []string{"-wal", "-journal"} {
		if err := os.WriteFile(path+suffix, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := dbfile.OpenFile(path); err == nil || !strings.Contains(err.Error(), "has a part of the database") {
			t.Errorf("with %s: %v", suffix, err)
		}
		if err := os.Remove(path + suffix); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := dbfile.OpenFile(filepath.Dir(path)); !errors.Is(err, dbfile.ErrNoImage) {
		t.Errorf("a directory: %v", err)
	}
}
