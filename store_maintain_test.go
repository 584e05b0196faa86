package litefs

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// TestMaintenanceOfADroppedDatabase: the log of a database that is dropped is not
// closed under its maintenance.
func TestMaintenanceOfADroppedDatabase(t *testing.T) {
	var mu sync.Mutex
	var text strings.Builder
	n := openNode(t, filepath.Join(t.TempDir(), "data"), func(s *Store) {
		s.Logger = slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return text.Write(b)
		}), nil))
	})
	app := sqlitetest.Start(t)
	var wg sync.WaitGroup
	for i := range 10 {
		name := fmt.Sprintf("%d.db", i)
		c := app.Open(n.path(name), "journal_mode=wal", "synchronous=off")
		c.MustExec(createT)
		n.adopt(name)
		n.rows(name, c, 10)
		c.Close()
		db := n.db(name)
		gone, begun := make(chan struct{}), make(chan struct{})
		for _, maintain := range []func(){db.syncLog, func() { db.retain(Retention{Age: time.Hour, Bytes: 1 << 30, Interval: time.Nanosecond}) }} {
			wg.Go(func() {
				for {
					select {
					case <-gone:
						return
					case begun <- struct{}{}:
					default:
					}
					maintain()
				}
			})
		}
		wg.Go(func() {
			defer close(gone)
			for range 2 + i {
				<-begun
			}
			n.store.unregister(db)
			if err := db.close(); err != nil {
				t.Errorf("close %s: %v", name, err)
			}
		})
	}
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	if strings.Contains(text.String(), "level=ERROR") {
		t.Errorf("the log of the node:\n%s", text.String())
	}
}

// writerFunc is an io.Writer.
type writerFunc func(b []byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
