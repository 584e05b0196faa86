package peer

import (
	"fmt"
	"testing"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// Every page size, under both journal modes that a header can name: growth,
// shrinking and VACUUM, with a reader that looks at each commit.
func TestEveryPageSize(t *testing.T) {
	app := sqlitetest.Start(t)
	for _, mode := range []string{"delete", "wal"} {
		for size := 512; size <= 65536; size *= 2 {
			t.Run(fmt.Sprintf("%s/%d", mode, size), func(t *testing.T) {
				p := newPrimary(t, app, mode, size)
				r := newReplica(t, Options{SoftWAL: int64(40 * size)})
				var reader *sqlitetest.Conn
				step := func(sql string) {
					t.Helper()
					r.apply(p.tx(sql))
					r.check(p.img)
					if reader == nil {
						reader = app.Open(r.path)
					}
					want := p.MustQuery("SELECT count(*), sum(length(b)), max(a) FROM t")
					if got := reader.MustQuery("SELECT count(*), sum(length(b)), max(a) FROM t"); fmt.Sprint(got) != fmt.Sprint(want) {
						t.Fatalf("reader sees %v, want %v", got, want)
					}
				}
				step("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
				for i := range 12 {
					step(fmt.Sprintf("INSERT INTO t(b) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<10) SELECT randomblob(%d) FROM n", size/(3+i)))
					step("UPDATE t SET b = randomblob(length(b)) WHERE a % 7 = " + fmt.Sprint(i%7))
				}
				step("DELETE FROM t WHERE a % 3 > 0")
				step("VACUUM")
				step("INSERT INTO t(b) VALUES (1)")
				reader.Close()
				r.checkFile(p.img)
				sqlitetest.CheckIntegrity(t, r.path)
			})
		}
	}
}
