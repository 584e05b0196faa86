package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/leaseserver"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// The primary's processes are killed under the lease of a NATS server: the other node writes once the lease
// has run out, with all that was replicated, and the killed one comes back and follows. Then the role is
// handed over, which does not wait.
func TestFailover_NATS(t *testing.T) {
	failover(t, newClusterOn(t, leaseserver.NATS, "type: nats", "nats:\n    url: %s\n    ttl: 2s\n    lock-delay: 300ms"))
}

// The same with two nodes and a bucket.
func TestFailover_Bucket(t *testing.T) {
	failover(t, newClusterOn(t, leaseserver.S3, "type: s3", fmt.Sprintf(
		"s3:\n    url: s3://%s/app\n    endpoint: %%s\n    access-key: %s\n    secret-key: %s\n    ttl: 2s\n    lock-delay: 300ms",
		leaseserver.S3Bucket, leaseserver.S3AccessKey, leaseserver.S3SecretKey)))
}

func failover(t *testing.T, c *cluster) {
	a := c.start()
	becomesPrimary(a)
	b := c.start()
	writer := sqlitetest.Open(t, a.path("app.db"), "journal_mode=wal", "busy_timeout=1000")
	writer.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	for range 20 {
		writer.MustExec("INSERT INTO t(v) VALUES (randomblob(100))")
	}
	samePosition(a, b, "app.db")
	other := openPatient(sqlitetest.Start(t), b.path("app.db"))
	if _, err := sqlitetest.Open(t, b.path("app.db")).Exec("INSERT INTO t(v) VALUES (1)"); err == nil {
		t.Fatal("a replica takes a write")
	}

	killed := time.Now()
	a.killAll()
	other.MustExec("INSERT INTO t(v) VALUES ('after the kill')")
	t.Logf("another node has written %v after the kill", time.Since(killed).Round(time.Millisecond))
	if n := other.MustInt("SELECT count(*) FROM t"); n != 21 {
		t.Fatalf("%d rows on the new primary", n)
	}

	a.start()
	samePosition(a, b, "app.db")
	if err := a.move("/promote"); err != nil {
		t.Fatal(err)
	}
	becomesPrimary(a)
	back := sqlitetest.Open(t, a.path("app.db"), "busy_timeout=1000")
	back.MustExec("INSERT INTO t(v) VALUES ('after the hand-over')")
	if _, err := sqlitetest.Open(t, b.path("app.db")).Exec("INSERT INTO t(v) VALUES (1)"); err == nil {
		t.Fatal("the node that handed over takes a write")
	}
	samePosition(a, b, "app.db")
	sqlitetest.CheckIntegrity(t, a.path("app.db"))
	sqlitetest.CheckIntegrity(t, b.path("app.db"))
}
