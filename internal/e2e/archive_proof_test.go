package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/archive"
	"github.com/litefs/litefs/internal/catalog"
	configs "github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/daemon"
	"github.com/litefs/litefs/internal/faultnet"
	"github.com/litefs/litefs/internal/objstore"
	"github.com/litefs/litefs/internal/restore"
	"github.com/litefs/litefs/internal/seal"
	"github.com/litefs/litefs/internal/ship"
	"github.com/litefs/litefs/internal/sqlitetest"
	"github.com/litefs/litefs/internal/verify"
)

// The proof of the archive: everything that is restored is, byte for byte, what the database was.
//
// Every transaction of the test adds a tag of its own to a table, so a database tells all transactions that
// made it, and in which order. After a transaction the file's bytes are looked at, through the mount and with
// nothing between; these are the truth, and where nobody could look (right next to a kill) it is what the log of a
// node makes as of the moment's transaction: logs are kept whole, and copied before a node comes back.
// Archives are made with the shortest intervals, so that all levels,
// snapshots and retention are at work. A moment that is restored, while nodes write or after the end, must
// have a tag that was written, the bytes that were seen at this tag, and all the tags of the moment before.

// truth is what the databases of a test were.
type truth struct {
	t *testing.T
	r *rand.Rand

	mu      sync.Mutex
	started map[string]time.Time         // when a tag's transaction began
	seen    map[string]map[[32]byte]bool // by tag: hashes of the file
	partial map[string]int               // by tag: how often the file may have been otherwise as well, unseen

	logs [][2]string // data directories of nodes, some of them copies: where, and what it is

	restored, identical, replayed int
	levels                        [archive.LevelSnapshot + 1]int // objects that were read, by level
}

const proved = "app.db"

func newTruth(t *testing.T, seed uint64) *truth {
	return &truth{
		t: t, r: rand.New(rand.NewPCG(seed, 3)), started: map[string]time.Time{},
		seen: map[string]map[[32]byte]bool{}, partial: map[string]int{},
	}
}

