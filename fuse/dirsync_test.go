package fuse

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSyncDirectory: a directory is synced unless its names are durable; what changes meanwhile is not, nor after an error.
func TestSyncDirectory(t *testing.T) {
	var n node
	syncs := 0
	sync := func() error { syncs++; return nil }
	expect := func(what string, want int) {
		t.Helper()
		if err := syncDirectory(&n, sync); err != nil {
			t.Fatal(err)
		}
		if syncs != want {
			t.Fatalf("%s: %d syncs, want %d", what, syncs, want)
		}
	}
	expect("never synced", 1)
	expect("unchanged", 1)
	n.changedIn()
	expect("changed", 2)
	n.changedIn()
	during := func() error { n.changedIn(); return sync() }
	if err := syncDirectory(&n, during); err != nil {
		t.Fatal(err)
	}
	expect("changed during the sync", 4)
	n.changedIn()
	failed := errors.New("failed")
	if err := syncDirectory(&n, func() error { return failed }); !errors.Is(err, failed) {
		t.Fatalf("error %v, want %v", err, failed)
	}
	expect("after a failure", 5)
}

// TestFirstSyncMakesTheNameDurable: the first sync of a new file that a database needs makes its name durable, and only
// the first; whatever changes a name in the directory makes the next sync of the directory a real one.
func TestFirstSyncMakesTheNameDurable(t *testing.T) {
	m := newMount(t, Direct)
	m.back.set(func() { m.back.sync = SyncData })
	root := m.fs.nodes.root
	durable := func() bool { return root.synced.Load() == root.changes.Load()+1 }
	a := startApp(t, 0)
	fd := a.open(m.Path("f-journal"), unix.O_CREAT|unix.O_RDWR)
	if durable() {
		t.Error("durable before a sync")
	}
	a.do(appRequest{Op: "fsync", FD: fd})
	if !durable() {
		t.Error("the name is not durable after the first sync of the file")
	}
	changes := []appRequest{
		{Op: "mkdir", Path: m.Path("d"), Flags: 0o755},
		{Op: "rename", Path: m.Path("f-journal"), Path2: m.Path("g-journal")},
		{Op: "unlink", Path: m.Path("g-journal")},
		{Op: "rmdir", Path: m.Path("d")},
	}
	dir := a.open(m.Dir(), unix.O_RDONLY|unix.O_DIRECTORY)
	for _, c := range changes {
		a.do(c)
		if durable() {
			t.Errorf("durable after %s", c.Op)
		}
		if c.Op == "mkdir" {
			a.do(appRequest{Op: "fsync", FD: fd})
			if durable() {
				t.Error("the second sync of the file counts for its directory")
			}
		}
		a.do(appRequest{Op: "fsync", FD: dir})
		if !durable() {
			t.Errorf("not durable after %s and a sync", c.Op)
		}
	}
	a.close(fd)
	a.close(dir)
	a.stop()
}
