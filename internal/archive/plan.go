package archive

import (
	"cmp"
	"fmt"
	"slices"
)

// Plan returns the objects that make the database as of moment target, in the order in which they are
// applied: the first holds every page, each of the others begins at or before the moment after the one
// before it. 0 as target is the newest moment.
//
// What is asked of each step is the object that reaches furthest, of any level: then damage or a hole
// at one level does no harm where another covers it.
func Plan(objects []Object, target uint64) ([]Object, error) {
	if target == 0 {
		for _, o := range objects {
			target = max(target, o.Max)
		}
	}
	if target == 0 {
		return nil, fmt.Errorf("%w: it has no objects", ErrNoPlan)
	}
	var plan []Object
	for at := uint64(0); at < target; {
		best := Object{}
		for _, o := range objects {
			if o.Min > at+1 || o.Max <= at || o.Max > target {
				continue
			}
			// The first must hold every page: those that begin with moment 1 do.
			if at == 0 && o.Min != 1 {
				continue
			}
			if o.Max > best.Max || o.Max == best.Max && better(o, best) {
				best = o
			}
		}
		if best.Max == 0 {
			return nil, &GapError{Target: target, After: at}
		}
		plan = append(plan, best)
		at = best.Max
	}
	return plan, nil
}

// better prefers, of two objects that reach as far, the one with less to read.
func better(a, b Object) bool {
	if a.Min != b.Min {
		return a.Min > b.Min
	}
	return a.Level > b.Level
}

// GapError says between which moments objects are missing. It matches ErrNoPlan.
type GapError struct{ Target, After uint64 }

func (e *GapError) Error() string {
	if e.After == 0 {
		return fmt.Sprintf("%s: no object with every page leads to moment %d", ErrNoPlan, e.Target)
	}
	return fmt.Sprintf("%s: moment %d is reached, and no object leads on from there to moment %d", ErrNoPlan, e.After, e.Target)
}
func (e *GapError) Unwrap() error { return ErrNoPlan }

// Moments returns the moments that a listing can give, ascending.
func Moments(objects []Object) []uint64 {
	sorted := slices.Clone(objects)
	slices.SortFunc(sorted, func(a, b Object) int { return cmp.Or(cmp.Compare(a.Max, b.Max), cmp.Compare(a.Min, b.Min)) })
	reached := map[uint64]bool{0: true}
	best := []uint64{0} // reached moments, ascending
	for _, o := range sorted {
		if reached[o.Max] {
			continue
		}
		// Reachable from a moment m with Min-1 <= m < Max; one that begins with moment 1 from nothing.
		i, _ := slices.BinarySearch(best, o.Min-1)
		if o.Min == 1 || i < len(best) && best[i] < o.Max {
			reached[o.Max] = true
			best = append(best, o.Max)
		}
	}
	return best[1:]
}
