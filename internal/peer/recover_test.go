package peer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/sqlitetest"
	"github.com/litefs/litefs/sqlitefile"
)

// dying is a Peer that died, and a reader that has the wal-index mapped.
type dying struct {
	*replica
	p      *primary
	reader *sqlitetest.Conn
}

const rowsSQL = "SELECT count(*) FROM t"

// newDying applies n rows, and lets a reader see them.
func newDying(t *testing.T, n int) dying {
	t.Helper()
	app := sqlitetest.Start(t)
	d := dying{p: newPrimary(t, app, "wal", 4096), replica: newReplica(t, Options{})}
	d.apply(d.p.tx("CREATE TABLE t(a INTEGER PRIMARY KEY, b)"))
	for range n {
		d.insert()
	}
	d.reader = app.Open(d.path)
	d.sees(n)
	return d
}

func (d *dying) insert() {
	d.t.Helper()
	d.apply(d.p.tx("INSERT INTO t(b) VALUES (randomblob(5000))"))
}

func (d *dying) sees(n int) {
	d.t.Helper()
	if got := d.reader.MustInt(rowsSQL); got != int64(n) {
		d.t.Fatalf("reader sees %d rows, want %d", got, n)
	}
}

// edit changes the -shm or -wal between the death of one Peer and the next.
func (d *dying) edit(suffix string, fn func(f *os.File)) {
	d.t.Helper()
	f, err := os.OpenFile(d.path+suffix, os.O_RDWR, 0)
	must(d.t, err)
	fn(f)
	must(d.t, f.Close())
}

// A commit that was written and not published is one that nobody has seen.
// While the wal-index lives it stays so; without it the WAL decides.
func TestUnpublishedCommit(t *testing.T) {
	for _, alive := range []bool{true, false} {
		d := newDying(t, 3)
		before, pos := d.p.img, d.WALPos()
		dead := false
		d.index.f.before = func(c change) error {
			dead = dead || c.op == "write" && strings.HasSuffix(c.f.Name(), "-shm")
			if dead {
				return errCut
			}
			return nil
		}
		x := d.p.tx("INSERT INTO t(b) VALUES (randomblob(5000))")
		if err := d.Apply(patient(t), x.Count, x.PageSize, x.pages); !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		if !alive {
			// Both at once, as in a crash: a last close would clean up.
			abandon(t, d.Peer)
			d.edit("-shm", func(f *os.File) { must(t, f.Truncate(0)) })
			d.edit("-shm", func(f *os.File) {
				_, err := f.WriteAt(make([]byte, sqlitefile.IndexBlockSize), 0)
				must(t, err)
			})
			d.open()
			d.check(d.p.img)
			d.sees(4)
			continue
		}
		abandon(t, d.Peer)
		d.open()
		if got := d.WALPos(); got != pos {
			t.Errorf("the WAL ends at %+v, want %+v", got, pos)
		}
		d.check(before)
		d.sees(3)
		d.apply(x)
		d.check(d.p.img)
		d.sees(4)
	}
}

// Whoever takes over finds a header whose copies differ, and readers that
// cannot begin.
func TestTornHeader(t *testing.T) {
	d := newDying(t, 3)
	abandon(t, d.Peer)
	d.edit("-shm", func(f *os.File) {
		_, err := f.WriteAt(bytes.Repeat([]byte{7}, 20), 8)
		must(t, err)
	})
	d.open()
	d.sees(3)
	d.check(d.p.img)
	d.insert()
	d.sees(4)
}

// SQLite restarts a WAL in two steps. A backfill count from before the restart
// would hide frames from readers.
func TestBackfillOfAnEarlierWAL(t *testing.T) {
	d := newDying(t, 3)
	complete, err := d.Checkpoint(patient(t))
	must(t, err)
	restarted, err := d.tryRestart()
	must(t, err)
	if !complete || !restarted {
		t.Fatalf("complete %v, restarted %v", complete, restarted)
	}
	abandon(t, d.Peer)
	d.edit("-shm", func(f *os.File) {
		_, err := f.WriteAt(binary.NativeEndian.AppendUint32(nil, 500), sqlitefile.BackfillOffset)
		must(t, err)
	})
	d.open()
	d.insert()
	d.sees(4)
	d.check(d.p.img)
}

// The wal-index names frames that the WAL does not have.
func TestIndexThatDoesNotFitTheWAL(t *testing.T) {
	d := newDying(t, 1)
	one := d.p.img
	end := d.WALSize()
	d.insert()
	d.sees(2)
	abandon(t, d.Peer)
	d.edit("-wal", func(f *os.File) { must(t, f.Truncate(end)) })
	d.open()
	d.check(one)
	d.sees(1)
	d.apply(diff(one, d.p.img))
	d.check(d.p.img)
	d.sees(2)
}

// A reader whose snapshot is the database file itself keeps checkpoints from
// changing it.
func TestReaderOfTheDatabaseFile(t *testing.T) {
	d := newDying(t, 2)
	if complete, err := d.Checkpoint(patient(t)); !complete || err != nil {
		t.Fatalf("checkpoint: %v, %v", complete, err)
	}
	file := func() []byte {
		b, err := os.ReadFile(d.path)
		must(t, err)
		return b
	}
	want := file()
	d.reader.MustExec("BEGIN")
	d.sees(2)
	for range 3 {
		d.insert()
		complete, err := d.Checkpoint(patient(t))
		must(t, err)
		if complete || !bytes.Equal(file(), want) {
			t.Fatalf("checkpoint under a reader: complete %v, file changed %v", complete, !bytes.Equal(file(), want))
		}
		d.sees(2)
	}
	d.reader.MustExec("COMMIT")
	d.sees(5)
	d.checkFile(d.p.img)
}

// A reader in the middle of the WAL lets a checkpoint come as far as its mark.
func TestReaderInTheWAL(t *testing.T) {
	d := newDying(t, 2)
	d.reader.MustExec("BEGIN")
	d.sees(2)
	mark := d.WALPos().Frame
	d.insert()
	for range 2 {
		complete, err := d.Checkpoint(patient(t))
		must(t, err)
		info, err := d.index.info()
		must(t, err)
		if complete || info.Backfill != mark {
			t.Fatalf("complete %v with %d frames, want %d", complete, info.Backfill, mark)
		}
		d.sees(2)
	}
	d.reader.MustExec("COMMIT")
	d.sees(3)
	d.checkFile(d.p.img)
}
