package peer

import (
	"bufio"
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// history is a list of transactions, what they made of the database, and what
// a reader then sees.
type history struct {
	txns   []txn
	images []image
	seen   []string
}

const lookSQL = "SELECT count(*), sum(length(b)), max(a) FROM t"

// newHistory does everything that a Peer treats differently: the first
// transaction, commits of one and of many frames, growth, a shrink.
func newHistory(t *testing.T, app *sqlitetest.App, mode string, n int) *history {
	t.Helper()
	p := newPrimary(t, app, mode, 1024)
	h := &history{}
	step := func(sql string) {
		h.txns = append(h.txns, p.tx(sql))
		h.images = append(h.images, p.img)
		h.seen = append(h.seen, fmt.Sprint(p.MustQuery(lookSQL)))
	}
	step("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
	step("INSERT INTO t(b) VALUES (randomblob(900)), (randomblob(3000))")
	for i := range n {
		switch i % 5 {
		case 0, 1, 2:
			step("INSERT INTO t(b) VALUES (randomblob(700))")
		case 3:
			step("INSERT INTO t(b) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<20) SELECT randomblob(500) FROM n")
		case 4:
			step("DELETE FROM t WHERE a % 2 = 0; VACUUM")
		}
	}
	return h
}

var errCut = errors.New("cut off")

// cutter cuts a Peer off at the n-th change that it makes, as a kill does:
// nothing of what would follow happens. A write of more than a sector happens by
// half.
type cutter struct {
	n    int
	dead bool
}

func (c *cutter) before(ch change) error {
	if c.dead {
		return errCut
	}
	if c.n--; c.n > 0 {
		return nil
	}
	c.dead = true
	if half := len(ch.b) / 2 &^ 511; half > 0 {
		if _, err := ch.f.WriteAt(ch.b[:half], ch.at); err != nil {
			return err
		}
	}
	return errCut
}

// abandon lets a Peer go as the end of its process would.
func abandon(t *testing.T, p *Peer) {
	t.Helper()
	if p != nil {
		p.opt.before = nil
		must(t, p.release())
		p.closed = true
	}
}

// How a connection is open while a Peer is cut off.
const (
	noReader      = "none"
	idleReader    = "idle"    // keeps the wal-index alive, so that it is adopted
	holdingReader = "holding" // and a snapshot as well
)

func TestCutOffAtEveryChange(t *testing.T) {
	for _, mode := range []string{"delete", "wal"} {
		for _, with := range []string{noReader, holdingReader} {
			t.Run(fmt.Sprintf("%s/reader=%v", mode, with), func(t *testing.T) {
				app := sqlitetest.Start(t)
				h := newHistory(t, app, mode, 5)
				step := 1
				if mode == "wal" && with == noReader {
					step = 3 // the journal mode makes no difference that the other three have not shown
				}
				cuts := 0
				for n := 1; cutOffAt(t, app, h, n, with); n += step {
					cuts = n
				}
				if cuts < 35 {
					t.Errorf("%d changes in all, want more: the history is too simple", cuts)
				}
			})
		}
	}
}

// cutOffAt plays the history, cut off at change n, and lets another Peer go on.
// It returns false when the history has fewer changes.
func cutOffAt(t *testing.T, app *sqlitetest.App, h *history, n int, with string) bool {
	t.Helper()
	r := &replica{t: t, path: filepath.Join(t.TempDir(), "replica.db"), opt: Options{SoftWAL: 12 << 10}}
	r.opt.Path = r.path
	done := 0
	var reader *sqlitetest.Conn
	if with != noReader {
		r.open()
		for ; done < 2; done++ {
			r.apply(h.txns[done])
		}
		reader = app.Open(r.path)
		defer reader.Close()
		if with == holdingReader {
			reader.MustExec("BEGIN")
		}
		if got := fmt.Sprint(reader.MustQuery(lookSQL)); got != h.seen[1] {
			t.Fatalf("reader sees %s, want %s", got, h.seen[1])
		}
		abandon(t, r.Peer)
	}

	c := &cutter{n: n}
	opt := r.opt
	opt.before = c.before
	p, err := Open(patient(t), opt)
	for ; err == nil && done < len(h.txns); done++ {
		if err = p.Apply(patient(t), h.txns[done].Count, h.txns[done].PageSize, h.txns[done].pages); err != nil {
			break
		}
		if c.dead { // after the commit
			err = errCut
		}
	}
	abandon(t, p)
	if err == nil {
		return false
	}
	if !errors.Is(err, errCut) {
		t.Fatalf("change %d: %v", n, err)
	}
	if with == holdingReader {
		if got := fmt.Sprint(reader.MustQuery(lookSQL)); got != h.seen[1] {
			t.Fatalf("change %d: snapshot turned into %s, was %s", n, got, h.seen[1])
		}
		reader.MustExec("COMMIT")
	}
	if with == idleReader {
		if got := fmt.Sprint(reader.MustQuery(lookSQL)); got != h.seen[done-1] && (done == len(h.seen) || got != h.seen[done]) {
			t.Fatalf("change %d: reader sees %s after %d transactions", n, got, done)
		}
	}
	checkAsSQLiteFindsIt(t, app, r.path, h, done, n)

	r.open()
	defer r.close()
	checkOneOf(t, r, h, done, n)
	for ; done < len(h.txns); done++ {
		r.apply(h.txns[done])
		r.check(h.images[done])
		if with != noReader {
			if got := fmt.Sprint(reader.MustQuery(lookSQL)); got != h.seen[done] {
				t.Fatalf("change %d: reader sees %s, want %s", n, got, h.seen[done])
			}
		}
	}
	r.checkFile(h.images[len(h.images)-1])
	return true
}

// checkOneOf: after a cut the database is what the last complete transaction
// left, or the next one.
func checkOneOf(t *testing.T, r *replica, h *history, done, n int) {
	t.Helper()
	want := []image{{}}
	if done > 0 {
		want[0] = h.images[done-1]
	}
	if done < len(h.images) {
		want = append(want, h.images[done])
	}
	var errs []error
	for _, img := range want {
		err := r.compare(img)
		if err == nil {
			return
		}
		errs = append(errs, err)
	}
	t.Fatalf("change %d, after %d transactions: %v", n, done, errors.Join(errs...))
}

// checkAsSQLiteFindsIt opens a copy with SQLite alone, which recovers the WAL
// by itself.
func checkAsSQLiteFindsIt(t *testing.T, app *sqlitetest.App, path string, h *history, done, n int) {
	t.Helper()
	dir := t.TempDir()
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(path + suffix)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, "copy.db"+suffix), b, 0o600))
	}
	if done < 2 {
		return // no table yet, or not even a header
	}
	c := app.Open(filepath.Join(dir, "copy.db"))
	got := fmt.Sprint(c.MustQuery(lookSQL))
	if got != h.seen[done-1] && (done == len(h.seen) || got != h.seen[done]) {
		t.Fatalf("change %d: SQLite sees %s after %d transactions, want %s", n, got, done, h.seen[done-1])
	}
	if ok := c.MustText("PRAGMA integrity_check"); ok != "ok" {
		t.Fatalf("change %d: %s", n, ok)
	}
	c.Close()
}

