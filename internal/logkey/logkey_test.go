package logkey_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/logkey"
	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/seal"
)

const (
	id      = "0000000000000007"
	keyA    = "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a"
	keyB    = "b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6"
	keyName = logkey.Name
)

func keys(t *testing.T, off bool, text ...string) *logkey.Keys {
	t.Helper()
	k, err := seal.ParseKeys(strings.Join(text, "\n"))
	if err != nil {
		t.Fatal(err)
	}
	return &logkey.Keys{Operator: k, Off: off}
}

// life opens a log, adds an entry, and closes it; it returns how many entries there are, and whether the new one is encrypted.
func life(t *testing.T, dir string, k *logkey.Keys) (entries int, sealed bool) {
	t.Helper()
	log, err := k.Open(dir, "ltx", id, ltxlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	head, _ := log.Head()
	h := ltxlog.Header{Min: head.Max + 1, Max: head.Max + 1, Pre: head.Post, Commit: 0, PageSize: 512}
	e, err := log.Append(h, ltxlog.NoPages, 1<<63, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range log.Entries() {
		if err := log.Verify(e); err != nil {
			t.Fatal(err)
		}
	}
	n := len(log.Entries())
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "ltx", "*.ltx"))
	if err != nil || len(files) != n {
		t.Fatalf("%d files of %d: %v", len(files), n, err)
	}
	b, err := os.ReadFile(files[n-1])
	if err != nil {
		t.Fatal(err)
	}
	return n, seal.Sealed(b) && int64(len(b)) == seal.SealedSize(e.Size)
}

// TestOnAndOff: encryption of a log is switched on, off and on again, and is rotated meanwhile: everything is read each time, and
// what is new lies as the keys say.
func TestOnAndOff(t *testing.T) {
	dir := t.TempDir()
	for i, step := range []struct {
		k      *logkey.Keys
		sealed bool
	}{
		{nil, false},
		{keys(t, true, keyA), false},
		{keys(t, false, keyA), true},
		{keys(t, false, keyB, keyA), true}, // it is wrapped anew after this
		{keys(t, false, keyB), true},
		{keys(t, true, keyB), false},
		{keys(t, true, keyB), false},
		{keys(t, false, keyB), true},
		{keys(t, false, keyB), true},
	} {
		n, sealed := life(t, dir, step.k)
		if n != i+1 || sealed != step.sealed {
			t.Fatalf("step %d: %d entries, the new one is encrypted: %v", i, n, sealed)
		}
		if i == 3 {
			if did, err := step.k.Rotate(dir); err != nil || !did {
				t.Fatalf("rotate: %v, %v", did, err)
			}
			if did, err := step.k.Rotate(dir); err != nil || did {
				t.Fatalf("rotate again: %v, %v", did, err)
			}
			if by, err := keys(t, false, keyB).WrappedBy(dir); err != nil || by != step.k.Operator.Current() {
				t.Fatalf("wrapped with %s, %v", by, err)
			}
		}
	}
	if s, err := keys(t, false, keyB).Sealing(dir, id); err != nil || s.PlainUpTo != 7 {
		t.Errorf("what may lie in the clear: %+v, %v, want up to 7", s, err)
	}
}

// TestNotItsKey: without the operator's key, with another one, with another database's, a changed one, or none any more, a log does
// not open, and the error says which it is. Nothing is changed.
func TestNotItsKey(t *testing.T) {
	dir := t.TempDir()
	mine := keys(t, false, keyA)
	life(t, dir, mine)
	record := filepath.Join(dir, keyName)
	good, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	fails := func(what string, k *logkey.Keys, database string, is error, says string) {
		t.Helper()
		for _, open := range []func(dir, name, database string, opt ltxlog.Options) (*ltxlog.Log, error){k.Open, k.OpenAsIs} {
			_, err := open(dir, "ltx", database, ltxlog.Options{})
			if err == nil || is != nil && !errors.Is(err, is) || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	fails("no key", nil, id, logkey.ErrNoKey, record)
	fails("another key", keys(t, false, keyB), id, logkey.ErrNoKey, "wrapped with key")
	fails("another database", mine, "0000000000000008", nil, "is the key of database "+id)
	for what, change := range map[string][2]string{
		"believed longer": {`"plainUpTo": "0"`, `"plainUpTo": "9"`}, "given to another database": {id, "0000000000000009"},
	} {
		bad := bytes.Replace(good, []byte(change[0]), []byte(change[1]), 1)
		if err := os.WriteFile(record, bad, 0o600); err != nil || bytes.Equal(bad, good) {
			t.Fatal(err, string(good))
		}
		fails(what, mine, "", nil, "is damaged")
	}
	if err := os.WriteFile(record, good, 0o600); err != nil {
		t.Fatal(err)
	}
	life(t, dir, mine)

	open, err := os.Open(record)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close() //nolint:errcheck // read only
	if err := logkey.Destroy(dir); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(open); err != nil || len(b) == 0 || len(bytes.Trim(b, "\x00")) > 0 {
		t.Errorf("what was in the file: %d bytes, %v", len(b), err)
	}
	if err := logkey.Destroy(dir); err != nil {
		t.Fatalf("again: %v", err)
	}
	fails("destroyed", mine, id, logkey.ErrDestroyed, record)
	fails("destroyed, and no key", nil, id, logkey.ErrDestroyed, record)
}

// TestLogs: the logs of a data directory are found wherever they lie, with the names of their databases, and are shredded.
func TestLogs(t *testing.T) {
	data := t.TempDir()
	mine := keys(t, false, keyA)
	record, kept := filepath.Join(data, "dbs", id), filepath.Join(data, "lost+found", "kept")
	for _, dir := range []string{record, kept} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	life(t, record, mine)
	if err := errors.Join(os.WriteFile(filepath.Join(record, "name"), []byte("app.db"), 0o600), logkey.Copy(record, kept), os.Mkdir(filepath.Join(kept, "ltx"), 0o700)); err != nil {
		t.Fatal(err)
	}
	logs, err := logkey.Logs(data)
	want := []logkey.Log{{Dir: record, ID: id, Name: "app.db", Key: true}, {Dir: kept, ID: id, Name: "app.db", Key: true}}
	if err != nil || len(logs) != 2 || logs[0] != want[0] || logs[1] != want[1] {
		t.Fatalf("logs: %+v, %v", logs, err)
	}
	for _, l := range logs {
		if err := logkey.Shred(l); err != nil {
			t.Fatal(err)
		}
	}
	left, err := filepath.Glob(filepath.Join(data, "*", "*", "*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := os.Stat(record); err != nil {
		t.Errorf("the record, which the next start sets aside: %v", err)
	}
}
