package litefs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/logkey"
	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// TestRecoverRandom crashes a database in the middle of a life of its own, over
// and over: transactions of all sizes, checkpoints, changes of journal mode,
// VACUUM. Table c counts the transactions, so that its value names the state. The
// logs of some lives are encrypted.
// LITEFS_SOAK is how long new lives are begun.
func TestRecoverRandom(t *testing.T) {
	until := time.Now()
	if v := os.Getenv("LITEFS_SOAK"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil {
			t.Fatalf("LITEFS_SOAK: %v", err)
		}
		until = until.Add(d)
	}
	for seed := uint64(0); seed < 2 || time.Now().Before(until); seed++ {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) { newLife(t, seed).run(12) })
	}
}

// moment is a copy of the data directory between two statements.
type moment struct {
	dir   string
	n     int // transactions committed
	wal   bool
	since int // counts the write-ahead logs that there have been, and restarts
}

type life struct {
	t    *testing.T
	rand *rand.Rand
	keys *logkey.Keys // of the logs; nil: they lie in the clear
	m    *mounted
	r    *reader
	app  *sqlitetest.App
	conn *sqlitetest.Conn

	n       int
	wal     bool
	since   int
	moments []moment
}

func newLife(t *testing.T, seed uint64) *life {
	l := &life{t: t, rand: rand.New(rand.NewPCG(seed, 0))}
	if seed%4 == 1 || seed%4 == 2 {
		l.keys = someKeys(t)
	}
	l.m = mountNode(t, filepath.Join(t.TempDir(), "data"), seed%2 == 1, withLogKeys(l.keys), packedLogs)
	l.r, l.app = newReader(t), sqlitetest.Start(t)
	l.open()
	l.conn.MustExec("CREATE TABLE c(n)")
	l.conn.MustExec("INSERT INTO c VALUES (0)")
	l.conn.MustExec(createT)
	return l
}

func (l *life) open() {
	l.conn = l.app.Open(l.m.app("app.db"), "wal_autocheckpoint=0", "cache_size=5")
}

func (l *life) run(steps int) {
	for i := range steps {
		op := l.step()
		if l.t.Failed() {
			l.t.Fatalf("after step %d: %s", i, op)
		}
	}
	if l.wal {
		l.m.capture("app.db")
	}
	l.m.mustAgree(l.r, "app.db")
	if gaps := l.m.store.Stats().NetGaps.Load(); gaps != 0 {
		l.t.Errorf("%d gaps, want none", gaps)
	}
}

func (l *life) step() string {
	switch k := l.rand.IntN(20); {
	case k < 9:
		l.transaction(false)
		l.look()
		return "transaction"
	case k < 12:
		l.transaction(true)
		return "transaction with a crash inside"
	case k < 14:
		if l.wal {
			l.conn.MustQuery("PRAGMA wal_checkpoint(" + []string{"PASSIVE", "RESTART", "TRUNCATE"}[l.rand.IntN(3)] + ")")
			l.since++
			l.look()
		}
		return "checkpoint"
	case k < 16:
		mode := []string{"wal", "wal", "delete", "truncate", "persist"}[l.rand.IntN(5)]
		l.conn.MustQuery("PRAGMA journal_mode=" + mode)
		l.wal = mode == "wal"
		l.since++
		l.look()
		return "journal_mode=" + mode
	case k < 17:
		// In WAL mode the page size stays what it is.
		l.conn.MustQuery("PRAGMA page_size=" + []string{"1024", "4096", "4096"}[l.rand.IntN(3)])
		l.conn.MustExec("VACUUM")
		l.moments = nil // a log that begins anew
		l.look()
		return "vacuum"
	case k < 18:
		l.conn.Close()
		l.since++
		l.open()
		return "reopened"
	default:
		// What was there before is on disk now, so nothing older can be.
		l.m.db("app.db").retain(Retention{Age: time.Hour, Bytes: 100_000, Interval: time.Hour})
		l.moments = nil
		return "retention"
	}
}

// transaction changes some pages, and with crash set takes a moment before its
// commit, when pages may be in the files.
func (l *life) transaction(crash bool) {
	l.conn.MustExec("BEGIN IMMEDIATE")
	l.conn.MustExec("UPDATE c SET n = n + 1")
	for range l.rand.IntN(12) {
		l.conn.MustExec("INSERT INTO t(b) VALUES (randomblob(?))", 10+l.rand.IntN(9000))
	}
	if l.rand.IntN(3) == 0 {
		l.conn.MustExec("DELETE FROM t WHERE id % 3 = ?", l.rand.IntN(3))
	}
	if crash {
		l.look()
	}
	l.conn.MustExec("COMMIT")
	l.n++
}

