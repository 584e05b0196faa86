package consul

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// holder is what the key holds: LiteFS's fields, and what a candidate must know to take over.
type holder struct {
	Hostname string `json:"hostname"`
	URL      string `json:"advertise-url"`

	// TTL and LockDelay are the holder's own: its lease ends by them, whatever this node's
	// configuration says.
	TTL       string `json:"ttl,omitempty"`
	LockDelay string `json:"lock-delay,omitempty"`

	// Renewals makes each renewal a change: Consul does not write a value that is there already, and
	// the key would seem to stand still.
	Renewals uint64 `json:"renewals"`
}

// holder is who holds the key. A key of LiteFS has no TTL in it.
func (e entry) holder() (holder, error) {
	var h holder
	if err := json.Unmarshal(e.Value, &h); err != nil {
		return h, fmt.Errorf("does not say who the primary is: %w", err)
	}
	if h.URL == "" {
		return h, errors.New("does not say who the primary is: it has no advertise-url")
	}
	return h, nil
}

// ends is how long after its last renewal another node may have the lease; false when the holder has
// not said so, and then Consul alone ends it.
func (h holder) ends(ttl, lockDelay time.Duration) (time.Duration, bool) {
	t, err := time.ParseDuration(h.TTL)
	if err != nil || t <= 0 {
		return 0, false
	}
	d, err := time.ParseDuration(h.LockDelay)
	if err != nil || d < 0 {
		return 0, false
	}
	return max(t, ttl) + max(d, lockDelay), true
}

// never is longer than anybody waits, and no overflow when added to a clock.
const never = 365 * 24 * time.Hour

// sighting is one state of the key and since when this node has seen it. A holder sends its renewal
// before it is in the key, and it is in the key before it is seen: so by the holder's own clock the
// lease has ended once it was seen unchanged for a TTL. The lock-delay on top allows for clocks that
// do not run equally fast.
type sighting struct {
	session string
	index   uint64
	since   time.Duration
}

// note takes the state of the key as it was seen at now and returns how much longer it must be seen in
// this state before it may be taken; ttl and lockDelay are this node's own.
func (s *sighting) note(e entry, now, ttl, lockDelay time.Duration) time.Duration {
	if s.session != e.Session || s.index != e.ModifyIndex {
		*s = sighting{session: e.Session, index: e.ModifyIndex, since: now}
	}
	h, err := e.holder()
	if err != nil {
		return never
	}
	ends, ok := h.ends(ttl, lockDelay)
	if !ok {
		return never
	}
	return s.since + ends - now
}
