package ltxlog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/superfly/ltx"
)

// Compaction says which entries are merged.
type Compaction struct {
	// MaxBytes is the most that the entries merged into one may have together, and so about the
	// largest result. They are held in memory. 0: 4 MiB; capped at 64 MiB.
	MaxBytes int64
	// MinEntries is the shortest run worth merging. 0: 16.
	MinEntries int
	// Before protects entries with Max >= Before: a follower whose position falls inside a merged
	// entry cannot continue from the log. 0: only the newest entry is protected.
	Before uint64
	// Cuts are TXIDs before which a merged entry ends: a follower that goes on from there, however far
	// it is behind, finds an entry that begins with it, and gets what follows in few large ones.
	Cuts []uint64
}

const maxCompaction = 64 << 20

func (c *Compaction) ensureDefaults() {
	if c.MaxBytes == 0 {
		c.MaxBytes = 4 << 20
	}
	c.MaxBytes = min(c.MaxBytes, maxCompaction)
	if c.MinEntries == 0 {
		c.MinEntries = 16
	}
	c.MinEntries = max(c.MinEntries, 2)
}

// Compact merges runs of small adjacent entries into one entry each and returns how many entries
// went. The newest entry stays as it is, for recovery finds the end of the captured WAL by it.
// A merged entry has Min and Pre of its first, everything else of its last part, and the newest
// content of each page. Entries of different epochs or page sizes are not merged, nor is one that
// drops the database. Nor is one that takes another back, nor that other one: an archive may have the transaction that
// was refused, and is to be told of it. Appends go on meanwhile.
//
// ltx.Compactor is not used: it forgets epoch and WAL position, and brings back old content of a
// page that was cut off and added again without being written.
func (l *Log) Compact(c Compaction) (merged int, err error) {
	c.ensureDefaults()
	l.compact.Lock()
	defer l.compact.Unlock()
	if err := l.startCompaction(); err != nil {
		return 0, fmt.Errorf("compact transaction log: %w", err)
	}
	for _, r := range planCompaction(l.Entries(), c) {
		err := l.merge(r)
		if errors.Is(err, ErrNotFound) {
			continue // truncated, retired or replaced meanwhile: nothing to merge there
		}
		if err != nil {
			return merged, fmt.Errorf("compact %s to %s: %w", entryName(r[0].Min, r[0].Max), entryName(r[len(r)-1].Min, r[len(r)-1].Max), err)
		}
		merged += len(r) - 1
	}
	return merged, nil
}

// startCompaction removes what an earlier one may have left, so that nobody does it later, when
// the temporary file is in use again.
func (l *Log) startCompaction() error {
	l.change.Lock()
	defer l.change.Unlock()
	return l.ready()
}

// planCompaction returns the runs to merge, oldest first.
func planCompaction(entries []Entry, c Compaction) [][]Entry {
	var runs [][]Entry
	var run []Entry
	var bytes int64
	end := func() {
		if len(run) >= c.MinEntries {
			runs = append(runs, run)
		}
		run, bytes = nil, 0
	}
	for i, e := range entries {
		if i == len(entries)-1 || (c.Before > 0 && e.Max >= c.Before) {
			break
		}
		if e.Commit == 0 || e.Size > c.MaxBytes || entries[i+1].TakesBack(e) || i > 0 && e.TakesBack(entries[i-1]) {
			end()
			continue
		}
		if slices.Contains(c.Cuts, e.Min) {
			end()
		}
		if len(run) > 0 && (e.Epoch != run[0].Epoch || e.PageSize != run[0].PageSize || bytes+e.Size > c.MaxBytes) {
			end()
		}
		run = append(run, e)
		bytes += e.Size
	}
	end()
	return runs
}

// merge replaces a run by one entry, which is made without holding up anybody. ErrNotFound: the
// run was changed meanwhile.
func (l *Log) merge(run []Entry) error {
	w := l.newWriter(compactTemp)
	e, err := l.encodeMerged(w, run)

	l.change.Lock()
	defer l.change.Unlock()
	defer w.discard()
	if err != nil {
		return err
	}
	if err := l.ready(); err != nil {
		return err
	}
	l.sync.Lock()
	defer l.sync.Unlock()
	if err := l.syncLocked(); err != nil {
		return err // the merged entry must not be durable before those in front of it
	}
	entries := l.Entries()
	i := slices.Index(entries, run[0])
	if i < 0 || len(entries)-i <= len(run) || !slices.Equal(entries[i:i+len(run)], run) {
		return ErrNotFound
	}
	if err := l.putDurable(e, w, true); err != nil {
		return err
	}
	l.mu.Lock()
	l.mu.entries = slices.Replace(entries, i, i+len(run), e)
	l.mu.Unlock()
	l.retireCovered(run)
	return nil
}

