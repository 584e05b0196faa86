package e2e

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/faultnet"
	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// BenchmarkQuorum measures commits that wait for a replica to which the way and back takes a while: of one database, and of
// sixteen at once, each written by a process of its own, which share it.
func BenchmarkQuorum(b *testing.B) {
	for _, delay := range []time.Duration{0, time.Millisecond, 10 * time.Millisecond} {
		for _, databases := range []int{1, 16} {
			b.Run(fmt.Sprintf("delay=%v/databases=%d", delay, databases), func(b *testing.B) { benchQuorum(b, delay, databases) })
		}
	}
}

func benchQuorum(b *testing.B, delay time.Duration, databases int) {
	atQuorum := func(c *childnode.Config) { c.Durability = []string{"{match: '*', level: quorum, n: 1}"} }
	primary := startNode(b, atQuorum)
	proxy := startProxy(b, primary, 1)
	proxy.Set(faultnet.Faults{Up: faultnet.Direction{Delay: delay / 2}, Down: faultnet.Direction{Delay: delay / 2}})
	replica := startNode(b, atQuorum, func(c *childnode.Config) { c.PrimaryURL = "http://" + proxy.Addr() })
	var conns []*sqlitetest.Conn
	for i := range databases {
		c := openPatient(sqlitetest.Start(b), primary.path(fmt.Sprintf("%d.db", i)), "journal_mode=wal")
		c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
		conns = append(conns, c)
	}
	b.ResetTimer()
	var wg sync.WaitGroup
	rounds := (b.N + databases - 1) / databases
	for _, c := range conns {
		wg.Go(func() {
			if _, err := c.Repeat([]sqlapp.Step{{SQL: "INSERT INTO t(v) VALUES (randomblob(100))"}}, rounds, 0); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(rounds*databases)/b.Elapsed().Seconds(), "commits/s")
	for i := range databases {
		caughtUp(primary, replica, fmt.Sprintf("%d.db", i))
	}
}