// look takes a moment and crashes there.
func (l *life) look() {
	db := l.m.db("app.db")
	if l.wal && l.rand.IntN(2) == 0 {
		l.m.capture("app.db")
	}
	db.mu.Lock()
	now := moment{dir: l.m.crash(), n: l.n, wal: l.wal, since: l.since}
	db.mu.Unlock()
	l.moments = append(l.moments, now)
	if len(l.moments) > 4 {
		l.moments = l.moments[1:]
	}
	before := l.moments[l.rand.IntN(len(l.moments))]
	switch k := l.rand.IntN(5); {
	case k == 0:
		l.crashed("killed", mix(l.t, now.dir, now.dir), boot1, now.n)
	case k == 1:
		l.crashed("checksums from before, power cut", mix(l.t, now.dir, before.dir, checksums), boot2, now.n)
	case k == 2 && !l.inJournal(now) && !l.inJournal(before):
		// Files older than the log: nothing of them was synced.
		n, ok := l.logged(now)
		if !ok {
			return
		}
		l.crashed(fmt.Sprintf("files from %d (WAL %t, %d), log of %d, at %d (WAL %t, %d), power cut", before.n, before.wal, before.since, n, now.n, now.wal, now.since), mix(l.t, now.dir, before.dir, files), boot2, max(n, before.n))
	case k == 3 && now.wal && before.since == now.since:
		l.crashed("log from before, killed", mix(l.t, now.dir, before.dir, ltxDir, checksums), boot1, now.n)
	case k == 4 && now.wal && before.since == now.since && !l.inJournal(now):
		cut := l.rand.IntN(20000)
		n, ok := l.logged(now)
		if !ok {
			return
		}
		dir := mix(l.t, now.dir, now.dir)
		wal := inFiles(dir, "app.db-wal")
		if _, err := os.Stat(wal); err != nil {
			return // every connection is closed
		}
		edit(l.t, wal, func(b []byte) []byte { return b[:max(0, len(b)-cut)] })
		l.crashedAtLeast(fmt.Sprintf("write-ahead log shorter by %d, power cut", cut), dir, boot2, n, now.n)
	}
}

func (l *life) inJournal(m moment) bool { return journalHot(inFiles(m.dir, "app.db-journal")) }

// logged returns how many transactions the log of a moment has, if it can be
// told from the log alone.
func (l *life) logged(m moment) (n int, ok bool) {
	l.t.Helper()
	dir := mustGlob(l.t, mix(l.t, m.dir, m.dir), ltxDir)[0]
	log, err := l.keys.OpenAsIs(filepath.Dir(dir), filepath.Base(dir), "", ltxlog.Options{})
	if err != nil {
		l.t.Fatal(err)
	}
	defer log.Close() //nolint:errcheck // read only
	if tail, ok := log.Tail(); !ok || !tail.IsSnapshot() {
		return 0, false
	}
	head, _ := log.Head()
	var w sliceWriter
	count, _, err := log.Replay(&w, head.Max)
	if err != nil {
		l.t.Fatal(err)
	}
	path := filepath.Join(l.t.TempDir(), "logged.db")
	if err := os.WriteFile(path, w.b[:int64(count)*int64(head.PageSize)], 0o600); err != nil {
		l.t.Fatal(err)
	}
	return l.counter(path), true
}

func (l *life) counter(path string) int {
	l.t.Helper()
	n, err := strconv.Atoi(l.r.value(path, "SELECT n FROM c"))
	if err != nil {
		l.t.Fatal(err)
	}
	return n
}

func (l *life) crashed(what, dir, boot string, want int) {
	l.t.Helper()
	l.crashedAtLeast(what, dir, boot, want, want)
}

// crashedAtLeast recovers dir and checks that all of the first low
// transactions are there, and none beyond high.
func (l *life) crashedAtLeast(what, dir, boot string, low, high int) {
	l.t.Helper()
	kept := filepath.Join(l.t.TempDir(), "as-it-was")
	copyTree(l.t, dir, kept)
	n, err := tryOpenNode(l.t, dir, onBoot(boot), withLogKeys(l.keys))
	if err != nil {
		l.t.Fatalf("%s: %v", what, err)
	}
	if failed := n.store.Failed(); len(failed) > 0 {
		l.t.Fatalf("%s: %v", what, failed)
	}
	if got := l.counter(n.path("app.db")); got < low || got > high {
		l.t.Errorf("%s: %d transactions, want %d to %d", what, got, low, high)
	}
	n.mustAgree(l.r, "app.db")
	if l.rand.IntN(4) == 0 {
		n.mustGoOn(l.r, "app.db")
	} else {
		n.close()
	}
	if l.t.Failed() {
		l.t.Logf("%s, boot %s", what, boot)
	}
}
