package peer

import (
	"fmt"
	"sync"
	"testing"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// Transfers between accounts, and a log of them: in each committed state the
// accounts sum up to 0 and the log has as many rows as the counter says.
const (
	bankSchema = `CREATE TABLE acct(id INTEGER PRIMARY KEY, v INTEGER, pad);
		INSERT INTO acct WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<60) SELECT i, 0, zeroblob(200) FROM n;
		CREATE TABLE log(id INTEGER PRIMARY KEY, pad); CREATE TABLE counter(n); INSERT INTO counter VALUES (0);`
	bankTransfer = `BEGIN; UPDATE acct SET v = v + 5 WHERE id = 1 + abs(random()) %% 60;
		UPDATE acct SET v = v - 5 WHERE id = 1 + %d %% 60;
		INSERT INTO log(pad) VALUES (zeroblob(%d)); UPDATE counter SET n = n + 1; COMMIT`
	bankLook = "SELECT (SELECT sum(v) FROM acct), (SELECT count(*) FROM log) - (SELECT n FROM counter), (SELECT n FROM counter)"
)

// bankReader reads until done is closed and returns what went wrong.
func bankReader(c *sqlitetest.Conn, look func(*sqlitetest.Conn) ([][]any, error), done <-chan struct{}) (reads int, err error) {
	last := int64(0)
	for ; ; reads++ {
		select {
		case <-done:
			return reads, nil
		default:
		}
		rows, err := look(c)
		if err != nil {
			return reads, err
		}
		sum, missing, n := rows[0][0].(int64), rows[0][1].(int64), rows[0][2].(int64)
		if sum != 0 || missing != 0 || n < last {
			return reads, fmt.Errorf("read %d: accounts sum up to %d, %d log rows too many, counter %d after %d", reads, sum, missing, n, last)
		}
		last = n
	}
}

func lookOnce(c *sqlitetest.Conn) ([][]any, error) { return c.Query(bankLook) }

// lookHeld holds a snapshot over several looks.
func lookHeld(c *sqlitetest.Conn) ([][]any, error) {
	if _, err := c.Exec("BEGIN"); err != nil {
		return nil, err
	}
	rows, err := c.Query(bankLook)
	for range 20 {
		if err != nil {
			return nil, err
		}
		var again [][]any
		if again, err = c.Query(bankLook); err == nil && fmt.Sprint(again) != fmt.Sprint(rows) {
			err = fmt.Errorf("snapshot turned from %v into %v", rows, again)
		}
	}
	if err == nil {
		_, err = c.Exec("COMMIT")
	}
	return rows, err
}

// lookAndCheckpoint tries what an application may do to a WAL between reads.
func lookAndCheckpoint(c *sqlitetest.Conn) ([][]any, error) {
	for _, mode := range []string{"PASSIVE", "FULL", "RESTART", "TRUNCATE"} {
		if _, err := c.Query("PRAGMA wal_checkpoint(" + mode + ")"); err != nil && !busy(err) {
			return nil, fmt.Errorf("checkpoint %s: %w", mode, err)
		}
	}
	return c.Query(bankLook)
}

// Readers without a busy time-out, each a process of its own, while thousands
// of transactions are applied: none is ever refused, none sees a torn state.
func TestReadersUnderLoad(t *testing.T) {
	const transactions = 1000
	app := sqlitetest.Start(t)
	for _, mode := range []string{"delete", "wal"} {
		t.Run(mode, func(t *testing.T) {
			p := newPrimary(t, app, mode, 1024)
			r := newReplica(t, Options{SoftWAL: 256 << 10})
			r.apply(p.tx(bankSchema))
			done := make(chan struct{})
			var wg sync.WaitGroup
			for name, look := range map[string]func(*sqlitetest.Conn) ([][]any, error){
				"once": lookOnce, "held": lookHeld, "checkpoint": lookAndCheckpoint,
			} {
				c := sqlitetest.Open(t, r.path)
				wg.Go(func() {
					reads, err := bankReader(c, look, done)
					if err != nil {
						t.Errorf("reader %q: %v", name, err)
					}
					if reads == 0 {
						t.Errorf("reader %q read nothing", name)
					}
				})
			}
			for i := range transactions {
				sql := fmt.Sprintf(bankTransfer, i, i%700)
				if i%300 == 299 {
					sql = "UPDATE acct SET pad = zeroblob(900); VACUUM"
				}
				r.apply(p.tx(sql))
			}
			close(done)
			wg.Wait()
			r.check(p.img)
			r.checkFile(p.img)
			sqlitetest.CheckIntegrity(t, r.path)
		})
	}
}

// Methods from several goroutines take turns.
func TestConcurrentCalls(t *testing.T) {
	app := sqlitetest.Start(t)
	p := newPrimary(t, app, "delete", 4096)
	r := newReplica(t, Options{SoftWAL: 64 << 10})
	r.apply(p.tx("CREATE TABLE t(a INTEGER PRIMARY KEY, b)"))
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			buf := make([]byte, 4096)
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := r.ReadPage(r.PageCount(), buf); err != nil {
					t.Error(err)
				}
				if _, err := r.Checkpoint(t.Context()); err != nil {
					t.Error(err)
				}
				r.WALSize()
				r.WALPos()
				r.PageSize()
			}
		})
	}
	for range 100 {
		r.apply(p.tx("INSERT INTO t(b) VALUES (randomblob(3000))"))
	}
	close(done)
	wg.Wait()
	r.checkFile(p.img)
}

func BenchmarkApply(b *testing.B) {
	app := sqlitetest.Start(b)
	p := newPrimary(b, app, "delete", 4096)
	r := newReplica(b, Options{})
	r.apply(p.tx(bankSchema))
	x := p.tx(fmt.Sprintf(bankTransfer, 1, 10))
	b.SetBytes(int64(len(x.Pgnos)) * 4096)
	for b.Loop() {
		r.apply(x)
	}
}
