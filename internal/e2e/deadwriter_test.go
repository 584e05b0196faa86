package e2e

import (
	"bytes"
	"io"
	"os"
	"testing"

	"github.com/litefs/litefs/internal/sqlitetest"
	"github.com/litefs/litefs/sqlitefile"
)

// writeUnpublished appends a transaction to a write-ahead log, through the mount, as a connection does
// that is killed before it publishes what it has written in the wal-index.
func writeUnpublished(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	b, err := io.ReadAll(f)
	must(t, err)
	hdr, err := sqlitefile.ParseWALHeader(b)
	must(t, err)
	last := sqlitefile.FrameCount(int64(len(b)), hdr.PageSize)
	before := sqlitefile.ParseFrame(b[sqlitefile.FrameOffset(last, hdr.PageSize):])
	page := bytes.Repeat([]byte{7}, int(hdr.PageSize))
	frame := sqlitefile.Frame{Pgno: 2, Commit: before.Commit, Salt1: hdr.Salt1, Salt2: hdr.Salt2}
	head := make([]byte, sqlitefile.FrameHeaderSize)
	frame.Encode(head)
	frame.Cksum = hdr.FrameCksum(before.Cksum, head, page)
	frame.Encode(head)
	_, err = f.WriteAt(append(head, page...), sqlitefile.FrameOffset(last+1, hdr.PageSize))
	must(t, err)
	must(t, f.Close())
}

// The transaction of a writer that died before it published it was never committed, as long as another
// connection lives: that one closes the database without it.
func TestCommitThatWasNeverPublished(t *testing.T) {
	eachPair(t, func(p *pair) {
		t := p.t
		p.database("app.db", 10, "journal_mode=wal")
		app := sqlitetest.Start(t)
		c := app.Open(p.path("app.db"), "wal_autocheckpoint=0")
		fill(c, 3, 100)
		settle(c)
		writeUnpublished(t, p.path("app.db-wal"))
		if got := c.MustText("PRAGMA integrity_check"); got != "ok" {
			t.Error(got)
		}
		app.Exit()
		p.same("app.db", 13)
	})
}
