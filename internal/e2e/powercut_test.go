package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/cutdisk"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// A power cut takes what no flush of the disk has kept. These tests run a node whose data directory is on
// an ext4 of its own, on a disk that records all that is written; then they build the disk that a power
// cut would have left at one moment after the other, mount it, start the node on it, and compare with
// what SQLite had acknowledged at that moment.

// powerDB is one database of such a test. Its transaction n sets seq to n and adds row n, and now and then
// changes many rows.
type powerDB struct {
	name    string
	mode    string
	sync    string
	durable bool // what is acknowledged must not be lost

	mu    sync.Mutex
	acks  []int // acks[n] is the moment before which transaction n was acknowledged
	tried int64 // the last transaction that was begun
}

// powerDBs are the databases of one run. In a rollback-journal mode a commit is in the log durably before
// it is one, whatever SQLite syncs itself.
func powerDBs() []*powerDB {
	return []*powerDB{
		{name: "wal-full.db", mode: "wal", sync: "full", durable: true},
		{name: "wal-normal.db", mode: "wal", sync: "normal"},
		{name: "sub/delete-full.db", mode: "delete", sync: "full", durable: true},
		{name: "truncate-normal.db", mode: "truncate", sync: "normal", durable: true},
		{name: "persist-extra.db", mode: "persist", sync: "extra", durable: true},
		{name: "delete-off.db", mode: "delete", sync: "off", durable: true},
		{name: "truncate-off.db", mode: "truncate", sync: "off", durable: true},
		// At quorum the log here is synced before the answer, whatever SQLite syncs.
		{name: "quorum-wal-off.db", mode: "wal", sync: "off", durable: true},
		{name: "quorum-delete-off.db", mode: "delete", sync: "off", durable: true},
	}
}

// acked returns the last transaction that was acknowledged before a moment, 0 for none.
func (db *powerDB) acked(at int) (n int64) {
	db.mu.Lock()
	defer db.mu.Unlock()
	for n+1 < int64(len(db.acks)) && db.acks[n+1] <= at {
		n++
	}
	return n
}

// write runs transactions until done is closed.
func (db *powerDB) write(t *testing.T, app *sqlitetest.App, n *node, disk *cutdisk.Disk, rng *rand.Rand, done <-chan struct{}) {
	exec := func(c *sqlitetest.Conn, sql string) bool {
		_, err := c.Exec(sql)
		if err != nil {
			t.Errorf("%s: %s: %v", db.name, sql, err)
		}
		return err == nil
	}
	open := func() *sqlitetest.Conn {
		return app.Open(n.path(db.name), "journal_mode="+db.mode, "synchronous="+db.sync, "cache_size=10", "cache_spill=5", "wal_autocheckpoint=40")
	}
	c := open()
	if !exec(c, "BEGIN; CREATE TABLE seq(n); INSERT INTO seq VALUES(0); CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB); COMMIT") {
		return
	}
	db.acks = []int{disk.Now()}
	for i := int64(1); ; i++ {
		select {
		case <-done:
			return
		default:
		}
		sql := fmt.Sprintf("BEGIN; UPDATE seq SET n = %d; INSERT INTO t VALUES(%d, randomblob(%d));", i, i, rng.IntN(3000))
		switch rng.IntN(8) {
		case 0:
			sql += "UPDATE t SET v = randomblob(1500) WHERE id % 3 = 0;"
		case 1:
			sql += "UPDATE t SET v = NULL WHERE id % 2 = 0;"
		}
		db.mu.Lock()
		db.tried = i
		db.mu.Unlock()
		if !exec(c, sql+"COMMIT") {
			return
		}
		now := disk.Now()
		db.mu.Lock()
		db.acks = append(db.acks, now)
		db.mu.Unlock()
		switch rng.IntN(60) {
		case 0:
			if !exec(c, "VACUUM") {
				return
			}
		case 1:
			c.Close()
			c = open()
		case 2:
			if !exec(c, "PRAGMA wal_checkpoint(TRUNCATE)") {
				return
			}
		}
	}
}

// powerRun is one recorded life of a node.
type powerRun struct {
	t    *testing.T
	disk *cutdisk.Disk
	dbs  []*powerDB
	end  int // the moment at which writing ended
}

// record runs a node on a recorded disk for a while, with an application for each database.
func record(t *testing.T, seed uint64, d time.Duration, options ...option) *powerRun {
	t.Helper()
	r := &powerRun{t: t, disk: cutdisk.New(emptyExt4(t)), dbs: powerDBs()}
	mnt := recorded(t, r.disk)
	n := startNode(t, append(options, dataIn(mnt), quorumByName)...)
	startNode(t, follows(n)) // on a disk that keeps its power
	if err := os.Mkdir(n.path("sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	var apps []*sqlitetest.App
	for i, db := range r.dbs {
		app, rng := sqlitetest.Start(t), rand.New(rand.NewPCG(seed, uint64(i)))
		apps = append(apps, app)
		wg.Go(func() { db.write(t, app, n, r.disk, rng, done) })
	}
	time.Sleep(d)
	r.end = r.disk.Now() // with everything under way
	close(done)
	wg.Wait()
	for _, app := range apps {
		app.Exit()
	}
	noErrorLines(t, n)
	n.stop()
	if t.Failed() {
		t.FailNow()
	}
	return r
}

// quorumByName makes commits of the databases that are called so wait for the replica.
func quorumByName(c *childnode.Config) {
	c.Durability = []string{`{match: "quorum*", level: quorum, n: 1, timeout: 1m}`}
}

// recorded mounts the file system of a disk until the end of the test, and returns where.
func recorded(t *testing.T, disk *cutdisk.Disk) string {
	t.Helper()
	served, mnt := t.TempDir(), t.TempDir()
	dev, err := cutdisk.Attach(disk, served)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := dev.Close(); err != nil {
			t.Error(err)
		}
	})
	mountExt4(t, dev.Path, mnt)
	return mnt
}

