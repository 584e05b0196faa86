package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/leaseserver"
	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// archiveLevel makes commits of all databases wait for the archive.
func archiveLevel(timeout string) option {
	return func(c *childnode.Config) {
		c.Durability = []string{fmt.Sprintf(`{match: "*", level: archive, timeout: %s}`, timeout)}
	}
}

// start starts a node that archives nothing in time but what a commit waits for.
func (a *archiveAt) start(options ...option) *node {
	return startNode(a.t, append(options, func(c *childnode.Config) {
		c.Backup = append(a.section(), "interval: 1h")
	})...)
}

// section is the section backup of a configuration.
func (a *archiveAt) section() (lines []string) {
	for _, flag := range a.set {
		if key, ok := strings.CutPrefix(flag, "backup."); ok {
			lines = append(lines, strings.Replace(key, "=", ": ", 1))
		}
	}
	return lines
}

// badBucket is an S3 server behind a proxy that does wrong to what is put.
type badBucket struct {
	*archiveAt
	server *leaseserver.Server
	fault  atomic.Pointer[string] // see the switch
	puts   atomic.Int64
	free   chan struct{} // closed: what was held back goes on its way
	over   chan struct{} // closed at the end of the test
	asked  chan struct{} // something was put; capacity 1
}

func archiveBadBucket(t *testing.T) *badBucket {
	server, err := leaseserver.S3(t.Context(), leaseserver.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	b := &badBucket{server: server, free: make(chan struct{}), over: make(chan struct{}), asked: make(chan struct{}, 1)}
	b.set("")
	target, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	pass := httputil.NewSingleHostReverseProxy(target)
	var held sync.WaitGroup
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fault := *b.fault.Load()
		if r.Method != http.MethodPut || fault == "" {
			pass.ServeHTTP(w, r)
			return
		}
		b.puts.Add(1)
		switch fault {
		case "throttled":
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, "<Error><Code>SlowDown</Code></Error>")
		case "fails":
			w.WriteHeader(http.StatusInternalServerError)
		case "hangs":
			_, _ = io.Copy(io.Discard, r.Body)
			b.waits(r)
		case "torn": // half of the object, and then nothing
			_, _ = io.CopyN(io.Discard, r.Body, r.ContentLength/2)
			panic(http.ErrAbortHandler)
		case "kill before", "kill after": // the node dies while it waits
			if fault == "kill after" {
				pass.ServeHTTP(httptest.NewRecorder(), r)
			} else {
				_, _ = io.Copy(io.Discard, r.Body)
			}
			select {
			case b.asked <- struct{}{}:
			default:
			}
			b.waits(r)
		case "unanswered": // it is there, and nobody is told
			pass.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		case "late": // it will be there when nobody waits any more
			body, err := io.ReadAll(r.Body)
			if err == nil {
				again := r.Clone(t.Context())
				again.Body = io.NopCloser(bytes.NewReader(body))
				held.Go(func() {
					select {
					case <-b.free:
					case <-b.over:
						return
					}
					pass.ServeHTTP(httptest.NewRecorder(), again)
				})
			}
			b.waits(r)
		}
	}))
	t.Cleanup(func() {
		close(b.over)
		proxy.Close()
		held.Wait()
		if err := server.Kill(); err != nil {
			t.Error(err)
		}
	})
	bucket := "s3://" + leaseserver.S3Bucket + "/some/where"
	b.archiveAt = bucketAt(t, bucket, proxy.URL)
	return b
}

// waits until the client has gone.
func (b *badBucket) waits(r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-b.over:
	}
}

func (b *badBucket) set(fault string) { b.fault.Store(&fault) }

