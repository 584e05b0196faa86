package litefs

import (
	"io/fs"
	"path/filepath"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/sqlitetest"
	"github.com/litefs/litefs/internal/vfs"
)

// heldFS stops whoever writes the file of a compaction until it is released.
type heldFS struct {
	vfs.FS
	begun, release chan struct{}
}

func (h *heldFS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	if filepath.Base(name) == "compact.tmp" {
		close(h.begun)
		<-h.release
	}
	return h.FS.OpenFile(name, flag, perm)
}

// TestApplyWhileCompacting: a replica applies while its log is compacted, however
// long that takes.
func TestApplyWhileCompacting(t *testing.T) {
	p := openNode(t, filepath.Join(t.TempDir(), "primary"))
	c := sqlitetest.Open(t, p.path("app.db"), "journal_mode=wal", "wal_autocheckpoint=0")
	c.MustExec(createT)
	db := p.adopt("app.db")
	held := &heldFS{FS: vfs.OS(), begun: make(chan struct{}), release: make(chan struct{})}
	n := openNode(t, filepath.Join(t.TempDir(), "replica"), asReplica, func(s *Store) { s.logFS = held })
	if _, err := n.store.ForceCreateDB(db.ID(), "app.db"); err != nil {
		t.Fatal(err)
	}
	for range 40 { // more than the fewest that are merged
		p.rows("app.db", c, 1)
		n.follow(p, "app.db")
	}

	done := make(chan struct{})
	go func() {
		defer close(done)
		n.db("app.db").retain(Retention{Age: time.Hour, Bytes: 1 << 30, Interval: time.Nanosecond})
	}()
	var released bool
	release := func() {
		if !released {
			released = true
			close(held.release)
		}
	}
	defer func() {
		release()
		<-done
	}()
	select {
	case <-held.begun:
	case <-time.After(time.Minute):
		t.Fatal("nothing is compacted")
	}

	p.rows("app.db", c, 3)
	applied := make(chan error, 1)
	go func() { applied <- n.tryFollow(p, "app.db") }()
	select {
	case err := <-applied:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("applying waits for the compaction")
		release()
		<-applied
	}
	if got, want := n.db("app.db").Pos(), p.db("app.db").Pos(); got != want {
		t.Errorf("the replica is at %s, the primary at %s", got, want)
	}
	before := len(n.db("app.db").txlog.Entries())
	release()
	<-done
	if after := len(n.db("app.db").txlog.Entries()); after >= before {
		t.Errorf("%d entries after the compaction, %d before", after, before)
	}
	n.mustAgree(newReader(t), "app.db")
}
