package litefs

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// TestIsTakenBack: a snapshot that ends with a transaction whose commit was refused is known as such.
func TestIsTakenBack(t *testing.T) {
	n := openNode(t, filepath.Join(t.TempDir(), "data"))
	c := sqlitetest.Open(t, n.path("app.db"), "journal_mode=wal", "wal_autocheckpoint=0")
	c.MustExec(createT)
	db := n.adopt("app.db")
	n.rows("app.db", c, 2)
	db.mu.Lock()
	defer db.mu.Unlock()
	head, _ := db.txlog.Head()
	at := time.Now()
	page := make([]byte, head.PageSize)
	add := func(txid, pre, post uint64) {
		t.Helper()
		h := ltxlog.Header{
			Min: txid, Max: txid, Pre: pre, Commit: head.Commit, PageSize: head.PageSize, Epoch: head.Epoch, Timestamp: at,
		}
		pages := func(emit func(uint32, []byte) error) error { return emit(1, page) }
		if _, err := db.txlog.Append(h, pages, post, false); err != nil {
			t.Fatal(err)
		}
	}
	refused := head.Max + 1
	add(refused, head.Post, head.Post^1)
	if db.isTakenBack(refused) {
		t.Error("nothing takes it back yet")
	}
	add(refused+1, head.Post^1, head.Post)
	for txid, want := range map[uint64]bool{head.Max: false, refused: true, refused + 1: false, refused + 2: false} {
		if got := db.isTakenBack(txid); got != want {
			t.Errorf("transaction %d of %d is taken back: %t, want %t", txid, refused+1, got, want)
		}
	}
}
