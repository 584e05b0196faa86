package e2e

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/faultnet"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// BenchmarkHalt commits on a replica under the primary's lock: transactions of one row, by writers with connections of
// their own. What each node sends the other comes late by half the delay, which is the round trip.
//
//	go test -run '^$' -bench BenchmarkHalt -benchtime 200x ./internal/e2e
func BenchmarkHalt(b *testing.B) {
	for _, delay := range []time.Duration{0, 20 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond} {
		for _, writers := range []int{1, 4} {
			b.Run(fmt.Sprintf("delay=%v/writers=%d", delay, writers), func(b *testing.B) { benchHalt(b, delay, writers, true) })
		}
	}
	b.Run("primary", func(b *testing.B) {
		n := startNode(b)
		c := openPatient(sqlitetest.Start(b), n.path("app.db"), "journal_mode=wal", "synchronous=full")
		c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
		b.ResetTimer()
		for range b.N {
			c.MustExec("INSERT INTO t(v) VALUES (randomblob(100))")
		}
	})
}

// BenchmarkForward is BenchmarkHalt with programs that ask for no lock: it is borrowed when they begin to write.
func BenchmarkForward(b *testing.B) {
	for _, delay := range []time.Duration{0, 20 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond} {
		for _, writers := range []int{1, 4} {
			b.Run(fmt.Sprintf("delay=%v/writers=%d", delay, writers), func(b *testing.B) { benchHalt(b, delay, writers, false) })
		}
	}
}

func benchHalt(b *testing.B, delay time.Duration, writers int, named bool) {
	primary := startNode(b, haltable)
	proxy := startProxy(b, primary, 1)
	replica := startNode(b, haltable, func(c *childnode.Config) {
		c.PrimaryURL, c.DaemonLocks = "http://"+proxy.Addr(), !named
	})
	c := openPatient(sqlitetest.Start(b), primary.path("app.db"), "journal_mode=wal")
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	caughtUp(primary, replica, "app.db")
	if delay > 0 {
		proxy.Set(faultnet.Faults{Up: faultnet.Direction{Delay: delay / 2}, Down: faultnet.Direction{Delay: delay / 2}})
	}
	var conns []*sqlitetest.Conn
	for range writers {
		conns = append(conns, openPatient(sqlitetest.Start(b), replica.path("app.db")))
	}
	var took time.Duration
	release := func() {}
	if named {
		began := time.Now()
		release = replica.hold("app.db").release
		took = time.Since(began)
	}
	b.ResetTimer()
	var wg sync.WaitGroup
	for i, conn := range conns {
		wg.Go(func() {
			for n := i; n < b.N; n += writers {
				conn.MustExec("INSERT INTO t(v) VALUES (randomblob(100))")
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
	if named {
		b.ReportMetric(took.Seconds()*1000, "ms/lock")
	}
	release()
	if n := c.MustInt("SELECT count(*) FROM t"); n < int64(b.N) {
		b.Fatalf("the primary has %d rows, want %d", n, b.N)
	}
	caughtUp(primary, replica, "app.db")
}
