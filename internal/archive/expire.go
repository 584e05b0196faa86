package archive

import (
	"cmp"
	"slices"
	"time"
)

// Limits say what may leave an archive. Zero fields set no limit.
type Limits struct {
	Before time.Time // moments before it need not be given
	Count  int       // snapshots that stay at most
	Size   int64     // bytes of the history; the newest snapshot and what follows it stay

	// RawBefore lets objects of level 0 go that an older object of level 1 covers. Those in front of the oldest snapshot stay
	// until they are older too: their names are free when they go, and a writer that has not looked for long would take
	// them. Zero: the ones stay, the others go.
	RawBefore time.Time
}

// Expired returns the objects that may go. What stays gives its newest moment, whatever the limits, and
// every moment from the oldest snapshot that stays on that it gave before, but for those of level 0
// whose time is over.
func Expired(objects []Object, l Limits) []Object {
	var snapshots, runs []Object
	for _, o := range objects {
		switch o.Level {
		case LevelSnapshot:
			snapshots = append(snapshots, o)
		case LevelRaw + 1:
			runs = append(runs, o)
		}
	}
	slices.SortFunc(snapshots, byMax)
	slices.SortFunc(runs, byMax)
	var start uint64 // Max of the oldest snapshot that stays; 0: everything stays
	if i := oldest(snapshots, objects, l); i >= 0 {
		start = snapshots[i].Max
	}
	var gone []Object
	for _, o := range objects {
		switch {
		case o.Level == LevelSnapshot && o.Max < start,
			o.Level != LevelSnapshot && o.Level != LevelRaw && o.Max <= start,
			o.Level == LevelRaw && o.Max <= start && (l.RawBefore.IsZero() || o.Modified.Before(l.RawBefore)),
			o.Level == LevelRaw && covered(runs, o.Max, l.RawBefore):
			gone = append(gone, o)
		}
	}
	return gone
}

func byMax(a, b Object) int { return cmp.Compare(a.Max, b.Max) }

// oldest returns which of the snapshots, ascending, is the oldest to stay; -1: all objects stay.
func oldest(snapshots, objects []Object, l Limits) int {
	from := -1
	for i, s := range snapshots {
		if s.Modified.Before(l.Before) {
			from = i // whatever is asked for after Before begins at the latest here
		}
	}
	if l.Count > 0 && len(snapshots) > l.Count {
		from = max(from, len(snapshots)-l.Count)
	}
	for l.Size > 0 && from < len(snapshots)-1 && sizeFrom(objects, snapshots, from) > l.Size {
		from++
	}
	return from
}

// sizeFrom is how many bytes stay when the i-th snapshot is the oldest.
func sizeFrom(objects, snapshots []Object, i int) (size int64) {
	var start uint64
	if i >= 0 {
		start = snapshots[i].Max
	}
	for _, o := range objects {
		if o.Max > start || o.Level == LevelSnapshot && o.Max == start {
			size += o.Size
		}
	}
	return size
}

// covered says whether one of the runs, ascending, has a moment inside and is as a whole older than
// before: of a run all raw objects stay or none, for the later ones follow the earlier.
func covered(runs []Object, moment uint64, before time.Time) bool {
	i, _ := slices.BinarySearchFunc(runs, moment, func(o Object, m uint64) int { return cmp.Compare(o.Max, m) })
	return i < len(runs) && runs[i].Min <= moment && runs[i].Modified.Before(before)
}
