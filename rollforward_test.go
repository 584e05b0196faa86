package litefs

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// tailsOf is a Client that reaches one follower, in this process.
type tailsOf struct {
	follower *Store
	fail     int // so many requests get no answer
	cut      int // the first answer ends after so many entries; 0: never
}

func (c *tailsOf) Stream(context.Context, string, map[uint32]Pos) (StreamReader, error) {
	return nil, errors.New("no streams")
}

func (c *tailsOf) Tails(ctx context.Context, url string, after map[uint32]Pos, fn func(Tail) error) error {
	if c.fail > 0 {
		c.fail--
		return errors.New("connection refused")
	}
	n := 0
	for id, pos := range after {
		db := c.follower.DB(id)
		for db != nil {
			if n++; c.cut > 0 && n > c.cut {
				c.cut = 0
				return io.ErrUnexpectedEOF
			}
			rd, err := db.NextLTX(pos)
			if errors.Is(err, io.EOF) {
				break
			}
			t := Tail{DBID: id, At: db.Pos(), LTX: rd}
			if err == nil {
				pos = rd.Pos()
			} else if !errors.Is(err, ErrSnapshotNeeded) {
				return err
			}
			if err := fn(t); err != nil {
				return err
			}
			if t.LTX == nil {
				break
			}
			if err := rd.Close(); err != nil {
				return err
			}
		}
	}
	return nil
}

func rollsForwardFrom(c *tailsOf) nodeOption {
	return func(s *Store) {
		s.Client, s.RollForwardTimeout = c, time.Minute
	}
}

// A primary whose power was cut gets from a follower what it lost, whatever of
// log, files and checksums the cut has left, before anything else is made of it.
func TestRollForwardFromFollower(t *testing.T) {
	p := openNode(t, filepath.Join(t.TempDir(), "primary"))
	c := sqlitetest.Open(t, p.path("app.db"), "journal_mode=wal", "wal_autocheckpoint=0")
	c.MustExec(createT)
	p.adopt("app.db")
	if err := p.store.RememberReplica("n2", "http://127.0.0.1:1", "127.0.0.1:2"); err != nil {
		t.Fatal(err)
	}
	f := openNode(t, filepath.Join(t.TempDir(), "follower"), asReplica)
	p.rows("app.db", c, 5)
	f.follow(p, "app.db")
	early := p.crash()
	p.rows("app.db", c, 7)
	f.follow(p, "app.db")
	later, want := p.crash(), f.db("app.db").Pos()
	p.rows("app.db", c, 3)
	latest := p.crash()
	r := newReader(t)

	for _, tt := range []struct {
		name   string
		dir    func(*testing.T) string
		boot   string
		client tailsOf
		rows   string
		txid   uint64 // 0: that of the follower
		rolled uint64
		epoch  uint64
	}{
		{"everything is older", same(early), boot2, tailsOf{}, "12", 0, 7, 2},
		{"the log is older", mixed(later, early, ltxDir), boot2, tailsOf{}, "12", 0, 7, 2},
		{"log and checksums are older", mixed(later, early, ltxDir, checksums), boot2, tailsOf{}, "12", 0, 7, 2},
		{"the files are older", mixed(later, early, files), boot2, tailsOf{}, "12", 0, 0, 2},
		{"log and files are older", mixed(later, early, ltxDir, files), boot2, tailsOf{}, "12", 0, 7, 2},
		{"the write-ahead log is gone", then(mixed(later, early, ltxDir), func(t *testing.T, dir string) { removeFile(t, inFiles(dir, "app.db-wal")) }), boot2, tailsOf{}, "12", 0, 7, 2},
		{"the write-ahead log goes further", mixed(latest, early, ltxDir), boot2, tailsOf{}, "15", want.TXID + 3, 7, 2},
		{"it answers the second time", same(early), boot2, tailsOf{fail: 1}, "12", 0, 7, 2},
		{"the answer is cut", same(early), boot2, tailsOf{cut: 3}, "12", 0, 7, 2},
		{"only the process died", same(early), boot1, tailsOf{}, "5", want.TXID - 7, 0, 1},
		{"nothing was lost", same(latest), boot2, tailsOf{}, "15", want.TXID + 3, 0, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := &reader{t: t, app: r.app}
			tt.client.follower = f.store
			n := openNode(t, tt.dir(t), onBoot(tt.boot), rollsForwardFrom(&tt.client))
			if got := r.value(n.path("app.db"), "SELECT count(*) FROM t"); got != tt.rows {
				t.Errorf("%s rows, want %s", got, tt.rows)
			}
			pos := n.db("app.db").Pos()
			if tt.txid == 0 && pos != want || tt.txid != 0 && pos.TXID < tt.txid-2 {
				t.Errorf("position %s, the follower is at %s", pos, want)
			}
			if got := n.store.Stats().RolledForward.Load(); got != tt.rolled {
				t.Errorf("%d transactions came back, want %d", got, tt.rolled)
			}
			if got := n.store.Epoch(); got != tt.epoch {
				t.Errorf("epoch %d, want %d", got, tt.epoch)
			}
			n.mustAgree(r, "app.db")
			n.mustGoOn(r, "app.db")
		})
	}
}