// dataIn puts the data directory of a node into a directory.
func dataIn(dir string) option {
	return func(c *childnode.Config) { c.Data = filepath.Join(dir, "data") }
}

// recoverCut starts a node on a disk, and returns what a power cut leaves of it while the node recovers.
func recoverCut(t *testing.T, content []byte, rng *rand.Rand, options ...option) (left []byte) {
	t.Helper()
	t.Run("recovery", func(t *testing.T) { // unmounted at its end
		disk := cutdisk.New(content)
		mnt := recorded(t, disk)
		n := startNode(t, append(options, dataIn(mnt))...)
		at := disk.Now()
		n.stop()
		left = disk.Image(rng.IntN(at+1), rng)
	})
	if t.Failed() {
		t.FailNow()
	}
	return left
}

// cut starts a node on what a power cut at a moment leaves, and proves what must be there. Now and then the
// power goes a second time before that, in the recovery from the first.
func (r *powerRun) cut(t *testing.T, at int, rng *rand.Rand, options ...option) {
	t.Helper()
	content := r.disk.Image(at, rng)
	if rng.IntN(3) == 0 {
		content = recoverCut(t, content, rng, options...)
	}
	img := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(img, content, 0o600); err != nil {
		t.Fatal(err)
	}
	dev, err := cutdisk.AttachFile(img)
	if err != nil {
		t.Fatal(err)
	}
	mnt := t.TempDir()
	mountExt4(t, dev.Path, mnt)
	if err := dev.Close(); err != nil { // detached when it is unmounted
		t.Fatal(err)
	}
	n := startNode(t, append(options, dataIn(mnt))...)
	for _, db := range r.dbs {
		db.after(t, n, at)
	}
	noErrorLines(t, n)
	n.stop()
	n.verified()
}

// after proves that a database holds the transactions that it must, whole, and no others.
func (db *powerDB) after(t *testing.T, n *node, at int) {
	t.Helper()
	want := int64(-1) // not made yet
	db.mu.Lock()
	if len(db.acks) > 0 && db.acks[0] <= at {
		want = 0
	}
	db.mu.Unlock()
	if want == 0 && db.durable {
		want = db.acked(at)
	}
	if _, err := os.Stat(n.path(db.name)); err != nil {
		if want >= 0 || !os.IsNotExist(err) {
			t.Errorf("%s: %v", db.name, err)
		}
		return
	}
	out, err := sqlitetest.TryCLI(n.path(db.name), "PRAGMA integrity_check; SELECT count(*) FROM sqlite_schema;")
	if fields := strings.Fields(out); err != nil || len(fields) != 2 || fields[0] != "ok" {
		t.Errorf("%s: %q %v", db.name, out, err)
		return
	} else if fields[1] == "0" {
		if want >= 0 && (want > 0 || db.durable) {
			t.Errorf("%s: is empty, want %d transactions at least", db.name, want)
		}
		return
	}
	out = sqlitetest.CLI(t, n.path(db.name), "SELECT n FROM seq; SELECT count(*) FROM t; SELECT coalesce(max(id), 0) FROM t;")
	var got, rows, last int64
	if _, err := fmt.Sscan(out, &got, &rows, &last); err != nil {
		t.Errorf("%s: %q: %v", db.name, out, err)
		return
	}
	if got < want || got > db.tried {
		t.Errorf("%s: has %d transactions, want %d to %d", db.name, got, want, db.tried)
	}
	if rows != got || last != got {
		t.Errorf("%s: transaction %d is not whole: %d rows, the last is %d", db.name, got, rows, last)
	}
}

// emptyExt4 returns the content of a disk with an empty file system.
func emptyExt4(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "empty.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 192<<20); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", path).CombinedOutput()
	if err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// mountExt4 mounts a device until the end of the test.
func mountExt4(t *testing.T, dev, dir string) {
	t.Helper()
	if err := unix.Mount(dev, dir, "ext4", 0, ""); err != nil {
		t.Fatalf("mount %s: %v", dev, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

// TestSoakPowerCut needs loop devices and mkfs.ext4, so it is one of the long tests alone. LITEFS_SEED=n
// records the run of that seed; where its writes fall is a matter of the moment.
func TestSoakPowerCut(t *testing.T) {
	d := soakFor(t)
	if d == 0 {
		return
	}
	seed := soakSeed(t)
	for start := time.Now(); time.Since(start) < d/6; seed++ {
		ok := t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 99))
			var options []option
			if seed%2 == 0 {
				options = []option{cached}
			}
			r := record(t, seed, time.Duration(500+rng.IntN(3000))*time.Millisecond, options...)
			for i := range 20 {
				at := 1 + rng.IntN(r.end)
				t.Run(fmt.Sprintf("%d at %d of %d", i, at, r.end), func(t *testing.T) { r.cut(t, at, rng, options...) })
				if t.Failed() {
					return
				}
			}
		})
		if !ok {
			return
		}
	}
}
