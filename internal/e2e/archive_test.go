package e2e

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/leaseserver"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// archiveAt is a place for archives: how a node writes to it, how the commands and Litestream read it.
type archiveAt struct {
	t          *testing.T
	set        []string // flags of litefs mount
	from       []string // flags of litefs restore
	env        []string
	litestream func(database string, history int) []string
}

func archiveDir(t *testing.T) *archiveAt {
	dir := filepath.Join(t.TempDir(), "archive")
	return &archiveAt{
		t: t, set: []string{"-set", "backup.type=file", "-set", "backup.path=" + dir}, from: []string{"-from", dir},
		litestream: func(database string, history int) []string {
			return []string{fmt.Sprintf("file://%s/%s/history-%08d", dir, database, history)}
		},
	}
}

func archiveBucket(t *testing.T) *archiveAt {
	server, err := leaseserver.S3(t.Context(), leaseserver.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Kill(); err != nil {
			t.Error(err)
		}
	})
	return bucketAt(t, "s3://"+leaseserver.S3Bucket+"/some/where", server.URL)
}

// bucketAt is a bucket of a server that runs.
func bucketAt(t *testing.T, url, endpoint string) *archiveAt {
	return &archiveAt{
		t: t,
		set: []string{
			"-set", "backup.type=s3", "-set", "backup.url=" + url, "-set", "backup.endpoint=" + endpoint,
			"-set", "backup.access-key=" + leaseserver.S3AccessKey, "-set", "backup.secret-key=" + leaseserver.S3SecretKey,
		},
		from: []string{"-from", url, "-endpoint", endpoint},
		env:  []string{"AWS_ACCESS_KEY_ID=" + leaseserver.S3AccessKey, "AWS_SECRET_ACCESS_KEY=" + leaseserver.S3SecretKey},
		litestream: func(database string, history int) []string {
			file := filepath.Join(t.TempDir(), "litestream.yml")
			text := fmt.Sprintf("dbs:\n  - path: /none\n    replica:\n      type: s3\n      bucket: %s\n      path: some/where/%s/history-%08d\n      endpoint: %s\n      region: us-east-1\n      force-path-style: true\n",
				leaseserver.S3Bucket, database, history, endpoint)
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			return []string{"-config", file, "/none"}
		},
	}
}

// environ is the environment of commands that use the place: with its credential.
func (a *archiveAt) environ() []string {
	// Litestream cannot add certificates to the client that it gives to AWS's SDK.
	return slices.DeleteFunc(append(os.Environ(), a.env...), func(s string) bool { return strings.HasPrefix(s, "AWS_CA_BUNDLE=") })
}

