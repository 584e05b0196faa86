package litefs

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// withoutRecord is a data directory that has the files of dir's database under the names given, and no record.
func withoutRecord(t *testing.T, names map[string]string) string {
	t.Helper()
	data := filepath.Join(t.TempDir(), "data")
	for name, dir := range names {
		for _, sfx := range []string{"", "-wal", "-journal"} {
			b, err := os.ReadFile(inFiles(dir, "app.db"+sfx))
			if os.IsNotExist(err) {
				continue
			}
			if err == nil {
				err = os.MkdirAll(filepath.Dir(inFiles(data, name)), 0o755)
			}
			if err == nil {
				err = os.WriteFile(inFiles(data, name+sfx), b, 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(data, "FORMAT"), []byte(formatMarker), 0o600); err != nil {
		t.Fatal(err)
	}
	return data
}

func (n *node) recorded() []string {
	var names []string
	for _, db := range n.store.DBs() {
		names = append(names, db.Name())
	}
	return names
}

// What lies in the tree goes on record unopened: with its write-ahead log, and after its hot journal. What is no database,
// or is to stay on its node, does not.
func TestRecordAll(t *testing.T) {
	wal, journal := makeWALStages(t), makeJournalStages(t)
	mustBeHot(t, journal.mid)
	data := withoutRecord(t, map[string]string{
		"wal.db": wal.later, "sub/ckpt.db": wal.ckpt, "hot.db": journal.mid, "done.db": journal.base,
		"wal.db.local-0badcafe": wal.early, ".litefs-import-1": wal.early, "x-lock": wal.early,
	})
	for name, text := range map[string]string{"notes.txt": "no database", "empty": ""} {
		if err := os.WriteFile(inFiles(data, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	n := openNode(t, data)
	if got := n.recorded(); len(got) != 0 {
		t.Fatalf("%v are on record before the mount is there", got)
	}
	if journalHot(n.path("hot.db-journal")) {
		t.Error("the journal is hot still, and the mount about to be used")
	}
	n.store.recordAll()
	if got, want := n.recorded(), []string{"done.db", "hot.db", "sub/ckpt.db", "wal.db"}; !slices.Equal(got, want) {
		t.Fatalf("%v are on record, want %v", got, want)
	}
	r := newReader(t)
	for name, want := range map[string]string{"wal.db": laterRows, "sub/ckpt.db": laterRows, "hot.db": "8", "done.db": "8"} {
		if got := n.db(name).TXID(); got != 1 {
			t.Errorf("%s: TXID %d: its first entry is not all of it", name, got)
		}
		if got := r.value(n.path(name), "SELECT count(*) FROM t WHERE b <> zeroblob(2500)"); got != want {
			t.Errorf("%s: %s rows, want %s", name, got, want)
		}
		n.mustAgree(r, name)
	}
	n.mustGoOn(r, "wal.db")
}

// A program that is about to write finds the database on record, and of many that come at once one puts it there.
func TestRecordBeforeOpen(t *testing.T) {
	n := openNode(t, withoutRecord(t, map[string]string{"app.db": makeWALStages(t).later}))
	if _, err := n.store.Opening(false, "app.db", false, true); err != nil || n.store.DBByName("app.db") != nil {
		t.Fatalf("who only reads does not wait: %v", err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			mode, err := n.store.Opening(false, "app.db", true, true)
			if err != nil || mode != IOPassthrough || n.store.DBByName("app.db") == nil {
				t.Errorf("opened with mode %v, error %v, on record: %v", mode, err, n.recorded())
			}
		})
	}
	wg.Go(n.store.recordAll)
	wg.Wait()
	if ents, err := os.ReadDir(filepath.Join(n.store.Path(), "dbs")); err != nil || len(ents) != 1 {
		t.Errorf("%d records, want 1: %v", len(ents), err)
	}
	n.mustAgree(newReader(t), "app.db")
}

// One that a program writes to already has its own moments: the ends of its transactions, and its last close.
func TestRecordAllLeavesWriters(t *testing.T) {
	n := openNode(t, withoutRecord(t, map[string]string{"app.db": makeWALStages(t).later}))
	n.store.Opened("app.db", true, true)
	n.store.recordAll()
	if got := n.recorded(); len(got) != 0 {
		t.Errorf("%v is on record while somebody writes to it", got)
	}
	n.store.Released("app.db", true, true)
	n.mustAgree(newReader(t), "app.db")
}

// While the role is about to move nothing new comes on record: the successor was chosen for what was there before.
func TestRecordAllBeforeHandOver(t *testing.T) {
	n := openNode(t, withoutRecord(t, map[string]string{"app.db": makeWALStages(t).later}))
	n.store.withheld.Store(true)
	n.store.recordAll()
	n.store.adoptClosed("app.db") // one that was begun before
	if got := n.recorded(); len(got) != 0 {
		t.Errorf("%v is on record", got)
	}
	n.store.withheld.Store(false)
	n.store.recordAll()
	n.mustAgree(newReader(t), "app.db")
}

// A store that closes does not wait for a large database to be read, and the next start begins anew.
func TestRecordAllCutOff(t *testing.T) {
	data := withoutRecord(t, map[string]string{"app.db": makeWALStages(t).later})
	n := openNode(t, data)
	n.store.cancel()
	n.store.adoptClosed("app.db")
	if got := n.recorded(); len(got) != 0 {
		t.Errorf("%v is on record", got)
	}
	n.close()
	if ents, err := os.ReadDir(filepath.Join(data, "dbs")); err != nil || len(ents) != 0 {
		t.Errorf("%v are left, error %v", ents, err)
	}
	n = openNode(t, data)
	n.store.recordAll()
	n.mustAgree(newReader(t), "app.db")
	if strings.Join(n.recorded(), " ") != "app.db" {
		t.Error(n.recorded())
	}
}