// write writes to a node's database until count transactions are written or stop is closed or something
// fails, which the death of the node does.
func (w *truth) write(app *sqlitetest.App, n *node, count int, r *rand.Rand, stop <-chan struct{}) error {
	c, err := app.TryOpen(n.path(proved), "busy_timeout=20000")
	if err != nil {
		return err
	}
	tag, err := tagOf(c)
	if err != nil {
		return err
	}
	for i := range count {
		select {
		case <-stop:
			return nil
		default:
		}
		statement, next := w.statement(r, tag)
		// Until the outcome is known, and for ever if it stays unknown.
		w.doubt(tag)
		if next != tag {
			w.doubt(next)
		}
		if _, err := c.Exec(statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
		if next != tag {
			w.believe(tag)
		}
		// Now and then several transactions are made without a look between.
		if tag = next; r.IntN(4) == 0 && i < count-1 {
			continue
		}
		seen, err := w.look(c, n, tag)
		if err != nil {
			return err
		}
		if seen {
			w.believe(tag)
		}
	}
	return nil
}

// statement returns what is executed next, and the tag after it: the same, where it is a change of the file
// and not of what is in it.
func (w *truth) statement(r *rand.Rand, tag string) (statement, after string) {
	if tag == "" {
		after = w.newTag(r)
		return fmt.Sprintf("BEGIN IMMEDIATE; CREATE TABLE log(tag); CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO log VALUES ('%s'); COMMIT", after), after
	}
	switch r.IntN(12) {
	case 0:
		return "PRAGMA journal_mode=" + []string{"wal", "wal", "delete", "truncate", "persist"}[r.IntN(5)], tag
	case 1:
		return "VACUUM", tag
	}
	after = w.newTag(r)
	change := []string{
		fmt.Sprintf("INSERT INTO t(v) VALUES (randomblob(%d))", r.IntN(9000)),
		fmt.Sprintf("INSERT INTO t(v) WITH RECURSIVE s(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM s WHERE x < %d) SELECT randomblob(600) FROM s", 1+r.IntN(60)),
		fmt.Sprintf("UPDATE t SET v = randomblob(700) WHERE id %% %d = 0", 2+r.IntN(20)),
		fmt.Sprintf("DELETE FROM t WHERE id %% %d = 1", 2+r.IntN(6)),
	}[r.IntN(4)]
	return fmt.Sprintf("BEGIN IMMEDIATE; %s; INSERT INTO log VALUES ('%s'); COMMIT", change, after), after
}

func (w *truth) newTag(r *rand.Rand) string {
	tag := fmt.Sprintf("%016x", r.Uint64())
	w.mu.Lock()
	defer w.mu.Unlock()
	w.started[tag] = time.Now()
	return tag
}

// doubt says that there may be unseen contents at a tag. Two nodes may be at one tag.
func (w *truth) doubt(tag string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.partial[tag]++
}

// believe takes one doubt back: all that came of it was seen.
func (w *truth) believe(tag string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.partial[tag]--
}

// tagOf is the last tag in a database.
func tagOf(c *sqlitetest.Conn) (string, error) {
	rows, err := c.Query("SELECT count(*) FROM sqlite_schema WHERE name = 'log'")
	if err != nil || fmt.Sprint(rows) == "[[0]]" {
		return "", err
	}
	rows, err = c.Query("SELECT tag FROM log ORDER BY rowid DESC LIMIT 1")
	if err != nil || len(rows) == 0 {
		return "", err
	}
	return fmt.Sprint(rows[0][0]), nil
}

// look notes the bytes of a node's file; false: not all of the database is in it.
func (w *truth) look(c *sqlitetest.Conn, n *node, tag string) (bool, error) {
	rows, err := c.Query("PRAGMA wal_checkpoint(PASSIVE)")
	if err != nil {
		return false, err
	}
	if r := rows[0]; fmt.Sprint(r[0]) != "0" || fmt.Sprint(r[1]) != fmt.Sprint(r[2]) {
		return false, nil
	}
	size, err := c.Query("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
	if err != nil {
		return false, err
	}
	b, err := os.ReadFile(n.path(proved))
	if err != nil {
		return false, err
	}
	// SQLite may leave a tail behind the database when it was killed while it cut the file.
	end, err := strconv.Atoi(fmt.Sprint(size[0][0]))
	if err != nil || end > len(b) {
		return false, err
	}
	b = b[:end]
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.seen[tag] == nil {
		w.seen[tag] = map[[32]byte]bool{}
	}
	w.seen[tag][sha256.Sum256(b)] = true
	return true, nil
}

// disturbed writes to a node and does something to it meanwhile.
func (w *truth) disturbed(n *node, count int, disturb func()) {
	app := sqlitetest.Start(w.t)
	r := rand.New(rand.NewPCG(w.r.Uint64(), 4))
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- w.write(app, n, count, r, stop) }()
	disturb()
	close(stop)
	app.Kill()
	if err := <-done; err != nil {
		w.t.Logf("a writer ends: %v", err)
	}
}

// written writes to a node that nothing happens to.
func (w *truth) written(n *node, count int) {
	w.t.Helper()
	app := sqlitetest.Start(w.t)
	defer app.Exit()
	eventually(w.t, "the node takes writes", func() (bool, string) {
		err := w.write(app, n, count, rand.New(rand.NewPCG(w.r.Uint64(), 5)), nil)
		return err == nil, fmt.Sprint(err)
	})
}

// check restores up to most moments of every history and compares them. live: nodes write and remove
// meanwhile.
func (w *truth) check(place ship.Target, most int, live bool) {
	w.t.Helper()
	numbers, err := catalog.Histories(w.t.Context(), place.Store, proved)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, number := range numbers {
		h, err := restore.Open(w.t.Context(), place.Store, place.Layout, proved, number)
		if errors.Is(err, restore.ErrNoHistory) || live && errors.Is(err, archive.ErrCorrupt) {
			continue
		}
		if err != nil {
			w.t.Fatal(err)
		}
		moments := h.Moments()
		if !live {
			var levels [archive.LevelSnapshot + 1]int
			for _, o := range h.Objects {
				levels[o.Level]++
			}
			w.t.Logf("history %d: moments %d to %d, %d of them can be given; objects by level: %v", number, moments[0], moments[len(moments)-1], len(moments), levels)
		}
		wanted := []uint64{moments[0], moments[len(moments)-1]}
		for range most {
			wanted = append(wanted, moments[w.r.IntN(len(moments))])
		}
		slices.Sort(wanted)
		var before []string
		for _, n := range slices.Compact(wanted) {
			tags, err := w.checkMoment(h, n)
			// A server may still be at a request to remove objects when the node that sent it has ended. What a node that
			// runs removes is not in the next listing.
			for try := 0; try < 10 && (errors.Is(err, errSkipped) || !live && errors.Is(err, objstore.ErrNotFound)); try++ {
				time.Sleep(200 * time.Millisecond)
				if h, err = restore.Open(w.t.Context(), place.Store, place.Layout, proved, number); err != nil {
					w.t.Fatal(err)
				}
				tags, err = w.checkMoment(h, n)
			}
			if errors.Is(err, objstore.ErrNotFound) && live || errors.Is(err, restore.ErrNoMoment) && !slices.Contains(h.Moments(), n) {
				continue // its time was over
			}
			if err != nil {
				w.t.Fatalf("history %d, moment %d of %d: %v", number, n, len(moments), err)
			}
			if len(tags) < len(before) || !slices.Equal(tags[:len(before)], before) {
				w.t.Fatalf("history %d, moment %d does not descend from the moment before: two histories are mixed", number, n)
			}
			before = tags
		}
	}
}

// atEnd is how many moments of a history are restored at the end of a test, of up to most in a long one.
func (w *truth) atEnd(most int) int {
	if soakFor(w.t) == 0 {
		return most / 3
	}
	return most
}

// errSkipped: a moment was restored without objects that were listed.
var errSkipped = errors.New("objects are damaged or gone")

// checkMoment restores a moment, by its number or by its time, and returns its tags.
func (w *truth) checkMoment(h *restore.History, n uint64) (tags []string, err error) {
	m, err := h.Moment(w.t.Context(), n)
	if err != nil {
		return nil, err
	}
	byTime, err := h.At(w.t.Context(), m.Time.Add(time.Duration(w.r.IntN(1000))*time.Microsecond))
	if err != nil || byTime.N < n || byTime.Time.After(m.Time.Add(time.Millisecond)) {
		return nil, fmt.Errorf("at its time there is %s, %w", byTime, err)
	}
	plan, err := h.Plan(m)
	if err != nil {
		return nil, err
	}
	for _, o := range plan {
		w.levels[o.Level]++
	}
	file := filepath.Join(w.t.TempDir(), "restored.db")
	got, err := h.Restore(w.t.Context(), m, file, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.Remove(file)) }()
	if len(got.Skipped) > 0 {
		return nil, fmt.Errorf("%w: %q", errSkipped, got.Skipped)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	text, err := sqlitetest.TryCLI(file, "PRAGMA integrity_check; SELECT count(*) FROM sqlite_schema WHERE name = 'log';")
	if err != nil || !strings.HasPrefix(text, "ok\n") {
		return nil, fmt.Errorf("%s, %w", text, err)
	}
	if strings.TrimSpace(text) == "ok\n1" {
		if text, err = sqlitetest.TryCLI(file, "SELECT tag FROM log ORDER BY rowid;"); err != nil {
			return nil, err
		}
		tags = strings.Fields(text)
	}
	last := ""
	if len(tags) > 0 {
		last = tags[len(tags)-1]
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	began, known := w.started[last]
	same := w.seen[last][sha256.Sum256(b)]
	switch {
	case !known && last != "":
		return nil, fmt.Errorf("nobody wrote transaction %s", last)
	case began.After(m.Time.Add(time.Millisecond)):
		return nil, fmt.Errorf("transaction %s began at %s, the moment is said to be of %s", last, began, m.Time)
	case same:
		w.identical++
	default:
		if err := w.replay(m, b); err != nil {
			return nil, fmt.Errorf("%s: other bytes than were seen at transaction %s (there may be unseen ones: %v): %w", m, last, w.partial[last] > 0, err)
		}
		w.replayed++
	}
	w.restored++
	return tags, nil
}

// follow has the log of a node known.
func (w *truth) follow(n *node) { w.logs = append(w.logs, [2]string{n.cfg.Data, "log"}) }

// keep copies what a node has of the log, which its next start may cut off. Entries are never written again: they are linked.
func (w *truth) keep(n *node) {
	w.t.Helper()
	dir := filepath.Join(w.t.TempDir(), "kept")
	script := `cp -al "$0" "$1" && rm -f "$1/recent" && if [ -e "$0/recent" ]; then cp -a "$0/recent" "$1/recent"; fi`
	if out, err := exec.CommandContext(w.t.Context(), "sh", "-c", script, n.cfg.Data, dir).CombinedOutput(); err != nil {
		w.t.Fatalf("copy the log of a node: %v: %s", err, out)
	}
	w.logs = append(w.logs, [2]string{dir, fmt.Sprintf("copy %d", len(w.logs))})
}

// replay compares restored bytes with those that a log makes as of the moment. mu is held.
func (w *truth) replay(m restore.Moment, got []byte) error {
	var tried []string
	for _, dir := range slices.Backward(w.logs) {
		file, err := os.CreateTemp(w.t.TempDir(), "replayed-")
		if err != nil {
			return err
		}
		pages, sum, err := verify.Replay(file, dir[0], proved, m.State.TXID, nil)
		if err != nil || sum != m.State.Sum {
			tried = append(tried, fmt.Sprintf("%s: %016x, %v", dir[1], sum, err))
			if err := file.Close(); err != nil {
				return err
			}
			continue
		}
		want, err := os.ReadFile(file.Name())
		if err := errors.Join(err, file.Close()); err != nil {
			return err
		}
		if size := int(pages) * int(m.PageSize); size > len(want) || !bytes.Equal(want[:size], got) {
			return fmt.Errorf("not the %d bytes that the log makes of them (%s), but %d", size, dir[1], len(got))
		}
		return nil
	}
	return fmt.Errorf("no log makes %016x as of %016x: %s", m.State.Sum, m.State.TXID, strings.Join(tried, "; "))
}

// report says what was proved, and that what was to be seen has been seen.
func (w *truth) report(levels ...int) {
	w.t.Logf("%d transactions; %d moments restored, %d of them with bytes that were seen, %d with those that a log makes; objects read by level: %v",
		len(w.started), w.restored, w.identical, w.replayed, w.levels)
	if w.identical < w.restored/3 {
		w.t.Errorf("of %d moments only %d could be compared byte by byte", w.restored, w.identical)
	}
	for _, level := range levels {
		if w.levels[level] == 0 {
			w.t.Errorf("no object of level %d was read: %v", level, w.levels)
		}
	}
}

// proofFlags make an archive busy: moments, levels, snapshots and retention all within seconds.
// In a long test snapshots are so far apart that objects of all levels are made, and stay for a while. Logs are kept
// whole: they are the proof.
func proofFlags(a *archiveAt) []string {
	interval, snapshots := "5ms", "1s"
	if soakFor(a.t) > 0 {
		interval, snapshots = "1ms", "20s"
	}
	return append(slices.Clone(a.set), "-set", "backup.interval="+interval, "-set", "backup.max-requests=10000",
		"-set", "backup.snapshot-interval="+snapshots, "-set", "backup.retention-count=5",
		"-set", "data.retention=24h", "-set", "data.retention-monitor-interval=24h")
}

// target is the place as packages know it.
func (a *archiveAt) target() ship.Target {
	a.t.Helper()
	target := configs.BackupTarget{Type: configs.BackupFile, Path: a.from[1]}
	if strings.HasPrefix(a.from[1], "s3://") {
		_, key, _ := strings.Cut(a.env[0], "=")
		_, secret, _ := strings.Cut(a.env[1], "=")
		target = configs.BackupTarget{Type: configs.BackupS3, URL: a.from[1], Endpoint: a.from[3], AccessKey: key, SecretKey: configs.Secret(secret)}
	}
	var keys *seal.Keys
	for _, s := range a.env {
		if text, ok := strings.CutPrefix(s, "LITEFS_BACKUP_KEY="); ok {
			var err error
			if keys, err = seal.ParseKeys(text); err != nil {
				a.t.Fatal(err)
			}
		}
	}
	place, err := daemon.OpenArchive(target, keys)
	if err != nil {
		a.t.Fatal(err)
	}
	return place
}

// throughFaults makes nodes reach a bucket over a network that a test spoils.
func (a *archiveAt) throughFaults(seed uint64) *faultnet.Proxy {
	i := slices.IndexFunc(a.set, func(s string) bool { return strings.HasPrefix(s, "backup.endpoint=") })
	proxy, err := faultnet.Listen(strings.TrimPrefix(a.set[i], "backup.endpoint=http://"), seed)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() {
		if err := proxy.Close(); err != nil {
			a.t.Error(err)
		}
	})
	a.set[i] = "backup.endpoint=http://" + proxy.Addr()
	return proxy
}

// TestSoakArchiveProof: nodes of a cluster are killed in the middle of writes, uploads, compaction and
// retention, stopped until another one is the primary and then let go on, and told to hand over; the network
// to the bucket cuts, stalls and delays. Restores go on meanwhile. Every moment is what the database was.
func TestSoakArchiveProof(t *testing.T) {
	briefly(t)
	seed := soakSeed(t)
	t.Logf("LITEFS_SEED=%d", seed)
	for name, prove := range map[string]func(*testing.T, uint64, time.Duration){"cluster": archiveProof, "forced": archiveForced} {
		t.Run(name, func(t *testing.T) {
			briefly(t)
			prove(t, seed, soakFor(t)/2)
		})
	}
}

const proofTTL = 3 * time.Second

func archiveProof(t *testing.T, seed uint64, length time.Duration) {
	place, w := archiveBucket(t), newTruth(t, seed)
	network := place.throughFaults(seed)
	c := newCluster(t, proofTTL)
	nodes := []*node{newNode(t, c.lease), newNode(t, c.lease)}
	for _, n := range nodes {
		n.args = proofFlags(place)
		n.start()
		w.follow(n)
		if n == nodes[0] {
			becomesPrimary(n)
		}
	}
	target := place.target()
	end := time.Now().Add(length)
	for round := 0; round < 6 || time.Now().Before(end); round++ {
		i := w.primary(nodes)
		n, other := nodes[i], nodes[1-i]
		op := round // each once, then by chance
		if round >= 6 {
			op = w.r.IntN(8)
		}
		switch op {
		case 0:
			w.written(n, 150)
		case 1: // killed: the other one is the primary
			// A node that has nothing of the last reign does not take over.
			w.written(n, 3)
			samePosition(n, other, proved)
			w.disturbed(n, 1000, func() {
				w.pause(1500)
				n.killAll()
			})
			becomesPrimary(other)
			w.written(other, 10)
			w.keep(n)
			n.start()
		case 2: // cut off, as by a network, and back when another one writes
			w.written(n, 20)
			samePosition(n, other, proved)
			pid := n.proc.PID()
			signal(t, -pid, syscall.SIGSTOP)
			becomesPrimary(other)
			w.written(other, 20)
			w.keep(n)
			signal(t, -pid, syscall.SIGCONT)
			w.written(other, 20)
		case 3:
			w.disturbed(n, 1000, func() {
				w.pause(500)
				if err := other.move("/promote"); err != nil {
					t.Logf("promote: %v", err)
				}
			})
		case 4: // the network to the bucket is bad
			storm := faultnet.Faults{Up: faultnet.Direction{Cut: 10 + w.r.IntN(50)}, Down: faultnet.Direction{Cut: 10 + w.r.IntN(50)}}
			switch w.r.IntN(3) {
			case 0:
				storm.Down.Delay = 100 * time.Millisecond
			case 1:
				storm.Refuse = true
			}
			network.Set(storm)
			w.written(n, 60)
			network.Set(faultnet.Faults{})
			network.Cut()
		case 5: // killed, and the first one back
			w.disturbed(n, 1000, func() {
				w.pause(700)
				n.killAll()
			})
			w.keep(n)
			n.start()
		default:
			w.disturbed(n, 300, func() {
				place.killRestore(w.r)
				w.check(target, 20, true)
			})
		}
	}
	n := nodes[w.primary(nodes)]
	w.written(n, 20)
	place.archived(n, proved)
	for _, n := range nodes {
		n.stop()
	}
	w.check(target, w.atEnd(60), false)
	if soakFor(t) > 0 {
		w.report(0, 1, 2, archive.LevelTop, archive.LevelSnapshot)
		return
	}
	w.report(0, 1, archive.LevelSnapshot)
}

// primary waits until a node is the primary, and returns which: of two, the one with the later epoch.
func (w *truth) primary(nodes []*node) (best int) {
	w.t.Helper()
	eventually(w.t, "a node is the primary", func() (bool, string) {
		var epoch uint64
		for i, n := range nodes {
			if info, ok := n.info(); ok && info.IsPrimary && info.Epoch > epoch {
				best, epoch = i, info.Epoch
			}
		}
		return epoch > 0, "no node is"
	})
	return best
}

// pause waits for up to ms milliseconds.
func (w *truth) pause(ms int) { time.Sleep(time.Duration(50+w.r.IntN(ms)) * time.Millisecond) }

func signal(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatal(err)
	}
}

