package litefs

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/litefs/litefs/internal/durable"
	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/vfs"
)

// epochStart says with which transaction an epoch began to write a database.
type epochStart struct{ epoch, txid uint64 }

// epochs is when each primary began to write a database, oldest first, both
// numbers growing. The log forgets its entries; this does not forget where a
// history may have forked: what a node has of an epoch beyond the start of the
// next one is not on this history.
type epochs []epochStart

// maxEpochs bounds the list; what is older is unknown.
const maxEpochs = 1024

// end returns the last transaction that an epoch wrote, given the newest one of
// all; false when the list does not tell.
func (s epochs) end(epoch, newest uint64) (uint64, bool) {
	if len(s) == 0 || epoch < s[0].epoch {
		return 0, false
	}
	for _, next := range s {
		if next.epoch > epoch {
			return next.txid - 1, true
		}
	}
	return newest, true
}

// with returns the list after an entry: one that follows what was there, or one
// with every page, or one that joins nothing, which hide when the epochs before
// theirs ended.
func (s epochs) with(e ltxlog.Entry, follows bool) epochs {
	if !follows {
		return epochs{{e.Epoch, e.Max}}
	}
	if len(s) > 0 && s[len(s)-1].epoch >= e.Epoch {
		return s
	}
	s = append(slices.Clip(s), epochStart{e.Epoch, e.Min})
	return s[max(0, len(s)-maxEpochs):]
}

// locate decides how a node's history relates to ours. theirs are positions of
// its log, newest first; entries are our log.
func (s epochs) locate(theirs []LogPos, entries []ltxlog.Entry) (Relation, uint64) {
	if len(theirs) == 0 {
		return RelationSame, 0 // it has nothing
	}
	if len(entries) == 0 {
		return RelationForked, 0
	}
	first, head := entries[0], entries[len(entries)-1]
	ends := make(map[uint64]uint64, len(entries))
	for _, e := range entries {
		ends[e.Max] = e.Post
	}
	// The first entry's Pre proves what is equal to it, and nothing else: after a
	// fork it is the checksum of files that were given up.
	before := Pos{TXID: first.Min - 1, Chksum: first.Pre}
	for i, p := range theirs {
		sum, ok := ends[p.TXID]
		if ok && sum == p.Chksum || p.Pos == before && first.Min > 1 {
			if i == 0 {
				return RelationSame, 0
			}
			return RelationForked, p.TXID
		}
	}
	// No position is on both logs. The epochs tell, unless the log says otherwise.
	newest := theirs[0]
	if _, contradicted := ends[newest.TXID]; contradicted {
		return RelationForked, s.common(theirs, head.Max)
	}
	end, ok := s.end(newest.Epoch, head.Max)
	switch {
	case !ok:
		return RelationUnknown, 0
	case newest.TXID <= end:
		return RelationSame, 0
	default:
		return RelationForked, s.common(theirs, head.Max)
	}
}

// common returns the newest of the positions that the epochs vouch for, 0 for none.
func (s epochs) common(theirs []LogPos, newest uint64) uint64 {
	for _, p := range theirs[1:] {
		if end, ok := s.end(p.Epoch, newest); ok && p.Epoch < theirs[0].Epoch && p.TXID <= end {
			return p.TXID
		}
	}
	return 0
}

// epochFile keeps the list of a database. Its own lock lets the log be imported
// to, from the network, without DB.mu.
type epochFile struct {
	path string

	mu   sync.Mutex // guards everything below
	list epochs
}

func (db *DB) epochsPath() string { return filepath.Join(db.dir, "epochs") }

// openEpochs reads the list, and adds what the log knows better.
func (db *DB) openEpochs() error {
	f := &db.epochList
	f.mu.Lock()
	defer f.mu.Unlock()
	f.path = db.epochsPath()
	b, err := os.ReadFile(f.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("epochs: %w", err)
	}
	if f.list, err = parseEpochs(string(b)); err != nil {
		// Without it a fork is suspected where there is none, and kept.
		db.log().Warn("the list of epochs is damaged and begins anew", "error", err)
	}
	for i, e := range db.txlog.Entries() {
		// A snapshot may have come from another history than the list.
		f.list = f.list.with(e, i > 0 || e.Min > 1 || e.Max == 1)
	}
	return nil
}

func parseEpochs(text string) (epochs, error) {
	var list epochs
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		var e epochStart
		if _, err := fmt.Sscanf(lines.Text(), "%d %d", &e.epoch, &e.txid); err != nil {
			return nil, fmt.Errorf("line %q: %w", lines.Text(), err)
		}
		if n := len(list); n == maxEpochs || n > 0 && (list[n-1].epoch >= e.epoch || list[n-1].txid > e.txid) {
			return nil, fmt.Errorf("line %q does not follow", lines.Text())
		}
		list = append(list, e)
	}
	return list, lines.Err()
}

// note records, durably, with which transaction an epoch begins. It comes
// before the entry is in the log: an epoch that then wrote nothing does no harm.
func (f *epochFile) note(e ltxlog.Entry, follows bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.list); follows && n > 0 && f.list[n-1].epoch >= e.Epoch {
		return nil
	}
	list := f.list.with(e, follows)
	if slices.Equal(list, f.list) {
		return nil
	}
	var b strings.Builder
	for _, s := range list {
		fmt.Fprintf(&b, "%d %d\n", s.epoch, s.txid)
	}
	if err := durable.Replace(vfs.OS(), f.path, []byte(b.String())); err != nil {
		return fmt.Errorf("epochs: %w", err)
	}
	f.list = list
	return nil
}

func (f *epochFile) get() epochs {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.list
}
