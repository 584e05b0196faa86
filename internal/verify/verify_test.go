package verify_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/superfly/ltx"
	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/internal/capture"
	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/sqlitetest"
	"github.com/litefs/litefs/internal/verify"
)

func TestMain(m *testing.M) { sqlitetest.Main(m) }

// dataDir is a data directory made by hand, with one database.
type dataDir struct {
	t    *testing.T
	dir  string
	log  *ltxlog.Log
	at   capture.WALPos
	sums map[uint32]uint64
	conn *sqlitetest.Conn
	app  *sqlitetest.App
}

func newDataDir(t *testing.T) *dataDir {
	t.Helper()
	d := &dataDir{t: t, dir: t.TempDir(), sums: map[uint32]uint64{}}
	for _, dir := range []string{"files", "dbs/0000000000000007/ltx"} {
		if err := os.MkdirAll(filepath.Join(d.dir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string]string{"FORMAT": "litefs 2\nltx 3\n", "LOCK": "", "role": "primary\n", "dbs/0000000000000007/name": "app.db"} {
		if err := os.WriteFile(filepath.Join(d.dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d.openLog()
	d.app = sqlitetest.Start(t)
	d.conn = d.app.Open(d.file(), "journal_mode=wal", "wal_autocheckpoint=0")
	d.conn.PersistWAL(true)
	d.conn.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
	return d
}

func (d *dataDir) file() string   { return filepath.Join(d.dir, "files", "app.db") }
func (d *dataDir) ltxDir() string { return filepath.Join(d.dir, "dbs", "0000000000000007", "ltx") }

func (d *dataDir) openLog() {
	d.t.Helper()
	var err error
	recent, err := ltxlog.OpenRecent(filepath.Join(d.dir, "recent"), func(uint64) string { return d.ltxDir() }, ltxlog.RecentOptions{})
	if err != nil {
		d.t.Fatal(err)
	}
	if d.log, err = ltxlog.Open(d.ltxDir(), ltxlog.Options{Recent: recent, ID: 7}); err != nil {
		d.t.Fatal(err)
	}
}

// write runs one transaction and captures it.
func (d *dataDir) write(sql string) {
	d.t.Helper()
	d.conn.MustExec(sql)
	d.capture()
}

// insert is a transaction that changes several pages.
const insert = "INSERT INTO t(v) VALUES (randomblob(20000))"

// capture adds what the write-ahead log has to the log.
func (d *dataDir) capture() {
	d.t.Helper()
	wal, err := os.Open(d.file() + "-wal")
	if err != nil {
		d.t.Fatal(err)
	}
	defer wal.Close()
	fi, err := wal.Stat()
	if err != nil {
		d.t.Fatal(err)
	}
	batch, err := capture.Scan(wal, fi.Size(), d.at, capture.Limit{})
	if errors.Is(err, capture.ErrRestarted) {
		batch, err = capture.Scan(wal, fi.Size(), capture.WALPos{}, capture.Limit{})
	}
	if err != nil || batch.Commits == 0 {
		d.t.Fatalf("scan found %d commits: %v", batch.Commits, err)
	}
	page := make([]byte, batch.PageSize)
	for _, p := range batch.Pages {
		if err := capture.ReadPage(wal, p.Frame, batch.PageSize, page); err != nil {
			d.t.Fatal(err)
		}
		d.sums[p.Pgno] = uint64(ltx.ChecksumPage(p.Pgno, page))
	}
	post := uint64(0)
	for pgno, sum := range d.sums {
		if pgno > batch.PageCount {
			delete(d.sums, pgno)
			continue
		}
		post ^= sum
	}
	post |= uint64(ltx.ChecksumFlag)
	head, _ := d.log.Head()
	h := ltxlog.Header{
		Min: head.Max + 1, Max: head.Max + batch.Commits, Pre: head.Post, Commit: batch.PageCount, PageSize: batch.PageSize,
		Epoch: 1, Timestamp: time.Unix(1, 0), Salt1: batch.To.Salt1, Salt2: batch.To.Salt2,
	}
	h.WALOffset, h.WALSize = batch.WALRange()
	_, err = d.log.Append(h, func(emit func(uint32, []byte) error) error {
		for _, p := range batch.Pages {
			if err := capture.ReadPage(wal, p.Frame, batch.PageSize, page); err != nil {
				return err
			}
			if err := emit(p.Pgno, page); err != nil {
				return err
			}
		}
		return nil
	}, post, true)
	if err != nil {
		d.t.Fatal(err)
	}
	d.at = batch.To
}

// stop ends the application with its connection closed, and closes the log.
func (d *dataDir) stop() {
	d.t.Helper()
	d.app.Kill()
	if err := d.log.Close(); err != nil {
		d.t.Fatal(err)
	}
}

// files returns the content of every file of the directory.
func (d *dataDir) files() map[string]string {
	d.t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(d.dir, func(path string, ent fs.DirEntry, err error) error {
		if err != nil || ent.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		out[path] = string(b)
		return err
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}

// verify runs the verification and proves that it changed nothing.
func (d *dataDir) verify() (*verify.Report, *verify.Database) {
	d.t.Helper()
	before := d.files()
	ctx, cancel := context.WithTimeout(d.t.Context(), time.Minute)
	defer cancel()
	temp := d.t.TempDir()
	report, err := verify.Run(ctx, verify.Options{DataDir: d.dir, TempDir: temp})
	if err != nil {
		d.t.Fatal(err)
	}
	if !maps.Equal(before, d.files()) {
		d.t.Error("verification changed the data directory")
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		d.t.Errorf("verification left %v (%v)", left, err)
	}
	if len(report.Databases) != 1 {
		d.t.Fatalf("%d databases, want 1", len(report.Databases))
	}
	return report, report.Databases[0]
}

// wantFault fails unless the first bad transaction is txid.
func wantFault(t *testing.T, db *verify.Database, txid uint64, text string) {
	t.Helper()
	if len(db.Faults) != 1 || db.Faults[0].TXID != txid || !strings.Contains(db.Faults[0].Error(), text) {
		t.Errorf("faults %v, want one at transaction %d that says %q", db.Faults, txid, text)
	}
}

// wantNote fails unless there is no fault, and one note with text ("" for none).
func wantNote(t *testing.T, db *verify.Database, text string) {
	t.Helper()
	if !db.OK() {
		t.Errorf("faults %v, want none", db.Faults)
	}
	if text == "" {
		if len(db.Notes) > 0 {
			t.Errorf("notes %q, want none", db.Notes)
		}
		return
	}
	if len(db.Notes) != 1 || !strings.Contains(db.Notes[0], text) {
		t.Errorf("notes %q, want one that says %q", db.Notes, text)
	}
}

func TestWholeDatabase(t *testing.T) {
	cases := map[string]func(d *dataDir){
		"frames in the write-ahead log": func(d *dataDir) { d.write(insert) },
		"checkpointed": func(d *dataDir) {
			d.write(insert)
			d.conn.MustExec("PRAGMA wal_checkpoint(TRUNCATE)")
		},
		"written after a restart": func(d *dataDir) {
			d.write(insert)
			d.conn.MustExec("PRAGMA wal_checkpoint(RESTART)")
			d.write(insert)
		},
		"shrunk": func(d *dataDir) {
			d.write(insert)
			d.write(insert)
			d.write("DELETE FROM t")
			d.write("VACUUM")
		},
		"half backfilled": func(d *dataDir) {
			d.write(insert)
			d.conn.MustExec("PRAGMA wal_checkpoint(PASSIVE)")
			d.write(insert)
		},
	}
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		t.Run(name, func(t *testing.T) {
			d := newDataDir(t)
			d.capture()
			cases[name](d)
			head, _ := d.log.Head()
			d.stop()
			report, db := d.verify()
			wantNote(t, db, "")
			if report.Running || db.Max != head.Max || db.Checksum != head.Post || !db.Replayed || db.Integrity != "ok" {
				t.Errorf("running %v, %+v, want the head %+v, replayed, integrity ok", report.Running, db, head)
			}
		})
	}
}

func TestWhatIsNotCapturedYetIsNoFault(t *testing.T) {
	d := newDataDir(t)
	d.capture()
	d.conn.MustExec(insert)
	d.conn.MustExec(insert)
	d.stop()
	_, db := d.verify()
	wantNote(t, db, "2 transactions")
}

func TestDamagedPageNamesItsTransaction(t *testing.T) {
	d := newDataDir(t)
	d.capture()
	d.write(insert)
	d.write("INSERT INTO t(v) VALUES (zeroblob(9000))")
	d.conn.MustExec("PRAGMA wal_checkpoint(TRUNCATE)")
	d.stop()
	b, err := os.ReadFile(d.file())
	if err != nil {
		t.Fatal(err)
	}
	// Page 3 was written by the first insert and by nobody after it.
	b[2*4096+100] ^= 1
	if err := os.WriteFile(d.file(), b, 0o600); err != nil {
		t.Fatal(err)
	}
	_, db := d.verify()
	wantFault(t, db, 2, "page 3")
}

func TestMissingDatabaseFile(t *testing.T) {
	d := newDataDir(t)
	d.capture()
	d.stop()
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(d.file() + suffix); err != nil {
			t.Fatal(err)
		}
	}
	_, db := d.verify()
	wantFault(t, db, 1, "no database file")
}

// entries returns the files of the log, oldest first.
func (d *dataDir) entries() []string {
	d.t.Helper()
	names, err := filepath.Glob(filepath.Join(d.ltxDir(), "*.ltx"))
	if err != nil || len(names) == 0 {
		d.t.Fatalf("no entries: %v", err)
	}
	slices.Sort(names)
	return names
}

func TestDamagedEntryIsTheFirstBadTransaction(t *testing.T) {
	d := newDataDir(t)
	d.capture()
	for range 3 {
		d.write(insert)
	}
	d.stop()
	path := d.entries()[2]
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 0xff
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	_, db := d.verify()
	wantFault(t, db, 3, "")
}

func TestHoleInTheLog(t *testing.T) {
	d := newDataDir(t)
	d.capture()
	for range 3 {
		d.write(insert)
	}
	d.stop()
	if err := os.Remove(d.entries()[1]); err != nil {
		t.Fatal(err)
	}
	_, db := d.verify()
	wantFault(t, db, 2, "")
}

func TestTruncatedLastEntry(t *testing.T) {
	d := newDataDir(t)
	d.capture()
	d.write(insert)
	d.stop()
	if err := os.Truncate(d.entries()[1], 150); err != nil {
		t.Fatal(err)
	}
	_, db := d.verify()
	wantFault(t, db, 2, "damaged")
}

// The last entries of a log may be on disk as copies alone, after a power cut: the next start of the
// node brings them back, and verification knows them.
func TestEntriesThatAreCopies(t *testing.T) {
	d := newDataDir(t)
	d.capture()
	for range 12 {
		d.write(insert)
	}
	d.app.Kill() // and the log is not closed
	entries := d.entries()
	for i, name := range entries[len(entries)-3:] {
		if i == 1 {
			if err := os.Truncate(name, 0); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	_, db := d.verify()
	wantNote(t, db, "")
	if db.Max != uint64(len(entries)) {
		t.Errorf("verified up to %d, want %d", db.Max, len(entries))
	}
}

func TestLogWithoutItsBeginning(t *testing.T) {
	d := newDataDir(t)
	d.capture()
	d.write(insert)
	d.write(insert)
	d.stop()
	if err := os.Remove(d.entries()[0]); err != nil {
		t.Fatal(err)
	}
	_, db := d.verify()
	wantNote(t, db, "")
	if db.Replayed || db.First != 2 || db.Integrity != "ok" {
		t.Errorf("%+v, want not replayed, from transaction 2, integrity ok", db)
	}
	// The checksum of all pages still tells.
	if err := os.Truncate(d.file()+"-wal", 0); err != nil {
		t.Fatal(err)
	}
	_, db = d.verify()
	if db.OK() {
		t.Error("a database without its write-ahead log was found whole")
	}
}

func TestFilesBehindTheLogAreNoFault(t *testing.T) {
	d := newDataDir(t)
	d.capture()
	d.write(insert)
	wal, err := os.ReadFile(d.file() + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	d.write(insert)
	d.stop()
	// A power cut may keep the log's last entry and lose the frames it was made from.
	if err := os.WriteFile(d.file()+"-wal", wal, 0o600); err != nil {
		t.Fatal(err)
	}
	_, db := d.verify()
	wantNote(t, db, "1 behind the log")
}

func TestRunningNode(t *testing.T) {
	d := newDataDir(t)
	d.capture()
	d.stop()
	f, err := os.OpenFile(filepath.Join(d.dir, "LOCK"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	report, db := d.verify()
	wantNote(t, db, "")
	if !report.Running {
		t.Error("the running node was not noticed")
	}
}

func TestRunRefusesWhatIsNoDataDirectory(t *testing.T) {
	_, err := verify.Run(t.Context(), verify.Options{DataDir: t.TempDir()})
	if !errors.Is(err, verify.ErrNotDataDir) {
		t.Errorf("an empty directory: %v, want ErrNotDataDir", err)
	}
	d := newDataDir(t)
	d.stop()
	if _, err := verify.Run(t.Context(), verify.Options{DataDir: d.dir, Names: []string{"x.db"}}); !errors.Is(err, verify.ErrNoDatabase) {
		t.Errorf("unknown name: %v, want ErrNoDatabase", err)
	}
}

func TestListAndDump(t *testing.T) {
	d := newDataDir(t)
	d.capture()
	d.write(insert)
	head, _ := d.log.Head()
	d.stop()
	var out bytes.Buffer
	if err := verify.List(t.Context(), &out, d.dir, nil, nil, false); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(strings.TrimSpace(out.String()), "\n"); len(lines) != 3 || !strings.Contains(lines[2], fmt.Sprintf("%016x", head.Post)) {
		t.Errorf("list:\n%s", out.String())
	}
	out.Reset()
	if err := verify.Dump(&out, d.dir, "app.db", 2, nil, false); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "0000000000000002-0000000000000002") || !strings.Contains(out.String(), fmt.Sprintf("%016x", d.sums[1])) {
		t.Errorf("dump:\n%s", out.String())
	}
	out.Reset()
	if err := verify.Dump(&out, d.dir, "app.db", 2, nil, true); err != nil {
		t.Fatal(err)
	}
	var dump struct {
		Database, Min, Max, Post string
		Changed                  []struct {
			Pgno     uint32
			Checksum string
		}
	}
	if err := json.Unmarshal(out.Bytes(), &dump); err != nil {
		t.Fatal(err)
	}
	if dump.Database != "app.db" || dump.Min != dump.Max || dump.Post != fmt.Sprintf("%016x", head.Post) ||
		len(dump.Changed) == 0 || dump.Changed[0].Pgno != 1 || dump.Changed[0].Checksum != fmt.Sprintf("%016x", d.sums[1]) {
		t.Errorf("dump: %+v", dump)
	}
	if err := verify.Dump(&out, d.dir, "app.db", 3, nil, true); !errors.Is(err, verify.ErrNoEntry) {
		t.Errorf("dump of a transaction that is not there: %v", err)
	}
}
