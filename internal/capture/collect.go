package capture

import (
	"cmp"
	"slices"

	"github.com/litefs/litefs/sqlitefile"
)

// minCompact is the length from which on a page list is compacted as it grows.
const minCompact = 8192

// pageList holds frames of pages, 8 bytes each. It forgets older frames of a
// page when it has doubled since it last did, so its length stays within twice
// the number of different pages, however many transactions wrote them.
type pageList struct {
	frames    []PageFrame
	compactAt int
}

func (l *pageList) add(frames ...PageFrame) {
	l.frames = append(l.frames, frames...)
	if len(l.frames) >= max(minCompact, l.compactAt) {
		l.compact()
		l.compactAt = 2 * len(l.frames)
	}
}

// compact sorts by page and keeps the newest frame of each.
func (l *pageList) compact() {
	slices.SortFunc(l.frames, func(a, b PageFrame) int {
		if c := cmp.Compare(a.Pgno, b.Pgno); c != 0 {
			return c
		}
		return cmp.Compare(b.Frame, a.Frame)
	})
	l.frames = slices.CompactFunc(l.frames, func(a, b PageFrame) bool { return a.Pgno == b.Pgno })
}

// collector gathers frames in the order of the WAL.
type collector struct {
	committed pageList
	open      pageList // of the transaction that has not ended
	commits   uint64
	last      sqlitefile.Frame // newest commit frame
	lastFrame uint32
}

func (c *collector) add(frame uint32, f sqlitefile.Frame) {
	c.open.add(PageFrame{f.Pgno, frame})
	if f.Commit == 0 {
		return
	}
	if len(c.committed.frames) == 0 {
		c.committed, c.open = c.open, c.committed // one big transaction is not copied
	} else {
		c.committed.add(c.open.frames...)
		c.open.frames = c.open.frames[:0]
	}
	c.commits++
	c.last, c.lastFrame = f, frame
}

// batch returns the committed transactions. A page that an earlier one of them
// cut off and a later one brought back without writing it keeps its old frame:
// SQLite reads and checkpoints it from there.
func (c *collector) batch(h sqlitefile.WALHeader, from WALPos) Batch {
	if c.commits == 0 {
		return empty(from)
	}
	c.committed.compact()
	lock := sqlitefile.LockPgno(h.PageSize)
	return Batch{
		From:      from,
		To:        WALPos{Salt1: h.Salt1, Salt2: h.Salt2, Frame: c.lastFrame, Cksum: c.last.Cksum},
		Commits:   c.commits,
		PageSize:  h.PageSize,
		PageCount: c.last.Commit,
		Pages: slices.DeleteFunc(c.committed.frames, func(p PageFrame) bool {
			return p.Pgno > c.last.Commit || p.Pgno == lock
		}),
	}
}