// archiveForced has two nodes that both take themselves for the primary of the same database, under the same
// epoch, and write to the same archive at the same time. Again and again one of them begins anew with what
// the other one has at that moment. The archive is encrypted.
func archiveForced(t *testing.T, seed uint64, length time.Duration) {
	place, w := archiveDir(t).encrypted(archiveKey), newTruth(t, seed)
	nodes := []*node{newNode(t), newNode(t)}
	target := place.target()
	for _, n := range nodes {
		n.args = proofFlags(place)
		w.follow(n)
	}
	nodes[0].start()
	w.written(nodes[0], 5)
	end := time.Now().Add(length)
	for round := 0; round < 2 || time.Now().Before(end); round++ {
		from := round % 2
		a, b := nodes[from], nodes[1-from]
		if round > 0 {
			b.killAll()
			w.keep(b)
			if err := os.RemoveAll(b.cfg.Data); err != nil {
				t.Fatal(err)
			}
		}
		w.disturbed(a, 1000, func() {
			w.pause(300)
			a.killAll()
		})
		if out, err := exec.CommandContext(context.Background(), "cp", "-a", a.cfg.Data, b.cfg.Data).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		a.start()
		b.start()
		w.disturbed(a, 60, func() {
			w.disturbed(b, 60, func() {
				w.pause(1000)
				place.killRestore(w.r)
				w.check(target, 5, true)
			})
		})
		for _, n := range nodes {
			w.written(n, 10)
		}
	}
	for _, n := range nodes {
		place.archived(n, proved)
	}
	for _, n := range nodes {
		n.stop()
	}
	w.check(target, w.atEnd(30), false)
	w.report(0, archive.LevelSnapshot)
}