var errOnce = errors.New("no space left")

// A change that fails leaves a Peer that can apply the transaction again, and
// readers that saw nothing wrong.
func TestFailAtEveryChange(t *testing.T) {
	app := sqlitetest.Start(t)
	h := newHistory(t, app, "delete", 5)
	for n := 1; ; n++ {
		c := n
		failed := false
		opt := Options{Path: filepath.Join(t.TempDir(), "replica.db"), SoftWAL: 12 << 10}
		opt.before = func(change) error {
			if c--; c == 0 {
				failed = true
				return errOnce
			}
			return nil
		}
		r := &replica{t: t, path: opt.Path, opt: opt}
		r.open() // of an absent file: changes nothing
		var reader *sqlitetest.Conn
		for i, x := range h.txns {
			err := r.Apply(patient(t), x.Count, x.PageSize, x.pages)
			if err != nil {
				if !errors.Is(err, errOnce) {
					t.Fatalf("change %d: %v", n, err)
				}
				if reader != nil {
					got := fmt.Sprint(reader.MustQuery(lookSQL))
					if got != h.seen[i-1] && got != h.seen[i] {
						t.Fatalf("change %d: reader sees %s, want %s or %s", n, got, h.seen[i-1], h.seen[i])
					}
				}
				r.apply(x)
			}
			r.check(h.images[i])
			if reader == nil {
				reader = app.Open(r.path)
			}
			if got := fmt.Sprint(reader.MustQuery(lookSQL)); got != h.seen[i] {
				t.Fatalf("change %d: reader sees %s, want %s", n, got, h.seen[i])
			}
		}
		reader.Close()
		r.checkFile(h.images[len(h.images)-1])
		if err := r.Close(patient(t)); err != nil && !errors.Is(err, errOnce) {
			t.Fatal(err)
		}
		if !failed {
			if n < 60 {
				t.Errorf("%d changes in all, want more: the history is too simple", n-1)
			}
			return
		}
	}
}

