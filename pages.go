package litefs

import (
	"context"
	"errors"
	"fmt"

	"github.com/superfly/ltx"
)

// A node whose files are not on the primary's log need not fetch the whole
// database: both sides compare checksums, of blocks first, then of the pages in
// the blocks that differ, and the primary sends the pages that differ.
// docs/replication.md has the exchange.

// SumBlock is how many pages are compared by one checksum at first.
const SumBlock = 256

// MaxLogPositions bounds how many positions of its log a node shows.
const MaxLogPositions = 4096

// PageSums are the checksums of all pages of a database.
type PageSums struct {
	PageSize uint32   // bytes; 0: there is no database
	Sums     []uint64 // of page i+1, as ltx.ChecksumPage has them; 0 for the lock page
}

// Checksum returns the rolling checksum of the database.
func (p PageSums) Checksum() uint64 {
	sum := uint64(ltx.ChecksumFlag)
	for _, s := range p.Sums {
		sum ^= s
	}
	return sum | uint64(ltx.ChecksumFlag)
}

// Get returns the checksum of a page; 0 beyond the end.
func (p PageSums) Get(pgno uint32) uint64 {
	if pgno == 0 || int64(pgno) > int64(len(p.Sums)) {
		return 0
	}
	return p.Sums[pgno-1]
}

// Blocks returns the XOR of the checksums of each SumBlock pages. A checksum
// covers its page number, so pages that have changed places show.
func (p PageSums) Blocks() []uint64 {
	blocks := make([]uint64, SumBlocks(len(p.Sums)))
	for i, s := range p.Sums {
		blocks[i/SumBlock] ^= s
	}
	return blocks
}

// Block returns the checksums of the pages of a block.
func (p PageSums) Block(i uint32) []uint64 {
	from := min(int64(i)*SumBlock, int64(len(p.Sums)))
	return p.Sums[from:min(from+SumBlock, int64(len(p.Sums)))]
}

// SumBlocks returns in how many blocks so many pages are compared.
func SumBlocks(pages int) int { return (pages + SumBlock - 1) / SumBlock }

// DifferingBlocks returns the blocks, counted from 0, that are not the same.
func DifferingBlocks(a, b []uint64) []uint32 {
	at := func(s []uint64, i int) uint64 {
		if i < len(s) {
			return s[i]
		}
		return 0
	}
	var differ []uint32
	for i := range max(len(a), len(b)) {
		if at(a, i) != at(b, i) {
			differ = append(differ, uint32(i))
		}
	}
	return differ
}

// DifferingPages returns the pages, ascending, that are not the same on both
// sides, those that only one side has among them.
func DifferingPages(a, b PageSums) []uint32 {
	var differ []uint32
	for pgno := uint32(1); int64(pgno) <= int64(max(len(a.Sums), len(b.Sums))); pgno++ {
		if a.Get(pgno) != b.Get(pgno) {
			differ = append(differ, pgno)
		}
	}
	return differ
}

// LogPos is a position on a log, and the epoch that it was written in.
type LogPos struct {
	Epoch uint64
	Pos
}

// Relation is how the history of a node relates to that of the primary.
type Relation uint8

const (
	// RelationUnknown: the primary's log does not reach back to the node's, and
	// it does not know when the epoch of the node's newest transaction ended.
	RelationUnknown Relation = iota
	// RelationSame: all that the node has is the primary's history.
	RelationSame
	// RelationForked: the node has transactions that the primary does not have.
	RelationForked
)

func (r Relation) String() string {
	switch r {
	case RelationSame:
		return "same"
	case RelationForked:
		return "forked"
	default:
		return "unknown"
	}
}

// PagesMode says how far an exchange goes.
type PagesMode uint8

const (
	PagesLocate PagesMode = iota // the relation of the histories alone
	PagesList                    // and which pages differ
	PagesFetch                   // and what they are on the primary
)

// PagesQuery is what a node asks of its primary.
type PagesQuery struct {
	Mode PagesMode
	DBID uint32
	Log  []LogPos // positions of the node's log, newest first
	Have PageSums // of its files; empty with PagesLocate
}

// PagesAnswer is what the primary answers.
type PagesAnswer struct {
	Relation Relation
	Common   uint64 // with RelationForked: the last transaction that both have; 0 if none is known
	Pos      Pos    // of the primary when it compared

	Pgnos []uint32 // with PagesList: pages that differ, ascending

	// LTX, with PagesFetch, takes the node from the files that it showed to the
	// primary's position, in one step. It is read before it is closed, and read
	// in time: the primary waits for it.
	LTX *LTXReader

	// Wire counts bytes of the exchange, in both directions, before the LTX file.
	Wire int64
}

// PageClient is what a Client may be beside: it compares pages with another
// node. Without it a node that must rejoin fetches whole databases.
type PageClient interface {
	// Pages asks the node at rawurl. ErrSnapshotNeeded: too many pages differ, or
	// the pages have another size.
	Pages(ctx context.Context, rawurl string, q PagesQuery) (*PagesAnswer, error)
}

var errNoPageClient = errors.New("the client of this store compares no pages")

// tooMany reports whether so many pages that differ are fetched better with the
// rest of the database: a snapshot is resumed after a cut, and compresses as well.
func tooMany(differ, pages int) bool { return differ > SumBlock && differ > pages/2 }

// TooManyPages is the error for that.
func TooManyPages(differ, pages int) error {
	if !tooMany(differ, pages) {
		return nil
	}
	return fmt.Errorf("%d of %d pages differ: %w", differ, pages, ErrSnapshotNeeded)
}
