package litefs

import (
	"errors"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The file .lag is a number of milliseconds with a sign.
func TestLagFile(t *testing.T) {
	p := openNode(t, filepath.Join(t.TempDir(), "primary"))
	if got := string(p.store.lagFile()); got != "+000000000\n" {
		t.Errorf("primary: %q", got)
	}
	n := openNode(t, filepath.Join(t.TempDir(), "replica"), asReplica)
	if b, ok := n.store.Virtual(".lag"); !ok || string(b) != "+2147483647\n" {
		t.Errorf("never synced: %q", b)
	}
	for lag, prefix := range map[time.Duration]string{
		time.Hour:             "+0036",
		-time.Hour:            "-0035",
		-10000 * time.Hour:    "-2147483647\n",
		1 << 60:               "+2147483647\n",
		100 * time.Nanosecond: "+0000000",
	} {
		n.store.syncedAt.Store(time.Now().Add(-lag).UnixMilli())
		if got := string(n.store.lagFile()); !strings.HasPrefix(got, prefix) || len(got) > 12 {
			t.Errorf("lag of %v: %q, want %q...", lag, got, prefix)
		}
	}
}

// Events come from the log, each once, and not before readers see what they tell of.
func TestEventsAfter(t *testing.T) {
	s := makeReplicaStages(t)
	db := s.primary.db("app.db")
	events := db.EventsAfter(0)
	if len(events) == 0 || events[len(events)-1].Pos != db.Pos() || events[0].PageSize != 4096 || events[0].Commit == 0 ||
		events[0].Min != 1 || events[0].Epoch == 0 || events[0].Origin != s.primary.store.NodeID() || events[0].Pages == 0 {
		t.Fatalf("%+v at %s", events, db.Pos())
	}
	s.primary.rows("app.db", s.conn, 2)
	if more := db.EventsAfter(events[len(events)-1].Pos.TXID); len(more) != 2 || more[1].Pos != db.Pos() {
		t.Fatalf("%+v at %s, want 2", more, db.Pos())
	}
	if more := db.EventsAfter(db.TXID()); len(more) != 0 {
		t.Fatalf("%+v after the last", more)
	}
}

// A read-only replica refuses to open databases for writing, and nothing else.
func TestReadOnlyReplica(t *testing.T) {
	n := openNode(t, makeReplicaStages(t).later, asReplica)
	for _, c := range []struct {
		path          string
		readOnly      bool
		own, writable bool
		want          error
	}{
		{"app.db", false, false, true, nil},
		{"app.db", true, false, true, syscall.EROFS},
		{"app.db", true, false, false, nil},
		{"app.db", true, true, true, nil},
		{"app.db-shm", true, false, true, nil},
		{"app.db-wal", true, false, true, nil},
		{"notes.txt", true, false, true, nil},
	} {
		n.store.ReadOnlyReplica = c.readOnly
		for _, first := range []bool{true, false} {
			if _, err := n.store.Opening(c.own, c.path, c.writable, first); !errors.Is(err, c.want) {
				t.Errorf("%+v, first %v: %v", c, first, err)
			}
		}
	}
}

// A node that ceases to be the primary has a fresh copy; one that finds out late, a copy of the end of its lease.
func TestStalenessAfterAReign(t *testing.T) {
	for _, late := range []time.Duration{0, time.Hour} {
		s := NewStore(t.TempDir())
		if _, known := s.Staleness(); known {
			t.Fatal("the age is known of a copy that never was fresh")
		}
		s.setRole(RolePrimary, "")
		if late > 0 {
			s.fenceAt.Store(int64(bootNow()) - int64(late))
		}
		s.setRole(RoleReplica, "")
		age, known := s.Staleness()
		if !known || age < late || age > late+time.Minute {
			t.Errorf("%v, %v, want %v", age, known, late)
		}
	}
}
