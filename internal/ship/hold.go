package ship

import (
	"slices"
	"time"
)

// While a place takes nothing the log keeps what it lacks. Hold bounds that.

// Hold is how much the logs of a node keep for a place. The zero value is no bound.
type Hold struct {
	Bytes  int64 // 0: no bound
	GiveUp bool  // beyond it the log is kept no more for the place; else nobody commits until the place has taken something
}

// holdWarn is how much is kept without a word where there is no bound; the next word comes at twice as much.
const holdWarn int64 = 1 << 30

// lookAtHeld looks at how much is kept for the place. It is called by run alone.
func (t *target) lookAtHeld(now time.Time) {
	if now.Sub(t.heldAt) < min(5*time.Second, 5*t.opt.Interval) {
		return
	}
	t.heldAt = now
	held := t.held()
	t.mu.Lock()
	defer t.mu.Unlock()
	h, above := t.place.Hold, t.above
	t.above = held > h.Bytes
	switch {
	case held < holdWarn/2 && t.mu.err == nil:
		t.mu.told = 0
	case held >= max(holdWarn, 2*t.mu.told) && !t.mu.over:
		t.mu.told = held
		t.logger.Warn("the log is kept for an archive that lacks it, and grows; see why it does not take it, or bound it with backup.hold", "bytes", held, "hold", h.Bytes, "error", t.mu.err)
	}
	was := t.mu.over
	switch {
	case h.Bytes == 0:
	case t.above && above: // at two looks: a large transaction is on its way, perhaps
		t.mu.over = true
	case t.above:
	case t.mu.err == nil || !t.opt.Source.IsPrimary(): // a log that is not kept any more becomes shorter by itself
		t.mu.over = false
	}
	switch over := t.mu.over; {
	case over == was:
	case over && h.GiveUp:
		t.logger.Error("an archive lacks more than backup.hold: it is given up, and the log is not kept for it. When it takes something again it gets all of each database, and what was between is not in it", "bytes", held, "hold", h.Bytes, "error", t.mu.err)
	case over:
		t.logger.Error("an archive lacks more than backup.hold: nobody commits until it has taken something", "bytes", held, "hold", h.Bytes, "error", t.mu.err)
	default:
		t.logger.Warn("an archive lacks less than backup.hold again", "bytes", held, "hold", h.Bytes, "was-given-up", h.GiveUp)
	}
}

// held are the bytes of the logs that the place lacks, as far as that is known, or the place does not say.
func (t *target) held() (bytes int64) {
	if !t.opt.Source.IsPrimary() {
		return 0
	}
	t.mu.Lock()
	fails := t.mu.err != nil
	t.mu.Unlock()
	for _, db := range t.opt.Source.Databases() {
		if from := slices.Min(t.lacksFrom(db.ID())); from > 1 || fails {
			bytes += db.LogBytes(from)
		}
	}
	return bytes
}

// Full is litefs.Archive's.
func (s *Shipper) Full() (place string) {
	for _, t := range s.targets {
		t.mu.Lock()
		over := t.mu.over
		t.mu.Unlock()
		if over && !t.place.Hold.GiveUp {
			return t.place.Store.String()
		}
	}
	return ""
}

// overText says what happens for a place that lacks more than it may; "" while it does not. mu is held.
func (t *target) overText() string {
	switch {
	case !t.mu.over:
		return ""
	case t.place.Hold.GiveUp:
		return "it is given up, and the log is not kept for it"
	}
	return "nobody commits until it has taken something"
}
