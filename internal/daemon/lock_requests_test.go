package daemon

import (
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// TestRequestsOfLocks holds what transactions in WAL mode cost in requests where the kernel keeps the locks, and where it
// asks for them (docs/write-forwarding.md): of 20 transactions that read, of 20 that write.
func TestRequestsOfLocks(t *testing.T) {
	type requests map[string]uint64
	for _, c := range []struct {
		locks, passthrough string
		second             string // fuse.forward-dir
		read, write        requests
	}{
		{"kernel", "auto", "", requests{}, requests{}},
		{"kernel", "auto", "beside", requests{}, requests{"WRITE": 40}},
		{"daemon", "auto", "", requests{"SETLK": 40}, requests{"SETLK": 120, "WRITE": 40}},
		{"kernel", "off", "", requests{}, requests{"WRITE": 60}},
		{"daemon", "off", "", requests{"SETLK": 40}, requests{"SETLK": 120, "WRITE": 40}},
	} {
		t.Run(c.locks+"/"+c.passthrough+c.second, func(t *testing.T) {
			dir := t.TempDir()
			set := []string{"http.addr=127.0.0.1:0", "fuse.locks=" + c.locks, "fuse.passthrough=" + c.passthrough}
			if c.second != "" {
				set = append(set, "fuse.forward-dir="+filepath.Join(dir, c.second))
			}
			cfg, err := config.Default(filepath.Join(dir, "mnt"), config.Source{Set: set})
			if err != nil {
				t.Fatal(err)
			}
			n := startNode(t, cfg)
			app := sqlitetest.Start(t)
			conn := app.Open(filepath.Join(cfg.Fuse.Dir, "app.db"), "journal_mode=wal", "synchronous=normal", "wal_autocheckpoint=0")
			conn.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
			conn.MustExec("INSERT INTO t VALUES (1, zeroblob(100))")
			const update, query = "UPDATE t SET v = randomblob(100)", "SELECT count(*) FROM t"
			conn.MustExec(update)
			for _, k := range []struct {
				what string
				do   func()
				want requests
			}{
				{"read", func() { conn.MustInt(query) }, c.read},
				{"write", func() { conn.MustExec(update) }, c.write},
			} {
				k.do()
				before := n.Counts()
				for range 20 {
					k.do()
				}
				got := requests{}
				for op, count := range n.Counts() {
					if count -= before[op]; count > 0 && op != "FORGET" && op != "BATCH_FORGET" && op != "INTERRUPT" && op != "RELEASE" {
						got[op] = count
					}
				}
				if !maps.Equal(got, k.want) {
					t.Errorf("requests of 20 transactions that %s: %v, want %v", k.what, got, k.want)
				}
			}
			conn.Close()
			app.Exit()
			stopNode(t, n)
			_ = os.Remove(cfg.Fuse.Dir) // empty
		})
	}
}

// BenchmarkRead is a transaction that reads, on both kinds of mount.
func BenchmarkRead(b *testing.B) {
	for _, locks := range []string{"kernel", "daemon"} {
		b.Run(locks, func(b *testing.B) {
			cfg, err := config.Default(filepath.Join(b.TempDir(), "mnt"), config.Source{Set: []string{"http.addr=127.0.0.1:0", "fuse.locks=" + locks}})
			if err != nil {
				b.Fatal(err)
			}
			n := startNode(b, cfg)
			app := sqlitetest.Start(b)
			conn := app.Open(filepath.Join(cfg.Fuse.Dir, "app.db"), "journal_mode=wal")
			conn.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
			for b.Loop() {
				conn.MustInt("SELECT count(*) FROM t")
			}
			conn.Close()
			app.Exit()
			stopNode(b, n)
		})
	}
}
