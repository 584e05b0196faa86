package litefs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/logkey"
	"github.com/litefs/litefs/internal/seal"
)

// someKeys are keys of logs.
func someKeys(t *testing.T) *logkey.Keys {
	t.Helper()
	operator, err := seal.ParseKeys(strings.Repeat("c4", 32))
	if err != nil {
		t.Fatal(err)
	}
	return &logkey.Keys{Operator: operator}
}

func withLogKeys(k *logkey.Keys) nodeOption { return func(s *Store) { s.LogKeys = k } }

// A store whose logs are encrypted does not open without the key, and stays as it is; an earlier version does not open it at all.
// With encryption switched off it goes on.
func TestStoreNeedsItsLogKeys(t *testing.T) {
	dir, r := filepath.Join(t.TempDir(), "data"), newReader(t)
	keys := someKeys(t)
	n := openNode(t, dir, withLogKeys(keys))
	c := r.app.Open(n.path("app.db"))
	c.MustExec("CREATE TABLE t(v)")
	c.Close()
	n.adopt("app.db")
	n.close()
	if _, err := tryOpenNode(t, dir); !errors.Is(err, ErrDataDir) || !strings.Contains(err.Error(), "its key was not given") || strings.Contains(err.Error(), "\n") {
		t.Errorf("without the key: %v, want ErrDataDir in one line", err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "FORMAT")); err != nil || string(b) != sealedMarker {
		t.Errorf("FORMAT is %q, %v", b, err)
	}
	off := *keys
	off.Off = true
	n = openNode(t, dir, withLogKeys(&off))
	if st := n.store.Status(); st.LogsSealed {
		t.Error("the status says that what is new is encrypted")
	}
	n.mustAgree(r, "app.db")
	n.close()
}