// encodeMerged makes the merged entry in the temporary file of w.
func (l *Log) encodeMerged(w *writer, run []Entry) (Entry, error) {
	m, err := l.load(run)
	if err != nil {
		return Entry{}, err
	}
	h := m.header()
	if err := encode(w, h, m.pages, m.last.Post); err != nil {
		return Entry{}, err
	}
	return h.entry(m.last.Post, w.enc.n), w.finishTemp(true)
}

// merger is a run of entries in memory and where the newest content of each page is.
type merger struct {
	first, last Entry
	files       [][]byte
	newest      map[uint32]frameRef
	floor       uint32 // fewest pages the database had in between
	data        []byte
}

type frameRef struct {
	file         int
	offset, size int64
}

// load reads and verifies a run.
func (l *Log) load(run []Entry) (*merger, error) {
	m := &merger{
		first: run[0], last: run[len(run)-1],
		newest: map[uint32]frameRef{}, floor: run[0].Commit, data: make([]byte, run[0].PageSize),
	}
	if m.first.IsSnapshot() {
		m.floor = 0
	}
	for i, e := range run {
		b, err := l.readEntry(e)
		if err != nil {
			return nil, err
		}
		m.files = append(m.files, b)
		if e.Commit < m.floor {
			m.floor = e.Commit
		}
		for pgno := range m.newest {
			if pgno > e.Commit {
				delete(m.newest, pgno) // cut off: older content is gone for good
			}
		}
		_, err = l.buffers.decode(bytes.NewReader(b), e.Size, nil, func(f frame) error {
			m.newest[f.pgno] = frameRef{file: i, offset: f.offset, size: f.size}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", entryName(e.Min, e.Max), err)
		}
	}
	return m, nil
}

func (l *Log) readEntry(e Entry) ([]byte, error) {
	f, err := l.OpenEntry(e)
	if err != nil {
		return nil, err
	}
	b := make([]byte, e.Size)
	if _, err := io.ReadFull(f, b); err != nil {
		_ = f.Close() // opened for reading
		return nil, fmt.Errorf("read %s: %w", entryName(e.Min, e.Max), announced(err, e.Size))
	}
	return b, f.Close()
}

func (m *merger) header() Header {
	return Header{
		Min: m.first.Min, Max: m.last.Max, Pre: m.first.Pre,
		Commit: m.last.Commit, PageSize: m.last.PageSize,
		Epoch: m.last.Epoch, Timestamp: m.last.Timestamp,
		WALOffset: m.last.WALOffset, WALSize: m.last.WALSize, Salt1: m.last.Salt1, Salt2: m.last.Salt2,
	}
}

// pages emits the newest content of each page. A page above the floor that nobody wrote since is
// zero, and must be said to be: the reader of the merged entry may hold older content of it.
func (m *merger) pages(emit func(uint32, []byte) error) error {
	zero := make([]byte, m.last.PageSize)
	lockPgno := ltx.LockPgno(m.last.PageSize)
	for pgno := m.floor + 1; pgno <= m.last.Commit; pgno++ {
		if _, ok := m.newest[pgno]; !ok && pgno != lockPgno {
			m.newest[pgno] = frameRef{}
		}
	}
	for _, pgno := range sortedKeys(m.newest) {
		ref := m.newest[pgno]
		if ref.size == 0 {
			if err := emit(pgno, zero); err != nil {
				return err
			}
			continue
		}
		if err := decompress(m.data, m.files[ref.file][ref.offset+framePrefix:ref.offset+ref.size]); err != nil {
			return corrupt("page %d: %w", pgno, err)
		}
		if err := emit(pgno, m.data); err != nil {
			return err
		}
	}
	return nil
}

func sortedKeys(m map[uint32]frameRef) []uint32 {
	keys := make([]uint32, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
