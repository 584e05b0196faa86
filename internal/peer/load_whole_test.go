package peer

import (
	"os"
	"testing"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// Nobody sees a database whose first content is being written, in whatever order it comes; then all see
// all of it, and transactions go on from there.
func TestLoad(t *testing.T) {
	for _, pageSize := range []int{512, 4096, 65536} {
		app := sqlitetest.Start(t)
		p := newPrimary(t, app, "wal", pageSize)
		p.tx("CREATE TABLE t(x)")
		p.tx("INSERT INTO t SELECT randomblob(50000) FROM (VALUES(1),(2),(3),(4),(5))")
		whole := p.img
		r := newReplica(t, Options{})
		l, err := r.Load(patient(t), whole.pageSize)
		must(t, err)
		if _, err := r.Load(patient(t), whole.pageSize); err == nil {
			t.Error("two loads at once")
		}
		if err := r.Apply(patient(t), whole.count(), whole.pageSize, diff(image{}, whole).pages); err == nil {
			t.Error("a transaction is applied to half a database")
		}
		half := whole.count() / 2
		at := int(half) * int(whole.pageSize)
		must(t, l.Write(half+1, whole.b[at:]))
		if err := l.Finish(patient(t), whole.count()); err == nil {
			t.Error("a database without its first page")
		}
		must(t, l.Write(1, whole.b[:at]))
		if _, err := app.TryOpen(r.opt.Path, "user_version"); err == nil {
			t.Error("half a database can be read")
		}
		must(t, l.Finish(patient(t), whole.count()))
		r.check(whole)
		must(t, l.Abort()) // does nothing any more
		if err := l.Write(1, whole.b[:at]); err == nil {
			t.Error("a finished load is written to")
		}
		r.apply(p.tx("INSERT INTO t VALUES (1)"))
		r.check(p.img)
		app.Exit()
	}
}

// A load that does not come to its end leaves an empty file: given up, closed, or killed.
func TestLoadUnfinished(t *testing.T) {
	app := sqlitetest.Start(t)
	p := newPrimary(t, app, "wal", 4096)
	p.tx("CREATE TABLE t(x)")
	whole := p.img
	for _, end := range []string{"abort", "close", "killed"} {
		r := newReplica(t, Options{})
		l, err := r.Load(patient(t), whole.pageSize)
		must(t, err)
		must(t, l.Write(1, whole.b))
		switch end {
		case "abort":
			must(t, l.Abort())
		case "close":
			r.close()
		case "killed":
			b, err := os.ReadFile(r.opt.Path)
			must(t, err)
			r.close()
			must(t, os.WriteFile(r.opt.Path, b, 0o600))
			r.open()
		}
		if fi, err := os.Stat(r.opt.Path); err != nil || fi.Size() != 0 {
			t.Errorf("%s: %v, %v, want an empty file", end, fi, err)
		}
		if end != "close" {
			r.apply(diff(image{}, whole))
			r.check(whole)
		}
	}
	app.Exit()
}
