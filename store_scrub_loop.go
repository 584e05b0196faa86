package litefs

import (
	"errors"
	"time"
)

// backgroundScrubRate is how much a scrub in the background reads, in bytes a
// second: what every disk has to spare.
const backgroundScrubRate = 8 << 20

// scrubLoop scrubs all databases, one after the other, each ScrubInterval. What
// is wrong is logged and counted as with a scrub that was asked for; nothing is
// mended by itself.
func (s *Store) scrubLoop() {
	ticker := time.NewTicker(s.ScrubInterval)
	defer ticker.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-ticker.C:
		}
		for _, db := range s.DBs() {
			s.scrubInBackground(db)
		}
	}
}

func (s *Store) scrubInBackground(db *DB) {
	report, err := s.Scrub(s.ctx, db.Name(), ScrubOptions{Rate: backgroundScrubRate})
	switch {
	case s.ctx.Err() != nil, errors.Is(err, ErrDatabaseNotFound): // dropped, or renamed, meanwhile
	case errors.Is(err, ErrBusy):
		db.log().Info("not scrubbed in the background this time: another scrub is at work")
	case err != nil:
		db.log().Error("cannot be scrubbed in the background; tried again the next time", "error", err)
	default:
		db.log().Info("scrubbed in the background", "pos", report.Pos, "pages", report.Pages, "entries", report.Entries, "faults", len(report.Faults))
	}
}