// run runs a command with the place's credential.
func (a *archiveAt) run(name string, args ...string) (string, error) {
	a.t.Helper()
	cmd := exec.CommandContext(timeout(a.t), name, args...)
	cmd.Env = a.environ()
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// history is what litefs history says.
type history struct {
	Database string
	History  int
	Moments  int
	Objects  int
	Snapshot string
	Dropped  string
	Last     struct {
		TXID, Checksum string
		Moment         int
	}
}

func (a *archiveAt) histories(database string) ([]history, error) {
	out, err := a.run(binary(a.t), append([]string{"history", "-json", "-name", database}, a.from...)...)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	var all []history
	for dec := json.NewDecoder(strings.NewReader(out)); dec.More(); {
		var h history
		if err := dec.Decode(&h); err != nil {
			return nil, err
		}
		all = append(all, h)
	}
	return all, nil
}

// mark is a state of a database that the archive must be able to give.
type mark struct {
	pos  string
	at   time.Time
	dump string
}

// posOf is a database's position on a node, "" when it does not tell.
func posOf(n *node, database string) string {
	if len(n.cfg.Lease) == 0 { // no lease, no secret
		pos, err := n.pos(database)
		if err != nil || pos == "none" {
			return ""
		}
		return pos
	}
	info, _ := n.info()
	for _, db := range info.Databases {
		if db.Name == database {
			return db.TXID + "/" + db.Checksum
		}
	}
	return ""
}

// archived waits until a node's database is in the archive and returns its state.
func (a *archiveAt) archived(n *node, database string) mark {
	a.t.Helper()
	var pos string
	eventually(a.t, "archived "+database, func() (bool, string) {
		if pos = posOf(n, database); pos == "" {
			return false, "the node does not know it"
		}
		all, err := a.histories(database)
		if err != nil {
			return false, err.Error()
		}
		for _, h := range all {
			if h.Last.TXID+"/"+h.Last.Checksum == pos {
				return true, ""
			}
		}
		return false, fmt.Sprintf("archive at %+v, database at %s", all, pos)
	})
	// Times of moments are whole milliseconds, and what comes next is after this one.
	time.Sleep(5 * time.Millisecond)
	at := time.Now()
	time.Sleep(5 * time.Millisecond)
	return mark{pos, at, sqlitetest.CLI(a.t, n.path(database), ".dump")}
}

// restored restores a state and compares it.
func (a *archiveAt) restored(m mark, database string, flags ...string) string {
	a.t.Helper()
	file := filepath.Join(a.t.TempDir(), "restored.db")
	args := append([]string{"restore", "-json", "-name", database, "-integrity-check", "full"}, a.from...)
	out, err := a.run(binary(a.t), append(append(args, flags...), file)...)
	if err != nil {
		a.t.Fatalf("restore %s %q: %v: %s", database, flags, err, out)
	}
	var got struct{ TXID, Checksum string }
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.TXID+"/"+got.Checksum != m.pos {
		a.t.Errorf("restore %s %q: %s, %v, want %s", database, flags, out, err, m.pos)
	}
	if dump := sqlitetest.CLI(a.t, file, ".dump"); dump != m.dump {
		a.t.Errorf("restore %s %q: another content", database, flags)
	}
	return file
}

// litestreamRestored lets a real Litestream restore a state, and compares the bytes.
func (a *archiveAt) litestreamRestored(version, want, database string, history int, flags ...string) {
	a.t.Helper()
	file := filepath.Join(a.t.TempDir(), "litestream.db")
	args := append([]string{"restore", "-o", file}, flags...)
	out, err := a.run(litestream(a.t, version), append(args, a.litestream(database, history)...)...)
	if err != nil {
		a.t.Fatalf("litestream %s restore %s %q: %v: %s", version, database, flags, err, out)
	}
	if !bytes.Equal(readFile(a.t, file), readFile(a.t, want)) {
		a.t.Errorf("litestream %s restore %s %q: not the same bytes", version, database, flags)
	}
}

// litestream is a real one, built once.
func litestream(t *testing.T, version string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "../../.ci/litestream", version).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// litestreamVersion is the one of CI; another can be asked for.
func litestreamVersion() string { return cmp.Or(os.Getenv("LITEFS_LITESTREAM"), "v0.5.15") }

// TestArchive: what the primary archives is restored by litefs and by Litestream, as it is now and as it
// was: after growth, after a VACUUM that shrinks, with pages of several sizes, from a directory and from a
// bucket.
func TestArchive(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name      string
		place     func(*testing.T) *archiveAt
		databases map[string][]string
	}{
		{"directory", archiveDir, map[string][]string{"wal.db": {"journal_mode=WAL"}, "dir/old.db": {"page_size=1024", "journal_mode=DELETE"}}},
		{"bucket", archiveBucket, map[string][]string{"big.db": {"page_size=65536", "journal_mode=WAL"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := tt.place(t)
			n := newNode(t)
			n.args = append(a.set, "-set", "backup.interval=100ms", "-set", "backup.max-requests=1000")
			n.start()
			for database, pragmas := range tt.databases {
				testArchiveOf(t, a, n, database, pragmas)
			}
			if tt.name == "directory" {
				// Pages of another size are another history, and the former one stays.
				c := sqlitetest.Open(t, n.path("dir/old.db"))
				c.MustExec("PRAGMA page_size=4096")
				c.MustExec("VACUUM")
				c.Close()
				a.restored(a.archived(n, "dir/old.db"), "dir/old.db")
				if all, err := a.histories("dir/old.db"); err != nil || len(all) != 2 {
					t.Errorf("histories: %+v, %v", all, err)
				}
			}
			n.stop()
			n.verified()
		})
	}
}

func testArchiveOf(t *testing.T, a *archiveAt, n *node, database string, pragmas []string) {
	if err := os.MkdirAll(filepath.Dir(n.path(database)), 0o755); err != nil {
		t.Fatal(err)
	}
	app := sqlitetest.Start(t)
	defer app.Exit()
	c := app.Open(n.path(database), pragmas...)
	rows := func(n int) string {
		return fmt.Sprintf("INSERT INTO t(v) WITH RECURSIVE s(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM s WHERE x < %d) SELECT randomblob(900) FROM s", n)
	}
	var marks []mark
	for _, sql := range []string{
		"CREATE TABLE t(id INTEGER PRIMARY KEY, v)",
		rows(500),
		"DELETE FROM t WHERE id > 20",
		"VACUUM",
		"", // Litestream takes no time that is later than the last upload, in whole seconds
		rows(300),
	} {
		if sql == "" {
			time.Sleep(1100 * time.Millisecond)
			continue
		}
		c.MustExec(sql)
		settle(c)
		marks = append(marks, a.archived(n, database))
	}
	for i, m := range marks {
		at := m.at.UTC().Format(time.RFC3339Nano)
		switch i {
		case 1, len(marks) - 2: // the largest, and the shrunk one
			file := a.restored(m, database, "-timestamp", at)
			a.litestreamRestored(litestreamVersion(), file, database, 1, "-timestamp", at)
		case len(marks) - 1:
			a.litestreamRestored(litestreamVersion(), a.restored(m, database), database, 1)
		default:
			txid, _, _ := strings.Cut(m.pos, "/")
			a.restored(m, database, "-txid", txid)
		}
	}
}

// TestArchiveFailover: the archive goes on over failovers, by whoever is the primary, as one history; every
// moment of both nodes' reigns is there.
func TestArchiveFailover(t *testing.T) {
	t.Parallel()
	place, c := archiveDir(t), newCluster(t, proofTTL)
	nodes := []*node{newNode(t, c.lease), newNode(t, c.lease)}
	for _, n := range nodes {
		n.args = append(place.set, "-set", "backup.interval=100ms", "-set", "backup.max-requests=1000")
		n.start()
		if n == nodes[0] {
			becomesPrimary(n)
		}
	}
	var marks []mark
	write := func(i int, sql string) {
		t.Helper()
		app := sqlitetest.Start(t)
		defer app.Exit()
		conn := openPatient(app, nodes[i].path("app.db"), "journal_mode=WAL")
		conn.MustExec(sql)
		settle(conn)
		marks = append(marks, place.archived(nodes[i], "app.db"))
		samePosition(nodes[0], nodes[1], "app.db")
	}
	write(0, "CREATE TABLE t(v)")
	write(0, "INSERT INTO t VALUES (randomblob(10000))")
	nodes[0].killAll()
	becomesPrimary(nodes[1])
	nodes[0].start()
	write(1, "INSERT INTO t VALUES (randomblob(20000))")
	if err := nodes[0].move("/promote"); err != nil {
		t.Fatal(err)
	}
	becomesPrimary(nodes[0])
	write(0, "DELETE FROM t")
	write(0, "INSERT INTO t VALUES (1), (2)")
	for _, m := range marks {
		txid, _, _ := strings.Cut(m.pos, "/")
		place.restored(m, "app.db", "-txid", txid)
	}
	place.litestreamRestored(litestreamVersion(), place.restored(marks[len(marks)-1], "app.db"), "app.db", 1)
	if all, err := place.histories("app.db"); err != nil || len(all) != 1 {
		t.Errorf("histories: %+v, %v", all, err)
	}
}

// TestArchiveForked: two nodes with one data directory's content both take themselves for the primary, in
// the same epoch, and write to one archive. Each finds all of its own in it.
func TestArchiveForked(t *testing.T) {
	t.Parallel()
	place := archiveDir(t)
	start := func(n *node) {
		n.args = append(place.set, "-set", "backup.interval=50ms", "-set", "backup.max-requests=1000")
		n.start()
	}
	a, b := newNode(t), newNode(t)
	start(a)
	app := sqlitetest.Start(t)
	conn := app.Open(a.path("app.db"), "journal_mode=WAL")
	conn.MustExec("CREATE TABLE t(v)")
	settle(conn)
	app.Exit()
	place.archived(a, "app.db")
	a.stop()
	if out, err := exec.Command("cp", "-a", a.cfg.Data, b.cfg.Data).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	start(a)
	start(b)
	conns := map[*node]*sqlitetest.Conn{}
	for _, n := range []*node{a, b} {
		app := sqlitetest.Start(t)
		defer app.Exit()
		conns[n] = app.Open(n.path("app.db"))
	}
	var marks []mark
	for range 6 {
		for _, n := range []*node{a, b} {
			conns[n].MustExec("INSERT INTO t VALUES (randomblob(1000))")
			settle(conns[n])
		}
		for _, n := range []*node{a, b} {
			marks = append(marks, place.archived(n, "app.db"))
		}
	}
	all, err := place.histories("app.db")
	if err != nil || len(all) != 2 {
		t.Fatalf("histories: %+v, %v", all, err)
	}
	for _, m := range marks {
		found := false
		for _, h := range all {
			txid, _, _ := strings.Cut(m.pos, "/")
			file := filepath.Join(t.TempDir(), "restored.db")
			args := append([]string{"restore", "-json", "-name", "app.db", "-history", fmt.Sprint(h.History), "-txid", txid}, place.from...)
			if out, err := place.run(binary(t), append(args, file)...); err == nil {
				found = found || sqlitetest.CLI(t, file, ".dump") == m.dump && strings.Contains(out, m.pos[len(txid)+1:])
			}
		}
		if !found {
			t.Errorf("no history has %s", m.pos)
		}
	}
}

// TestSoakArchiveKill: a primary that is killed again and again, in the middle of whatever its archive is
// at (uploads, objects put together, snapshots, retention), loses no moment that it had archived, and
// leaves nothing half-written that is taken for whole. A restore that is killed leaves no file.
func TestSoakArchiveKill(t *testing.T) {
	briefly(t)
	t.Run("directory", func(t *testing.T) { archiveKill(t, archiveDir(t), soakFor(t)/2) })
	if soakFor(t) > 0 {
		t.Run("bucket", func(t *testing.T) { archiveKill(t, archiveBucket(t), soakFor(t)/2) })
	}
}

func archiveKill(t *testing.T, a *archiveAt, length time.Duration) {
	n := newNode(t)
	n.args = append(a.set, "-set", "backup.interval=20ms", "-set", "backup.max-requests=1000",
		"-set", "backup.snapshot-interval=700ms", "-set", "backup.retention-count=3")
	seed := soakSeed(t)
	t.Logf("LITEFS_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	rows := 0
	for round, end := 0, time.Now().Add(length); round == 0 || time.Now().Before(end); round++ {
		n.start()
		app := sqlitetest.Start(t)
		c := openPatient(app, n.path("app.db"), "journal_mode=WAL")
		if rows == 0 {
			c.MustExec("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v)")
		}
		for stop := time.Now().Add(time.Duration(500+r.IntN(1500)) * time.Millisecond); time.Now().Before(stop); {
			c.MustExec("INSERT INTO t(v) VALUES (randomblob(?))", r.IntN(5000))
			rows++
			if rows%50 == 0 {
				c.MustExec("UPDATE t SET v = randomblob(100) WHERE id % 3 = ?", rows%3)
			}
			time.Sleep(time.Duration(r.IntN(5)) * time.Millisecond)
		}
		app.Kill()
		n.killAll()
		a.killRestore(r)
	}
	n.start()
	n.stop() // ships the rest
	all, err := a.histories("app.db")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d rows, histories %+v", rows, all)
	if len(all) != 1 {
		t.Errorf("%d histories, want 1: the log of a killed node leads on from its archive", len(all))
	}
	moments := 0
	for _, h := range all {
		last := int64(-1)
		for m := 1; m <= h.Last.Moment; m++ {
			if m < h.Last.Moment-100 && m%50 != 0 {
				continue
			}
			file := filepath.Join(t.TempDir(), "restored.db")
			args := append([]string{"restore", "-name", "app.db", "-history", fmt.Sprint(h.History), "-moment", fmt.Sprint(m), "-integrity-check", "full"}, a.from...)
			out, err := a.run(binary(t), append(args, file)...)
			if strings.Contains(out, "no such moment") {
				continue // its time was over
			}
			if err != nil || strings.Contains(out, "damaged") {
				t.Fatalf("history %d, moment %d: %v %s", h.History, m, err, out)
			}
			if last < 0 && strings.TrimSpace(sqlitetest.CLI(t, file, "SELECT count(*) FROM sqlite_schema;")) == "0" {
				moments++ // archived between the first transaction, which sets the journal mode, and that of the table
				continue
			}
			got := sqlitetest.CLI(t, file, "SELECT count(*) || ' ' || ifnull(max(id), 0) FROM t;")
			var count, most int64
			if _, err := fmt.Sscan(got, &count, &most); err != nil || count != most || count < last {
				t.Fatalf("history %d, moment %d: %s rows, %v, before %d", h.History, m, got, err, last)
			}
			last = count
			moments++
		}
	}
	t.Logf("%d moments restored", moments)
}

// killRestore kills a restore at some moment: there is no file then, or a whole one.
func (a *archiveAt) killRestore(r *rand.Rand) {
	file := filepath.Join(a.t.TempDir(), "restored.db")
	cmd := exec.Command(binary(a.t), append(append([]string{"restore", "-name", "app.db"}, a.from...), file)...)
	cmd.Env = append(os.Environ(), a.env...)
	if err := cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	time.Sleep(time.Duration(r.IntN(60)) * time.Millisecond)
	_ = cmd.Process.Kill() // it may have ended
	_ = cmd.Wait()
	if _, err := os.Stat(file); err == nil {
		sqlitetest.CheckIntegrity(a.t, file)
	}
}
