package litefs

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// syncs decides what becomes of the syncs of a database that its journal's end waits for.
type syncs struct {
	mu    sync.Mutex
	fail  int           // of the next ones, so many fail
	gate  chan struct{} // the next one waits until it is closed
	count int
}

func (s *syncs) sync(f *os.File) error {
	s.mu.Lock()
	gate := s.gate
	s.gate = nil
	s.count++
	fails := s.fail > 0
	if fails {
		s.fail--
	}
	s.mu.Unlock()
	if gate != nil {
		<-gate
	}
	if fails {
		return syscall.EIO
	}
	return syncData(f)
}

// hold makes the next sync wait until release is called.
func (s *syncs) hold() (release func()) {
	gate := make(chan struct{})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gate = gate
	return sync.OnceFunc(func() { close(gate) })
}

func (s *syncs) failNext() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = 1
}

// TestJournalEndWaitsForTheDatabase: a transaction counts, and its commit is answered, when the database is on disk as
// well as the entry; a crash before finds one that has not committed, or one that is whole.
func TestJournalEndWaitsForTheDatabase(t *testing.T) {
	for _, mode := range []string{"delete", "truncate", "persist"} {
		for _, before := range []int{0, 20} { // later entries are made durable as copies
			t.Run(fmt.Sprintf("%s, after %d", mode, before), func(t *testing.T) {
				t.Parallel()
				var syncs syncs
				m := mountNode(t, filepath.Join(t.TempDir(), "data"), false)
				m.store.syncFile = syncs.sync
				r := newReader(t)
				conn := sqlitetest.Open(t, m.app("app.db"), "journal_mode="+mode)
				conn.MustExec(createT)
				for range before {
					conn.MustExec("INSERT INTO t(b) VALUES (randomblob(2500))")
				}
				db := m.db("app.db")
				pos := db.Pos()
				release := syncs.hold()
				t.Cleanup(release)
				answered := make(chan error, 1)
				go func() {
					_, err := conn.Exec("INSERT INTO t(b) VALUES (randomblob(2500))")
					answered <- err
				}()
				entry := filepath.Join(db.LTXDir(), fmt.Sprintf("%016x-%016x.ltx", pos.TXID+1, pos.TXID+1))
				for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
					if _, err := os.Stat(entry); err == nil {
						break
					}
					if time.Now().After(deadline) {
						t.Fatal("the entry is not written while the database is synced")
					}
				}
				if got := db.Pos(); got != pos {
					t.Errorf("position %v while the database is synced, want %v", got, pos)
				}
				if len(answered) > 0 {
					t.Error("the commit is answered before the database is on disk")
				}
				if !journalHot(db.JournalPath()) {
					t.Error("the journal has ended before the database is on disk")
				}
				for _, boot := range []string{boot1, boot2} {
					again := openNode(t, m.crash(), onBoot(boot))
					if got := r.value(again.path("app.db"), "SELECT count(*) FROM t"); got != fmt.Sprint(before) && got != fmt.Sprint(before+1) {
						t.Errorf("%s rows after a crash, want %d or one more", got, before)
					}
					again.mustAgree(r, "app.db")
					again.close()
				}
				release()
				if err := <-answered; err != nil {
					t.Errorf("commit: %v", err)
				}
				if got, want := db.TXID(), pos.TXID+1; got != want {
					t.Errorf("TXID %d, want %d", got, want)
				}
				m.mustStopClean(r, conn, "app.db")
			})
		}
	}
}

// TestDatabaseThatCannotBeSynced: a commit whose database cannot be made durable is refused, and nothing of it is in
// the log or comes back after a crash.
func TestDatabaseThatCannotBeSynced(t *testing.T) {
	for _, mode := range []string{"delete", "truncate", "persist"} {
		for _, before := range []int{0, 20} {
			t.Run(fmt.Sprintf("%s, after %d", mode, before), func(t *testing.T) {
				t.Parallel()
				var syncs syncs
				m := mountNode(t, filepath.Join(t.TempDir(), "data"), false)
				m.store.syncFile = syncs.sync
				r := newReader(t)
				conn := sqlitetest.Open(t, m.app("app.db"), "journal_mode="+mode)
				conn.MustExec(createT)
				for range before {
					conn.MustExec("INSERT INTO t(b) VALUES (randomblob(2500))")
				}
				db := m.db("app.db")
				head, _ := db.txlog.Head()
				syncs.failNext()
				if _, err := conn.Exec("INSERT INTO t(b) VALUES (randomblob(2500))"); err == nil {
					t.Error("the commit is not refused")
				}
				if got, _ := db.txlog.Head(); got != head {
					t.Errorf("the log has %+v, want %+v still", got, head)
				}
				m.mustRecover(r, "app.db", fmt.Sprint(before))
				conn.MustExec("INSERT INTO t(b) VALUES (randomblob(2500))")
				m.mustAgree(r, "app.db")
				m.mustRecover(r, "app.db", fmt.Sprint(before+1))
				if syncs.count == 0 {
					t.Error("no sync came this way")
				}
				m.mustStopClean(r, conn, "app.db")
			})
		}
	}
}
