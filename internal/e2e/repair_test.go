package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/lostfound"
	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
	"github.com/litefs/litefs/sqlitefile"
)

// cli runs the command against a node and returns what it prints and its exit code.
func (n *node) cli(args ...string) (string, int) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary(n.t), args...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !asExit(err, &exit) {
		n.t.Fatalf("litefs %v: %v\n%s", args, err, out)
	}
	if exit != nil {
		return string(out), exit.ExitCode()
	}
	return string(out), 0
}

func asExit(err error, exit **exec.ExitError) bool {
	e, ok := err.(*exec.ExitError)
	*exit = e
	return ok
}

// A scrub of a database that is written all the time, in every journal mode, finds nothing, and nobody
// is told that the database is busy.
func TestScrubBesideAWriter(t *testing.T) {
	for _, mode := range []string{"wal", "delete", "truncate"} {
		t.Run(mode, func(t *testing.T) {
			primary := startNode(t)
			app := sqlitetest.Start(t)
			w := app.Open(primary.path("app.db"), "journal_mode="+mode, "synchronous=off", "wal_autocheckpoint=50", "busy_timeout=0")
			load(w, 500)
			done := make(chan error, 1)
			go func() {
				_, err := w.Repeat([]sqlapp.Step{{SQL: "UPDATE t SET v=randomblob(4000) WHERE id = 1 + abs(random() % 500)"}}, 300, 0)
				done <- err
			}()
			scrubs := 0
			for end := false; !end; scrubs++ {
				select {
				case err := <-done:
					if err != nil {
						t.Error(err)
					}
					end = true
				default:
				}
				if found, code := primary.scrub("app.db"); code != 0 || len(found.Faults) > 0 {
					t.Errorf("scrub: %+v, exit code %d", found, code)
				}
			}
			t.Logf("%d scrubs", scrubs)
			app.Exit()
		})
	}
}

// repair runs litefs repair on the node.
func (n *node) repair(name string, flags ...string) (r struct {
	Pages, Damaged, Differ int
	Bytes                  int64
	Kept, Snapshot         string
}, code int) {
	n.t.Helper()
	out, code := n.cli(append(append([]string{"repair", "-config", n.configPath(), "-json"}, flags...), name)...)
	line, _, _ := strings.Cut(out, "\n")
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		n.t.Fatalf("litefs repair: %v: %s", err, out)
	}
	return r, code
}

// scrub runs litefs scrub on the node.
func (n *node) scrub(name string) (r struct {
	Damaged []uint32
	Faults  []string
	Primary string
	Writing int
}, code int) {
	n.t.Helper()
	out, code := n.cli("scrub", "-config", n.configPath(), "-json", "-rate", "0", name)
	line, _, _ := strings.Cut(out, "\n")
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		n.t.Fatalf("litefs scrub: %v: %s", err, out)
	}
	return r, code
}

// inWAL returns the pages that a database's write-ahead log has: those are not read from the file.
func (n *node) inWAL(name string) map[uint32]bool {
	n.t.Helper()
	b, err := os.ReadFile(filepath.Join(n.cfg.Data, "files", name+"-wal"))
	if err != nil {
		n.t.Fatal(err)
	}
	hdr, err := sqlitefile.ParseWALHeader(b)
	if err != nil {
		n.t.Fatal(err)
	}
	pgnos := map[uint32]bool{}
	for frame := uint32(1); frame <= sqlitefile.FrameCount(int64(len(b)), hdr.PageSize); frame++ {
		f := sqlitefile.ParseFrame(b[sqlitefile.FrameOffset(frame, hdr.PageSize):])
		if f.Salt1 == hdr.Salt1 && f.Salt2 == hdr.Salt2 {
			pgnos[f.Pgno] = true
		}
	}
	return pgnos
}