// A primary that cannot ask its follower starts without it, in a new epoch, and
// the follower's transactions are known for what they are.
func TestRollForwardGivesUp(t *testing.T) {
	p := openNode(t, filepath.Join(t.TempDir(), "primary"))
	c := sqlitetest.Open(t, p.path("app.db"), "journal_mode=wal", "wal_autocheckpoint=0")
	c.MustExec(createT)
	p.adopt("app.db")
	if err := p.store.RememberReplica("n2", "http://127.0.0.1:1", "127.0.0.1:2"); err != nil {
		t.Fatal(err)
	}
	p.rows("app.db", c, 2)
	f := openNode(t, filepath.Join(t.TempDir(), "follower"), asReplica)
	f.follow(p, "app.db")
	early := p.crash()
	common := p.db("app.db").TXID()
	p.rows("app.db", c, 4)
	f.follow(p, "app.db")

	dir := mix(t, early, early)
	n := openNode(t, dir, onBoot(boot2), func(s *Store) {
		s.Client, s.RollForwardTimeout = &tailsOf{fail: 1 << 30}, time.Millisecond
	})
	db := n.db("app.db")
	if got := db.TXID(); got != common {
		t.Fatalf("TXID %d, want %d", got, common)
	}
	log := f.db("app.db").logPositions()
	if rel, at := db.Locate(log); rel != RelationForked || at != common {
		t.Errorf("before anything is written: %s after %d, want forked after %d", rel, at, common)
	}
	w := sqlitetest.Open(t, n.path("app.db"))
	n.rows("app.db", w, 6)
	if rel, at := db.Locate(log); rel != RelationForked || at != common {
		t.Errorf("after other transactions: %s after %d, want forked after %d", rel, at, common)
	}
	// The entries around the fork leave the log: the epochs still tell.
	if _, _, err := db.txlog.Retain(time.Now(), ltxlog.Retention{MaxBytes: 1}); err != nil {
		t.Fatal(err)
	}
	if rel, _ := db.Locate(log); rel != RelationForked {
		t.Errorf("when the log does not reach back: %s, want forked", rel)
	}
	if rel, _ := db.Locate(log[len(log)-2:]); rel != RelationSame {
		t.Errorf("a node that is merely old: %s, want the same history", rel)
	}
	kept, err := f.db("app.db").KeepTail(t.Context(), common, "forked")
	if err != nil || kept.First != common+1 || kept.Last != common+4 {
		t.Errorf("kept %+v, %v", kept, err)
	}
}

// A start that fails, or a stop that is no clean one, leaves what the last run
// has said of the machine's boot.
func TestPowerCutIsRemembered(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	n := openNode(t, dir)
	crashed := n.crash()
	n.close()
	for _, tt := range []struct {
		name, dir, boot string
		cut             bool
	}{
		{"clean stop", dir, boot2, false},
		{"killed", crashed, boot1, false},
		{"power cut", crashed, boot2, true},
	} {
		s := NewStore(tt.dir)
		s.bootID = tt.boot
		if cut, err := s.powerCut(); err != nil || cut != tt.cut {
			t.Errorf("%s: power cut: %t, %v", tt.name, cut, err)
		}
	}
	again := mix(t, crashed, crashed)
	if err := os.WriteFile(filepath.Join(again, "role"), []byte("what?\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := tryOpenNode(t, again, onBoot(boot2)); err == nil {
		t.Fatal("a store opens without a role")
	}
	s := NewStore(again)
	s.bootID = boot2
	if cut, err := s.powerCut(); err != nil || !cut {
		t.Errorf("after a start that failed: power cut: %t, %v", cut, err)
	}
}

func TestReplicaURL(t *testing.T) {
	for _, tt := range []struct{ told, remote, want string }{
		{"http://127.0.0.1:20202", "127.0.0.1:5000", "http://127.0.0.1:20202"},
		{"http://localhost:20202", "[::1]:5000", "http://localhost:20202"},
		{"http://localhost:20202", "10.0.0.7:5000", "http://10.0.0.7:20202"},
		{"https://127.0.0.1:20202", "[::ffff:10.0.0.7]:5000", "https://10.0.0.7:20202"},
		{"http://[::1]:20202", "[fd00::7]:5000", "http://[fd00::7]:20202"},
		{"http://db2.lan:20202", "10.0.0.7:5000", "http://db2.lan:20202"},
		{"http://db2.lan:20202/?x", "10.0.0.7:5000", ""},
		{"file:///etc/passwd", "10.0.0.7:5000", ""},
		{"http://u:p@db2:1", "10.0.0.7:5000", ""},
		{"http://" + strings.Repeat("a", 2000), "10.0.0.7:5000", ""},
		{"", "10.0.0.7:5000", ""},
	} {
		got, err := replicaURL(tt.told, tt.remote)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%s from %s: %q, %v, want %q", tt.told, tt.remote, got, err, tt.want)
		}
	}
}

