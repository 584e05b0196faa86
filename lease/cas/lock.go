package cas

import (
	"encoding/json"
	"fmt"
	"time"
)

// Lock is the document that says who has the lease. Each renewal changes it.
type Lock struct {
	// ID is drawn for each lease: no two documents of two leases are the same. Empty: nobody has it.
	ID string `json:"id,omitempty"`

	// Token is that of the lease, or, where nobody has it, of the last one. Zero in a store with Numbered.
	Token uint64 `json:"token,omitempty"`

	Hostname string `json:"hostname,omitempty"`
	URL      string `json:"advertise-url,omitempty"`

	// TTL and LockDelay are the holder's own: its lease ends by them, whatever this node's
	// configuration says.
	TTL       string `json:"ttl,omitempty"`
	LockDelay string `json:"lock-delay,omitempty"`

	Renewals uint64 `json:"renewals,omitempty"`
}

// Held reports whether somebody has the lease.
func (k Lock) Held() bool { return k.ID != "" }

// Encode is the document.
func (k Lock) Encode() []byte {
	// A struct of strings and numbers has no error.
	b, _ := json.Marshal(k)
	return b
}

// DecodeLock reads the document; one that is not there is nobody's.
func DecodeLock(value []byte) (k Lock, err error) {
	if value == nil {
		return Lock{}, nil
	}
	if err := json.Unmarshal(value, &k); err != nil {
		return Lock{}, fmt.Errorf("does not say who has the lease: %w", err)
	}
	return k, nil
}

// ends is how long after it was written another node may have the lease; ttl and lockDelay are that
// node's own. false: the document does not say so, and nobody may take it.
func (k Lock) ends(ttl, lockDelay time.Duration) (time.Duration, bool) {
	t, err := time.ParseDuration(k.TTL)
	if err != nil || t <= 0 {
		return 0, false
	}
	d, err := time.ParseDuration(k.LockDelay)
	if err != nil || d < 0 {
		return 0, false
	}
	return max(t, ttl) + max(d, lockDelay), true
}

// never is longer than anybody waits, and no overflow when added to a clock.
const never = 365 * 24 * time.Hour

// sighting is one version of the lock and since when this node has seen it, by its own clock. A holder
// sends its renewal before it is in the store, and it is in the store before it is seen: so by the
// holder's own clock the lease has ended once it was seen unchanged for a TTL. The lock-delay on top
// allows for clocks that do not run equally fast. No time of another machine is looked at.
type sighting struct {
	version string
	since   time.Duration
}

// note takes a lock that was seen, in an answer that was there at now, and returns how much longer it
// must be seen in this version before it may be taken.
func (s *sighting) note(k Lock, version string, now, ttl, lockDelay time.Duration) time.Duration {
	if s.version != version {
		*s = sighting{version, now}
	}
	ends, ok := k.ends(ttl, lockDelay)
	if !ok {
		return never
	}
	return s.since + ends - now
}