// damage flips bytes of pages in a database file of a node that is down.
func (n *node) damage(name string, pgnos ...uint32) {
	n.t.Helper()
	const pageSize = 4096
	f, err := os.OpenFile(filepath.Join(n.cfg.Data, "files", name), os.O_RDWR, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, pgno := range pgnos {
		b := make([]byte, 512)
		off := int64(pgno-1)*pageSize + 1024
		if _, err := f.ReadAt(b, off); err != nil {
			n.t.Fatal(err)
		}
		for i := range b {
			b[i] ^= 0xff
		}
		if _, err := f.WriteAt(b, off); err != nil {
			n.t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		n.t.Fatal(err)
	}
}

// load makes a table of n rows of about 4 kB.
func load(c *sqlitetest.Conn, n int) {
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
	c.MustExec(fmt.Sprintf("WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM c WHERE i<%d) INSERT INTO t(v) SELECT randomblob(4000) FROM c", n))
}

// Three damaged pages of a database of 100 MB are found and fetched by a few kilobytes; another database
// goes on meanwhile, and is not touched.
func TestRepairMovesThePagesThatDiffer(t *testing.T) {
	t.Parallel()
	primary := startNode(t)
	follower := startNode(t, follows(primary))
	w := sqlitetest.Open(t, primary.path("big.db"), "journal_mode=wal", "synchronous=normal")
	load(w, 25_000)
	settle(w)
	other := sqlitetest.Open(t, primary.path("other.db"), "journal_mode=wal", "synchronous=normal")
	load(other, 10)
	settle(other)
	caughtUp(primary, follower, "big.db")
	// The follower's write-ahead log begins anew behind the load.
	for range 3 {
		w.MustExec("INSERT INTO t(v) VALUES ('small')")
		settle(w)
		caughtUp(primary, follower, "big.db")
	}
	caughtUp(primary, follower, "other.db")
	follower.kill()
	wal := follower.inWAL("big.db")
	var pgnos []uint32
	for pgno := uint32(5000); len(pgnos) < 3; pgno += 5000 {
		if wal[pgno] {
			t.Fatalf("page %d is in the follower's write-ahead log of %d pages", pgno, len(wal))
		}
		pgnos = append(pgnos, pgno)
	}
	follower.damage("big.db", pgnos...)
	follower.start()
	caughtUp(primary, follower, "big.db")

	if found, code := follower.scrub("big.db"); code != 1 || !slices.Equal(found.Damaged, pgnos) || len(found.Faults) != 1 {
		t.Errorf("scrub: %+v, exit code %d", found, code)
	}
	r, code := follower.repair("big.db", "-dry-run")
	if code != 1 || r.Differ != 3 || r.Damaged != 3 || r.Kept != "" {
		t.Errorf("dry run: %+v, exit code %d", r, code)
	}
	app := sqlitetest.Start(t)
	reader := app.Open(follower.path("big.db"))
	reader.MustExec("BEGIN")
	before := reader.MustInt("SELECT count(*) FROM t")

	r, code = follower.repair("big.db")
	if code != 0 || r.Differ != 3 || r.Damaged != 3 || r.Snapshot != "" {
		t.Errorf("repair: %+v, exit code %d", r, code)
	}
	t.Logf("3 of %d pages: %d bytes moved", r.Pages, r.Bytes)
	if r.Bytes > 64<<10 {
		t.Errorf("%d bytes moved", r.Bytes)
	}
	kept, err := os.ReadDir(r.Kept)
	if err != nil || len(kept) != 3 {
		t.Errorf("damaged pages kept: %v, %v", kept, err)
	}
	if n := reader.MustInt("SELECT count(*) FROM t"); n != before {
		t.Errorf("the snapshot of a reader changed from %d to %d rows", before, n)
	}
	reader.MustExec("COMMIT")
	w.MustExec("INSERT INTO t(v) VALUES ('after')")
	other.MustExec("INSERT INTO t(v) VALUES ('after')")
	settle(w)
	settle(other)
	caughtUp(primary, follower, "big.db")
	caughtUp(primary, follower, "other.db")
	if r, code := follower.repair("big.db", "-dry-run"); code != 0 || r.Differ != 0 {
		t.Errorf("dry run afterwards: %+v, exit code %d", r, code)
	}
	for _, n := range []*node{primary, follower} {
		if found, code := n.scrub("big.db"); code != 0 || len(found.Faults) > 0 || found.Writing > 0 {
			t.Errorf("scrub afterwards: %+v, exit code %d", found, code)
		}
	}
	app.Exit()
	w.Close()
	other.Close()
	sameEverywhere(t, primary, follower, "big.db", "other.db")
}

// A replica whose record is damaged finds out at the next transaction, applies nothing that it cannot
// prove, and fetches what differs: a page or two. The other database takes no notice.
func TestChecksumMismatchHealsAlone(t *testing.T) {
	primary := startNode(t)
	follower := startNode(t, follows(primary))
	app := sqlitetest.Start(t)
	conns := map[string]*sqlitetest.Conn{}
	for _, name := range []string{"app.db", "other.db"} {
		w := app.Open(primary.path(name), "journal_mode=wal", "synchronous=normal")
		load(w, 1_000)
		settle(w)
		caughtUp(primary, follower, name)
		conns[name] = w
	}
	record := ""
	records, err := filepath.Glob(filepath.Join(follower.cfg.Data, "dbs", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range records {
		if b, err := os.ReadFile(filepath.Join(dir, "name")); err == nil && string(b) == "app.db" {
			record = dir
		}
	}
	// The checksums lie behind a page of headers, 8 bytes each. The node has the file mapped.
	f, err := os.OpenFile(filepath.Join(record, "checksums"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 8*1000)
	if _, err := f.ReadAt(b, 4096); err != nil {
		t.Fatal(err)
	}
	for i := range b {
		b[i] ^= byte(i%251) & 0x7f
	}
	if _, err := f.WriteAt(b, 4096); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for name, w := range conns {
		w.MustExec("UPDATE t SET v = 'changed' WHERE id = 500")
		settle(w)
		caughtUp(primary, follower, name)
	}
	if found, code := follower.scrub("app.db"); code != 0 || len(found.Faults) > 0 {
		t.Errorf("scrub: %+v, exit code %d", found, code)
	}
	log := follower.log.text()
	for _, want := range []string{"checksum differs", "brought to the primary's history by the pages that differ"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log does not say %q", want)
		}
	}
	for _, not := range []string{"a whole snapshot is fetched", "lost+found", "level=ERROR msg=\"database does not follow the primary; tried again\" db=other.db"} {
		if strings.Contains(log, not) {
			t.Errorf("the log says %q", not)
		}
	}
	app.Exit()
	sameEverywhere(t, primary, follower, "app.db", "other.db")
}

// A follower that has transactions which its primary lost keeps them in lost+found and rejoins by the
// pages that differ: when an old copy came back in the primary's place, and when its power was cut and
// the follower could not be asked.
func TestForkedFollowerRejoins(t *testing.T) {
	for name, powerCut := range map[string]bool{"old copy": false, "power cut": true} {
		t.Run(name, func(t *testing.T) { testForkedFollower(t, powerCut) })
	}
}

func testForkedFollower(t *testing.T, powerCut bool) {
	primary := startNode(t)
	follower := startNode(t, follows(primary))
	app := sqlitetest.Start(t)
	w := app.Open(primary.path("app.db"), "journal_mode=wal", "synchronous=normal")
	load(w, 2_000)
	settle(w)
	caughtUp(primary, follower, "app.db")
	w.Close()
	primary.stop()
	older := primary.copyData()
	primary.start()
	w = app.Open(primary.path("app.db"))
	for i := range 5 {
		w.MustExec(fmt.Sprintf("INSERT INTO t(v) VALUES ('lost %d')", i))
	}
	settle(w)
	caughtUp(primary, follower, "app.db")
	w.Close()
	follower.stop()
	primary.stop()
	primary.replaceData(older, powerCut)
	primary.args = []string{"-set", "lease.roll-forward-timeout=100ms"}
	primary.start()
	if log := primary.log.text(); powerCut != strings.Contains(log, "a follower could not be asked") {
		t.Errorf("power cut: %t; the log of the primary:\n%s", powerCut, log)
	}
	w = app.Open(primary.path("app.db"))
	for i := range 3 {
		w.MustExec(fmt.Sprintf("INSERT INTO t(v) VALUES ('other %d')", i))
	}
	settle(w)
	follower.start()
	caughtUp(primary, follower, "app.db")

	list, err := lostfound.List(filepath.Join(follower.cfg.Data, "lost+found"))
	if err != nil || len(list) != 1 {
		t.Fatalf("kept: %v, %v", list, err)
	}
	if k := list[0]; k.Name != "app.db" || k.NoCopy != "" || k.Last-k.First != 4 {
		t.Errorf("kept %+v", k)
	}
	path := filepath.Join(t.TempDir(), "lost.db")
	if err := list[0].Export(path, nil); err != nil {
		t.Fatal(err)
	}
	lost := strings.Fields(sqlitetest.CLI(t, path, "SELECT replace(v,' ','_') FROM t WHERE id > 2000;"))
	if !slices.Equal(lost, []string{"lost_0", "lost_1", "lost_2", "lost_3", "lost_4"}) {
		t.Errorf("exported: %v", lost)
	}
	out, code := follower.cli("lost", "-config", follower.configPath())
	if code != 0 || !strings.Contains(out, list[0].Key) || !strings.Contains(out, `"app.db"`) {
		t.Errorf("litefs lost, exit code %d:\n%s", code, out)
	}
	out, code = follower.cli("lost", "-config", follower.configPath(), "-json", list[0].Key)
	var shown struct {
		Tables []lostfound.Table
		First  uint64
	}
	if err := json.Unmarshal([]byte(out), &shown); err != nil || code != 0 {
		t.Fatalf("litefs lost NAME, exit code %d, %v:\n%s", code, err, out)
	}
	if len(shown.Tables) != 1 || shown.Tables[0].Name != "t" || shown.Tables[0].Rows != 2005 || shown.First != list[0].First {
		t.Errorf("litefs lost NAME: %+v", shown)
	}
	copied := filepath.Join(t.TempDir(), "copy.db")
	if out, code := follower.cli("lost", "-config", follower.configPath(), "-export", copied, list[0].Key); code != 0 {
		t.Errorf("litefs lost -export, exit code %d:\n%s", code, out)
	}
	if got := sqlitetest.CLI(t, copied, "PRAGMA integrity_check; SELECT count(*) FROM t;"); got != "ok\n2005\n" && got != "ok\n2005" {
		t.Errorf("exported: %q", got)
	}
	if n := w.MustInt("SELECT count(*) FROM t"); n != 2003 {
		t.Errorf("%d rows on the primary", n)
	}
	if r, code := follower.repair("app.db", "-dry-run"); code != 0 || r.Differ != 0 {
		t.Errorf("after rejoining: %+v, exit code %d", r, code)
	}
	if strings.Contains(follower.log.text(), "a whole snapshot is fetched") {
		t.Error("a whole snapshot was fetched")
	}
	app.Exit()
	sameEverywhere(t, primary, follower, "app.db")
}

// replaceData makes a node that is down as it was: older is a copy of its data directory. With powerCut
// it ended with its machine.
func (n *node) replaceData(older string, powerCut bool) {
	n.t.Helper()
	if err := os.RemoveAll(n.cfg.Data); err != nil {
		n.t.Fatal(err)
	}
	if err := os.CopyFS(n.cfg.Data, os.DirFS(older)); err != nil {
		n.t.Fatal(err)
	}
	if !powerCut {
		return
	}
	if err := os.WriteFile(filepath.Join(n.cfg.Data, "run"), []byte("another boot\n"), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// copyData copies the data directory of a node that is down.
func (n *node) copyData() string {
	n.t.Helper()
	dir := filepath.Join(n.t.TempDir(), "copy")
	if err := os.CopyFS(dir, os.DirFS(n.cfg.Data)); err != nil {
		n.t.Fatal(err)
	}
	return dir
}

// A primary whose power was cut fetches what it lost from its follower before it serves, and goes on.
func TestPowerCutPrimaryRollsForward(t *testing.T) {
	primary := startNode(t)
	follower := startNode(t, follows(primary))
	app := sqlitetest.Start(t)
	w := app.Open(primary.path("app.db"), "journal_mode=wal", "synchronous=normal")
	load(w, 200)
	settle(w)
	caughtUp(primary, follower, "app.db")
	w.Close()
	primary.kill()
	older := primary.copyData()
	primary.start()
	w = app.Open(primary.path("app.db"))
	for range 20 {
		w.MustExec("INSERT INTO t(v) VALUES ('lost with the power')")
	}
	settle(w)
	caughtUp(primary, follower, "app.db")
	w.Close()
	want, err := follower.pos("app.db")
	if err != nil {
		t.Fatal(err)
	}
	primary.kill()
	primary.replaceData(older, true)
	primary.start()
	if got, err := primary.pos("app.db"); err != nil || got != want {
		t.Errorf("the primary serves at %s (%v), the follower is at %s", got, err, want)
	}
	w = app.Open(primary.path("app.db"))
	if n := w.MustInt("SELECT count(*) FROM t"); n != 220 {
		t.Errorf("%d rows, want 220", n)
	}
	w.MustExec("INSERT INTO t(v) VALUES ('after')")
	settle(w)
	caughtUp(primary, follower, "app.db")
	app.Exit()
	if list, err := lostfound.List(filepath.Join(follower.cfg.Data, "lost+found")); err != nil || len(list) != 0 {
		t.Errorf("the follower has put away %v, %v", list, err)
	}
	sameEverywhere(t, primary, follower, "app.db")
}
