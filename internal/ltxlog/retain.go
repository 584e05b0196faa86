package ltxlog

import (
	"fmt"
	"time"
)

// Retention says which entries may go. Zero fields set no limit; with both zero nothing goes.
type Retention struct {
	MaxAge   time.Duration // entries older than this go
	MaxBytes int64         // the oldest go until the log is not larger on the disk
	KeepFrom uint64        // entries that contain this TXID or a later one stay; 0: none is needed
}

// Retain removes the oldest entries that the limits and KeepFrom let go, and returns how many
// entries and bytes went. The newest entry always stays. Afterwards the log may start with an
// entry that is not a snapshot.
//
// After a power cut an entry may be back, and goes the next time. That the log is then still a
// chain leans on the file system recording removals in their order, as ext4, XFS and btrfs do.
func (l *Log) Retain(now time.Time, limits Retention) (entries int, bytes int64, err error) {
	l.change.Lock()
	defer l.change.Unlock()
	if err := l.ready(); err != nil {
		return 0, 0, fmt.Errorf("retain transaction log: %w", err)
	}
	l.sync.Lock()
	defer l.sync.Unlock()
	list := l.Entries()
	n := expired(list, l.onDisk(list), now, limits)
	if n == 0 {
		return 0, 0, nil
	}
	// What stays must be durable before what is durable goes: else a power cut could leave nothing.
	if err := l.syncLocked(); err != nil {
		return 0, 0, fmt.Errorf("retain transaction log: %w", err)
	}
	for i := range n {
		l.mu.RLock()
		rest := l.mu.entries[1:]
		l.mu.RUnlock()
		if err := l.unlist(rest, list[i:i+1], func(gone []Entry) error { return l.retire(gone[0]) }); err != nil {
			return entries, bytes, fmt.Errorf("retain transaction log: %w", err)
		}
		entries++
		bytes += list[i].Size
	}
	if err := l.releaseSpares(); err != nil {
		return entries, bytes, fmt.Errorf("retain transaction log: %w", err)
	}
	return entries, bytes, nil
}

// onDisk returns, for each entry, the bytes that the disk has again when it goes after all those before it. Those of a pack
// are its last one's.
func (l *Log) onDisk(entries []Entry) []int64 {
	bytes := make([]int64, len(entries))
	last := make(map[*pack]int)
	for i, e := range entries {
		p := l.placeOf(e).pack
		if p == nil {
			bytes[i] = e.Size
			continue
		}
		if before, ok := last[p]; ok {
			bytes[before] = 0
		}
		last[p], bytes[i] = i, p.size
	}
	return bytes
}

// expired returns how many of the oldest entries may go.
func expired(entries []Entry, onDisk []int64, now time.Time, limits Retention) int {
	var total int64
	for _, n := range onDisk {
		total += n
	}
	n := 0
	for i, e := range entries[:max(0, len(entries)-1)] {
		old := limits.MaxAge > 0 && now.Sub(e.Timestamp) > limits.MaxAge
		large := limits.MaxBytes > 0 && total > limits.MaxBytes
		needed := limits.KeepFrom > 0 && e.Max >= limits.KeepFrom
		if needed || !(old || large) {
			break
		}
		total -= onDisk[i]
		if old || onDisk[i] > 0 {
			n = i + 1 // else it goes with the last one of its pack, if that goes
		}
	}
	return n
}