// victimEnv makes the test binary a process that applies a history, from a
// position on, until it is killed: "path|file of the history|position".
const victimEnv = "LITEFS_PEER_VICTIM"

func victim() {
	if err := victimRun(strings.Split(os.Getenv(victimEnv), "|")); err != nil {
		fmt.Println("error:", err)
	}
}

func victimRun(args []string) error {
	f, err := os.Open(args[1])
	if err != nil {
		return err
	}
	defer f.Close()
	var txns []txn
	if err := gob.NewDecoder(f).Decode(&txns); err != nil {
		return err
	}
	from, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	ctx, cancel := contextOf(time.Minute)
	defer cancel()
	p, err := Open(ctx, Options{Path: args[0], SoftWAL: 64 << 10})
	if err != nil {
		return err
	}
	for i := from; i < len(txns); i++ {
		if err := p.Apply(ctx, txns[i].Count, txns[i].PageSize, txns[i].pages); err != nil {
			return err
		}
		fmt.Println(i + 1)
	}
	return nil
}

// The real thing: the process of the Peer is killed while it applies and a
// reader reads, again and again.
func TestKillWhileApplying(t *testing.T) {
	app := sqlitetest.Start(t)
	h := newHistory(t, app, "delete", 150)
	file := filepath.Join(t.TempDir(), "history")
	f, err := os.Create(file)
	must(t, err)
	must(t, gob.NewEncoder(f).Encode(h.txns))
	must(t, f.Close())

	r := &replica{t: t, path: filepath.Join(t.TempDir(), "replica.db"), opt: Options{SoftWAL: 64 << 10}}
	r.opt.Path = r.path
	r.open()
	r.apply(h.txns[0])
	done := 1
	reader := app.Open(r.path)
	look := func() {
		t.Helper()
		got := fmt.Sprint(reader.MustQuery(lookSQL))
		for i := done - 1; i <= done && i < len(h.seen); i++ {
			if got == h.seen[i] {
				return
			}
		}
		t.Fatalf("reader sees %s after %d transactions, want %s", got, done, h.seen[done-1])
	}
	for round := 1; done < len(h.txns)-1; round++ {
		abandon(t, r.Peer)
		done = killAfter(t, fmt.Sprintf("%s|%s|%d", r.path, file, done), done, 1+round*5%17)
		look()
		r.open()
		checkOneOf(t, r, h, done, round)
		if done < len(h.txns) {
			r.apply(h.txns[done]) // again, perhaps
			done++
		}
		r.check(h.images[done-1])
		look()
	}
	reader.Close()
	r.checkFile(h.images[done-1])
	r.close()
}

// killAfter starts a victim, kills it when it has reported n transactions, and
// returns the last one that it reported.
func killAfter(t *testing.T, args string, done, n int) int {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), victimEnv+"="+args)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	s := bufio.NewScanner(out)
	for s.Scan() {
		v, err := strconv.Atoi(s.Text())
		if err != nil {
			t.Errorf("victim says %q", s.Text())
			break
		}
		done = v
		if n--; n == 0 {
			must(t, cmd.Process.Kill())
		}
	}
	_ = cmd.Wait() // killed
	return done
}
