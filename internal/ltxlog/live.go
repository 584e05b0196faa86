package ltxlog

import "sync"

// Entries that were just added are what followers ask for: their bytes stay in memory for a moment, so
// that nobody reads from the disk what was written a millisecond ago.
const (
	maxLive      = 256 << 10 // bytes, for each log
	maxLiveEntry = 64 << 10  // bytes of one entry that is kept
)

// live is the bytes of the newest entries. An entry that is not listed any more is not given out, so
// nobody has to take it from here.
type live struct {
	mu      sync.Mutex
	entries []liveEntry // in the order in which they were added
	bytes   int
	old     int // of entries: those that were here at the last Sync
}

type liveEntry struct {
	min, max, post uint64
	data           []byte // never changed
}

// keep adds an entry whose bytes the caller goes on to use.
func (v *live) keep(e Entry, data []byte) {
	if int64(len(data)) != e.Size || len(data) > maxLiveEntry {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.entries = append(v.entries, liveEntry{e.Min, e.Max, e.Post, append([]byte(nil), data...)})
	v.bytes += len(data)
	n := 0
	for v.bytes > maxLive {
		v.bytes -= len(v.entries[n].data)
		n++
	}
	v.drop(n)
}

// age drops what was here at the last call already: a log that is not written to holds on to nothing.
func (v *live) age() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, e := range v.entries[:v.old] {
		v.bytes -= len(e.data)
	}
	v.drop(v.old)
	v.old = len(v.entries)
}

// drop removes the first n entries. v.mu is held.
func (v *live) drop(n int) {
	clear(v.entries[:n])
	v.entries = v.entries[n:]
	v.old = max(0, v.old-n)
	if len(v.entries) == 0 {
		v.entries = nil
	}
}

func (v *live) find(e Entry) ([]byte, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i := len(v.entries) - 1; i >= 0; i-- {
		if l := v.entries[i]; l.min == e.Min && l.max == e.Max && l.post == e.Post {
			return l.data, true
		}
	}
	return nil, false
}

// Live returns the bytes of an entry that is listed, if they are in memory. They must not be changed.
func (l *Log) Live(e Entry) ([]byte, bool) {
	l.mu.RLock()
	have, ok := find(l.mu.entries, e.Min)
	ok = ok && !l.mu.closed && have.Min == e.Min && have.Max == e.Max && have.Post == e.Post
	l.mu.RUnlock()
	if !ok {
		return nil, false
	}
	return l.live.find(e)
}
