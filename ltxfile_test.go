package litefs

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/superfly/ltx"

	"github.com/litefs/litefs/internal/sqlitetest"
)

func packedLogs(s *Store) { s.PackedLogs = true }

// OpenLTXFile gives the LTX file of a transaction however the log lies on the disk.
func TestOpenLTXFile(t *testing.T) {
	for name, option := range map[string]nodeOption{
		"files": func(*Store) {}, "packs": packedLogs, "encrypted": withLogKeys(someKeys(t)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := mountNode(t, filepath.Join(t.TempDir(), "data"), false, option)
			conn := sqlitetest.Open(t, m.app("app.db"), "journal_mode=delete")
			conn.MustExec(createT)
			for range 3 {
				conn.MustExec("INSERT INTO t(b) VALUES (randomblob(2500))")
			}
			db := m.db("app.db")
			if db.TXID() < 4 {
				t.Fatalf("%d transactions", db.TXID())
			}
			for txid := uint64(1); txid <= db.TXID(); txid++ {
				f, err := db.OpenLTXFile(txid)
				if err != nil {
					t.Fatal(err)
				}
				dec := ltx.NewDecoder(f)
				if err := errors.Join(dec.Verify(), f.Close()); err != nil || uint64(dec.Header().MinTXID) != txid {
					t.Errorf("transaction %d is %s: %v", txid, dec.Header().MinTXID, err)
				}
			}
		})
	}
}