func TestKnownReplicas(t *testing.T) {
	path := filepath.Join(t.TempDir(), "replicas")
	var k knownReplicas
	if err := k.open(path); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, r := range []struct {
		id, url string
		age     time.Duration
	}{
		{"old", "http://a:1", 8 * 24 * time.Hour},
		{"a", "http://a:1", 50 * time.Hour}, // the same place, another data directory
		{"b", "http://b:1", 40 * time.Hour},
		{"b", "http://b:2", 30 * time.Hour}, // moved
		{"c", "http://c:1", 20 * time.Hour},
	} {
		if err := k.note(r.id, r.url, now.Add(-r.age)); err != nil {
			t.Fatal(err)
		}
	}
	var again knownReplicas
	if err := again.open(path); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range again.all(now) {
		got = append(got, r.NodeID+" "+r.URL)
	}
	if strings.Join(got, ", ") != "c http://c:1, b http://b:2, a http://a:1" {
		t.Errorf("got %v", got)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := again.open(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("damaged: %v", err)
	}
}

func TestEpochsLocate(t *testing.T) {
	entry := func(epoch, lo, hi, pre, post uint64) ltxlog.Entry {
		return ltxlog.Entry{Epoch: epoch, Min: lo, Max: hi, Pre: pre, Post: post}
	}
	at := func(epoch, txid, sum uint64) LogPos { return LogPos{epoch, Pos{txid, sum}} }
	// Epoch 1 wrote 1-10, 3 wrote 11-20, 4 from 21 on; the log has 16-25.
	list := epochs{{1, 1}, {3, 11}, {4, 21}}
	log := []ltxlog.Entry{entry(3, 16, 18, 115, 118), entry(3, 19, 20, 118, 120), entry(4, 21, 25, 120, 125)}
	for _, tt := range []struct {
		name   string
		list   epochs
		theirs []LogPos
		want   Relation
		common uint64
	}{
		{"nothing there", list, nil, RelationSame, 0},
		{"at the head", list, []LogPos{at(4, 25, 125)}, RelationSame, 0},
		{"on the log", list, []LogPos{at(3, 18, 118)}, RelationSame, 0},
		{"before its first entry", list, []LogPos{at(3, 15, 115)}, RelationSame, 0},
		{"inside a merged entry", list, []LogPos{at(3, 17, 117)}, RelationSame, 0},
		{"older than the log", list, []LogPos{at(1, 9, 109)}, RelationSame, 0},
		{"other bytes on the log", list, []LogPos{at(3, 20, 999), at(3, 19, 998), at(3, 18, 118)}, RelationForked, 18},
		{"ahead in this epoch", list, []LogPos{at(4, 26, 126), at(4, 25, 125)}, RelationForked, 25},
		{"ahead in an older epoch", list, []LogPos{at(3, 23, 999), at(3, 20, 120)}, RelationForked, 20},
		{"beyond an epoch that the log forgot", list, []LogPos{at(1, 12, 999), at(1, 11, 998)}, RelationForked, 0},
		{"an epoch that never wrote here", list, []LogPos{at(2, 12, 999), at(1, 10, 110)}, RelationForked, 10},
		{"an epoch from before the list", epochs{{4, 21}}, []LogPos{at(1, 12, 999)}, RelationUnknown, 0},
		{"no list", nil, []LogPos{at(1, 9, 109)}, RelationUnknown, 0},
	} {
		if got, common := tt.list.locate(tt.theirs, log); got != tt.want || common != tt.common {
			t.Errorf("%s: %s after %d, want %s after %d", tt.name, got, common, tt.want, tt.common)
		}
	}
	// Entries that follow extend the list; one that hides what was before begins it anew.
	got := epochs(nil).with(entry(1, 1, 1, 0, 1), true).with(entry(1, 2, 2, 1, 2), true).with(entry(5, 3, 4, 2, 4), true)
	if len(got) != 2 || got[1] != (epochStart{5, 3}) {
		t.Errorf("followed: %v", got)
	}
	if got = got.with(entry(5, 1, 9, 0, 9), false); len(got) != 1 || got[0] != (epochStart{5, 9}) {
		t.Errorf("begun anew: %v", got)
	}
	for _, bad := range []string{"x", "2 1\n1 5\n", "1 5\n2 4\n"} {
		if _, err := parseEpochs(bad); err == nil {
			t.Errorf("%q is a list of epochs", bad)
		}
	}
}
