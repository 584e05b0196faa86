package litefs

import "time"

// lagMarks says how old the oldest transaction of a database is that a replica lacks, from looks at the log now and then:
// the head of the log at a look is all that was committed until then. So the age is too great by at most the time
// between two looks, and never too small.
type lagMarks struct {
	marks []lagMark // ascending
}

// lagMark is one look: the log's head was txid.
type lagMark struct {
	at   time.Duration // of the clock that look is given
	txid uint64
}

// maxLagMarks bounds the looks that are remembered. Where there are more, the age is too great.
const maxLagMarks = 128

// look notes the head of the log, and returns the age of the oldest transaction behind best, the newest one that a
// replica has; false where no look says: some transaction may be of any age.
func (m *lagMarks) look(now time.Duration, head, best uint64) (time.Duration, bool) {
	switch n := len(m.marks); {
	case n > 0 && m.marks[n-1].txid == head:
		m.marks[n-1].at = now // nothing was committed since
	case n < maxLagMarks:
		m.marks = append(m.marks, lagMark{now, head})
	}
	covered := 0
	for covered < len(m.marks) && m.marks[covered].txid <= best {
		covered++
	}
	if covered == 0 {
		return 0, false
	}
	m.marks = m.marks[covered-1:]
	return now - m.marks[0].at, true
}