// A commit returns when the bucket has it, in every journal mode, without a replica: what was acknowledged is restored
// when the node and its disk are gone.
func TestArchiveLevel(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		for place, at := range map[string]func(*testing.T) *archiveAt{"directory": archiveDir, "bucket": archiveBucket} {
			t.Run(mode+"/"+place, func(t *testing.T) {
				t.Parallel()
				a := at(t)
				primary := a.start(archiveLevel("60s"))
				app := sqlitetest.Start(t)
				c := openPatient(app, primary.path("app.db"), "journal_mode="+mode)
				c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
				for i := range 5 {
					c.MustExec(fmt.Sprintf("INSERT INTO t(v) VALUES ('%d')", i))
				}
				primary.killAll()
				if err := os.RemoveAll(primary.cfg.Data); err != nil {
					t.Fatal(err)
				}
				a.has("app.db", "0,1,2,3,4")
				if err := os.MkdirAll(primary.cfg.Data, 0o700); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// A transaction of a replica is acknowledged when the archive has it too; one that the bucket does not take is refused.
func TestArchiveLevelForwarded(t *testing.T) {
	t.Parallel()
	b := archiveBadBucket(t)
	primary := b.start(archiveLevel("2s"))
	c := openPatient(sqlitetest.Start(t), primary.path("app.db"), "journal_mode=wal")
	mustCommit(t, c, "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
	replica := startNode(t, follows(primary), daemonLocks)
	caughtUp(primary, replica, "app.db")
	r := openPatient(sqlitetest.Start(t), replica.path("app.db"))
	mustCommit(t, r, "INSERT INTO t(v) VALUES ('one')")
	b.set("fails")
	if _, err := r.Exec("INSERT INTO t(v) VALUES ('refused')"); err == nil {
		t.Error("a commit was acknowledged that the bucket did not take")
	}
	if got := c.MustText("SELECT group_concat(v) FROM t"); got != "one" {
		t.Errorf("the primary has %q, want \"one\"", got)
	}
	b.set("")
	mustCommit(t, r, "INSERT INTO t(v) VALUES ('two')")
	primary.killAll()
	if err := os.RemoveAll(primary.cfg.Data); err != nil {
		t.Fatal(err)
	}
	b.has("app.db", "one,two")
	if err := os.MkdirAll(primary.cfg.Data, 0o700); err != nil {
		t.Fatal(err)
	}
}

// has checks what is restored of a table.
func (a *archiveAt) has(database, want string, flags ...string) {
	a.t.Helper()
	file := filepath.Join(a.t.TempDir(), "restored.db")
	args := append([]string{"restore", "-name", database, "-integrity-check", "full"}, a.from...)
	if out, err := a.run(binary(a.t), append(append(args, flags...), file)...); err != nil {
		a.t.Fatalf("restore %s %q: %v: %s", database, flags, err, out)
	}
	if got := strings.TrimSpace(sqlitetest.CLI(a.t, file, "SELECT coalesce(group_concat(v), '') FROM (SELECT v FROM t ORDER BY id);")); got != want {
		a.t.Errorf("restore %s %q has %q, want %q", database, flags, got, want)
	}
}

// While the bucket does not do its part COMMIT fails, and the transaction is not there: not for this connection, not for
// others, not after the node was killed, and not in the bucket either, whose answers nobody got or whose writes came
// later: neither as its end, nor at any time.
func TestArchiveLevelRefused(t *testing.T) {
	t.Parallel()
	for i, fault := range []string{"throttled", "fails", "hangs", "torn", "unanswered", "late", "late"} {
		for j, mode := range modes {
			if i%len(modes) != j { // each fault in one of the modes, late in two
				continue
			}
			t.Run(fault+"/"+mode, func(t *testing.T) {
				t.Parallel()
				b := archiveBadBucket(t)
				primary := b.start(archiveLevel("1s"))
				c := openPatient(sqlitetest.Start(t), primary.path("app.db"), "journal_mode="+mode)
				mustCommit(t, c, "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
				mustCommit(t, c, "INSERT INTO t(v) VALUES ('kept')")
				b.set(fault)
				for range 2 {
					_, err := c.Exec("INSERT INTO t(v) VALUES ('refused')")
					if fault == "unanswered" && err == nil {
						return // the next attempt found it
					}
					if err == nil {
						t.Fatal("a commit that is not in the bucket was acknowledged")
					}
					if n := c.MustInt("SELECT count(*) FROM t"); n != 1 {
						t.Fatalf("%d rows after the refusal, want 1", n)
					}
				}
				if b.puts.Load() == 0 {
					t.Error("nothing was put")
				}
				other := openPatient(sqlitetest.Start(t), primary.path("app.db"))
				if n := other.MustInt("SELECT count(*) FROM t"); n != 1 {
					t.Fatalf("another connection sees %d rows, want 1", n)
				}
				primary.killAll()
				b.set("")
				close(b.free)
				primary.start()
				again := openPatient(sqlitetest.Start(t), primary.path("app.db"))
				if n := again.MustInt("SELECT count(*) FROM t"); n != 1 {
					t.Fatalf("%d rows after the node was killed, want 1", n)
				}
				mustCommit(t, again, "INSERT INTO t(v) VALUES ('kept too')")
				b.has("app.db", "kept,kept too")
				b.neverHad("app.db", "refused")
			})
		}
	}
}

// A node that is killed while a commit waits for the bucket comes back with the transaction or without it, and goes on
// in the history that it had: what the bucket has is what the node has.
func TestArchiveLevelKilled(t *testing.T) {
	t.Parallel()
	for _, fault := range []string{"kill before", "kill after"} {
		for _, mode := range modes {
			t.Run(strings.ReplaceAll(fault, " ", "-")+"/"+mode, func(t *testing.T) {
				t.Parallel()
				b := archiveBadBucket(t)
				primary := b.start(archiveLevel("60s"))
				c := openPatient(sqlitetest.Start(t), primary.path("app.db"), "journal_mode="+mode)
				mustCommit(t, c, "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
				mustCommit(t, c, "INSERT INTO t(v) VALUES ('a')")
				b.set(fault)
				done := make(chan error, 1)
				go func() {
					_, err := c.Exec("INSERT INTO t(v) VALUES ('b')")
					done <- err
				}()
				select {
				case <-b.asked:
				case err := <-done:
					t.Fatalf("COMMIT returned %v before the bucket has answered", err)
				case <-timeout(t).Done():
					t.Fatal("nothing is put")
				}
				primary.killAll()
				if err := <-done; err == nil {
					t.Error("the commit of a node that was killed was acknowledged")
				}
				b.set("")
				primary.start()
				again := openPatient(sqlitetest.Start(t), primary.path("app.db"))
				mustCommit(t, again, "INSERT INTO t(v) VALUES ('c')")
				have := again.MustText("SELECT group_concat(v) FROM (SELECT v FROM t ORDER BY id)")
				if have != "a,b,c" && have != "a,c" {
					t.Errorf("the node has %q", have)
				}
				b.has("app.db", have)
				if all, err := b.histories("app.db"); err != nil || len(all) != 1 {
					t.Errorf("histories: %+v, %v", all, err)
				}
			})
		}
	}
}

// neverHad restores every moment that the archive offers.
func (a *archiveAt) neverHad(database, value string) {
	a.t.Helper()
	all, err := a.histories(database)
	if err != nil || len(all) != 1 {
		a.t.Fatalf("histories: %+v, %v", all, err)
	}
	for m := 1; m <= all[0].Last.Moment; m++ {
		file := filepath.Join(a.t.TempDir(), "restored.db")
		args := append([]string{"restore", "-name", database, "-moment", fmt.Sprint(m)}, a.from...)
		out, err := a.run(binary(a.t), append(args, file)...)
		if err != nil {
			if !strings.Contains(out, "takes it back") {
				a.t.Errorf("moment %d: %v: %s", m, err, out)
			}
			continue
		}
		if got, err := sqlitetest.TryCLI(file, "SELECT count(*) FROM t WHERE v = '"+value+"';"); err == nil && strings.TrimSpace(got) != "0" {
			a.t.Errorf("moment %d has %q", m, value)
		}
	}
}

// Both nodes of a cluster are killed in turn under writers; each acknowledged transaction is on the next primary, and
// when both disks are gone in the bucket.
func TestArchiveLevelFailover(t *testing.T) {
	t.Parallel()
	a := archiveBucket(t)
	c := newCluster(t, 3*time.Second)
	var nodes []*node
	for range 2 {
		nodes = append(nodes, a.start(c.lease, archiveLevel("30s")))
	}
	told := map[string]*answered{"wal": {}, "delete": {}}
	primary := func() *node {
		var p *node
		eventually(t, "a node is the primary", func() (bool, string) {
			for _, n := range nodes {
				if info, ok := n.info(); ok && info.IsPrimary {
					p = n
				}
			}
			return p != nil, "none"
		})
		return p
	}
	for mode := range told {
		conn := openPatient(sqlitetest.Start(t), primary().path(mode+".db"), "journal_mode="+mode)
		mustCommit(t, conn, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
		conn.Close()
	}
	for round := range 2 {
		p := primary()
		other := nodes[0]
		if p == other {
			other = nodes[1]
		}
		for mode := range told {
			samePosition(p, other, mode+".db")
		}
		eventually(t, "the other node is in sync", func() (bool, string) {
			out, _ := p.cli("durability", "-config", p.configPath())
			return strings.Contains(out, "in sync: "+nodeID(other)), out
		})
		var wg sync.WaitGroup
		for mode, answers := range told {
			conn := openPatient(sqlitetest.Start(t), p.path(mode+".db"))
			wg.Go(func() { answers.write(conn, int64(round+1)*1_000_000) })
		}
		eventually(t, "writers get on", func() (bool, string) {
			n, m := told["wal"].count(), told["delete"].count()
			return n > 10*(round+1) && m > 10*(round+1), fmt.Sprint(n, m)
		})
		p.killAll()
		wg.Wait()
		next := primary()
		if next == p {
			t.Fatal("the node that was killed is the primary")
		}
		for mode, answers := range told {
			answers.all(t, next.path(mode+".db"))
		}
		p.start()
	}
	p := primary()
	var wg sync.WaitGroup
	for mode, answers := range told {
		conn := openPatient(sqlitetest.Start(t), p.path(mode+".db"))
		mustCommit(t, conn, "INSERT INTO t(id) VALUES (-1)")
		wg.Go(func() { answers.write(conn, 9_000_000) })
	}
	before := told["wal"].count()
	eventually(t, "writers get on", func() (bool, string) { n := told["wal"].count(); return n > before+5, fmt.Sprint(n) })
	for _, n := range nodes {
		n.killAll()
	}
	wg.Wait()
	for mode, answers := range told {
		file := filepath.Join(t.TempDir(), "restored.db")
		if out, err := a.run(binary(t), append(append([]string{"restore", "-name", mode + ".db", "-integrity-check", "full"}, a.from...), file)...); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		answers.all(t, file)
	}
}

// all checks that a database has every row that was acknowledged.
func (a *answered) all(t *testing.T, path string) {
	t.Helper()
	have := make(map[int64]bool)
	for _, row := range openPatient(sqlitetest.Start(t), path).MustQuery("SELECT id FROM t") {
		have[row[0].(int64)] = true
	}
	for _, id := range a.rows {
		if !have[id] {
			t.Errorf("%s: %d was acknowledged and is lost", path, id)
		}
	}
}

// A replica that does not answer leaves the set, and commits go on with the archive alone.
func TestArchiveLevelWithoutReplica(t *testing.T) {
	t.Parallel()
	a := archiveDir(t)
	c := newCluster(t, 3*time.Second)
	p := a.start(c.lease, archiveLevel("15s"))
	conn := openPatient(sqlitetest.Start(t), p.path("app.db"), "journal_mode=wal")
	mustCommit(t, conn, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	r := a.start(c.lease, archiveLevel("15s"))
	eventually(t, "the replica is in sync", func() (bool, string) {
		out, _ := p.cli("durability", "-config", p.configPath())
		return strings.Contains(out, "in sync: "+nodeID(r)), out
	})
	if err := r.proc.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	conn.MustExec("INSERT INTO t(v) VALUES (1)")
	a.has("app.db", "1")
}

// While the bucket takes nothing, the node says how much of its logs it keeps for it; afterwards nothing is kept.
func TestArchiveHeld(t *testing.T) {
	t.Parallel()
	b := archiveBadBucket(t)
	b.set("fails")
	n := startNode(t, func(c *childnode.Config) { c.Backup = append(b.section(), "interval: 50ms", "max-requests: 1000") })
	c := openPatient(sqlitetest.Start(t), n.path("app.db"), "journal_mode=WAL")
	c.MustExec("CREATE TABLE t(v)")
	c.MustExec("INSERT INTO t VALUES (randomblob(2000000))")
	says := func(want string, there bool) {
		t.Helper()
		eventually(t, fmt.Sprintf("status says %q: %v", want, there), func() (bool, string) {
			out, _ := n.cli("status", "-config", n.configPath())
			return strings.Contains(out, want) == there, out
		})
	}
	says("MiB of logs are kept for archives", true)
	out, _ := n.cli("status", "-config", n.configPath(), "-json")
	if !strings.Contains(out, `"heldBytes": 2`) {
		t.Errorf("JSON says nothing of it:\n%s", out)
	}
	b.set("")
	says("has everything", true)
	says("logs are kept", false)
}

// TestArchiveHold: beyond backup.hold commits are refused until the bucket takes something again, or the log is not kept for
// it, and it gets all of the database when it is back. Both are told.
func TestArchiveHold(t *testing.T) {
	t.Parallel()
	for _, then := range []string{"refuse", "give-up"} {
		t.Run(then, func(t *testing.T) {
			t.Parallel()
			b := archiveBadBucket(t)
			n := startNode(t, func(c *childnode.Config) {
				c.Backup = append(b.section(), "interval: 50ms", "max-requests: 1000", "hold: 1MB", "hold-then: "+then)
				c.DataKeys = append(c.DataKeys, "retention: 1ms", "retention-monitor-interval: 20ms")
			})
			c := openPatient(sqlitetest.Start(t), n.path("app.db"), "journal_mode=WAL", "busy_timeout=100")
			mustCommit(t, c, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
			mustCommit(t, c, "INSERT INTO t(v) VALUES (1)")
			settle(c)
			b.archived(n, "app.db")
			b.set("fails")
			mustCommit(t, c, "INSERT INTO t(v) VALUES (2), (randomblob(2000000))")
			says := func(want string, there bool) {
				t.Helper()
				eventually(t, fmt.Sprintf("status says %q: %v", want, there), func() (bool, string) {
					out, _ := n.cli("status", "-config", n.configPath())
					return strings.Contains(out, want) == there, out
				})
			}
			says("it lacks more than backup.hold", true)
			if then == "refuse" {
				eventually(t, "a commit is refused", func() (bool, string) {
					_, err := c.Exec("INSERT INTO t(v) VALUES (2)")
					return sqlapp.IsCode(err, sqlapp.CodeBusy), fmt.Sprint(err)
				})
				if c.MustInt("SELECT count(*) FROM t WHERE v = 1") != 1 {
					t.Error("a reader sees something else")
				}
			} else {
				mustCommit(t, c, "DELETE FROM t WHERE id > 2")
				eventually(t, "the log is not kept", func() (bool, string) {
					entries, err := filepath.Glob(filepath.Join(n.cfg.Data, "dbs", "*", "ltx", "*.ltx"))
					if err != nil {
						t.Fatal(err)
					}
					var size int64
					for _, name := range entries {
						if fi, err := os.Stat(name); err == nil {
							size += fi.Size()
						}
					}
					_, err = c.Exec("UPDATE t SET v = v + 1 WHERE id = 1") // the newest entry always stays
					return size < 1<<20, fmt.Sprintf("%d bytes in %d entries, %v", size, len(entries), err)
				})
			}
			b.set("")
			says("it lacks more than backup.hold", false)
			mustCommit(t, c, "INSERT INTO t(v) VALUES (3)")
			settle(c)
			b.restored(b.archived(n, "app.db"), "app.db")
			if all, err := b.histories("app.db"); err != nil || then == "refuse" && len(all) != 1 {
				t.Errorf("histories: %+v, %v; nothing was lost to the archive", all, err)
			}
		})
	}
}
