package litefs

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"
)

// LevelKind is a kind of promise about committed transactions.
type LevelKind int

const (
	// LevelAsync acknowledges a commit when this node has it.
	LevelAsync LevelKind = iota
	// LevelQuorum acknowledges a commit when replicas have it as well.
	LevelQuorum
)

// Level is what is promised of the transactions of a database: docs/guarantees.md. The zero value is async.
type Level struct {
	Kind    LevelKind
	N       int           // of LevelQuorum: replicas that must have a transaction, at least 1
	Memory  bool          // of LevelQuorum: received is enough, here and there, it need not be on disk
	Timeout time.Duration // of LevelQuorum: how long a commit waits before it fails
}

// DefaultQuorumTimeout is how long a commit waits for replicas where nothing else is said.
const DefaultQuorumTimeout = 5 * time.Second

// Bounds of a level.
const (
	MaxQuorum        = 16
	MaxQuorumTimeout = 5 * time.Minute
)

// String is what ParseLevel reads.
func (l Level) String() string {
	if l.Kind == LevelAsync {
		return "async"
	}
	ack := "durable"
	if l.Memory {
		ack = "memory"
	}
	return fmt.Sprintf("quorum:%d,%s,%v", l.N, ack, l.Timeout)
}

// Validate reports what is wrong with a level.
func (l Level) Validate() error {
	switch {
	case l.Kind == LevelAsync:
		return nil
	case l.Kind != LevelQuorum:
		return fmt.Errorf("level %d is not known", l.Kind)
	case l.N < 1 || l.N > MaxQuorum:
		return fmt.Errorf("a quorum of %d: want 1 to %d replicas", l.N, MaxQuorum)
	case l.Timeout < time.Millisecond || l.Timeout > MaxQuorumTimeout:
		return fmt.Errorf("a time-out of %v: want 1ms to %v", l.Timeout, MaxQuorumTimeout)
	}
	return nil
}

// ParseLevel reads a level: "async", or "quorum" with, after a colon and separated by commas, the number of replicas, "durable"
// or "memory", and the time-out: "quorum:1,durable,5s".
func ParseLevel(s string) (Level, error) {
	kind, rest, _ := strings.Cut(s, ":")
	switch kind {
	case "async":
		if rest != "" {
			return Level{}, fmt.Errorf("level %q: async has no parameters", s)
		}
		return Level{}, nil
	case "quorum":
	case "max-lag":
		return Level{}, errors.New("level max-lag is not built yet: use async, and GET /health?max-lag= to watch it, or quorum")
	default:
		return Level{}, fmt.Errorf("level %q is neither async nor quorum, like quorum:1,durable,5s", s)
	}
	l := Level{Kind: LevelQuorum, N: 1, Timeout: DefaultQuorumTimeout}
	for _, word := range strings.Split(rest, ",") {
		switch word {
		case "", "durable":
		case "memory":
			l.Memory = true
		default:
			if n, err := strconv.Atoi(word); err == nil {
				l.N = n
				continue
			}
			d, err := time.ParseDuration(word)
			if err != nil {
				return Level{}, fmt.Errorf("level %q: %q is no number, no duration, and not durable or memory", s, word)
			}
			l.Timeout = d
		}
	}
	return l, l.Validate()
}

// LevelRule gives the databases that match a pattern a level.
type LevelRule struct {
	Match string // as path.Match has it
	Level Level
}

// levelByName is the level that the rules give a database: that of the first one that matches.
func (s *Store) levelByName(name string) Level {
	for _, r := range s.Levels {
		if ok, err := path.Match(r.Match, name); err == nil && ok {
			return r.Level
		}
	}
	return Level{}
}

// level is the one in force for the file of a database, on record or not.
func (s *Store) level(name string) Level {
	if len(s.Levels) == 0 && !s.levelSet.Load() {
		return Level{}
	}
	if db := s.DBByName(name); db != nil {
		return db.Level()
	}
	return s.levelByName(name)
}

// promises reports whether any database may be at a level at which commits wait for replicas.
func (s *Store) promises() bool {
	for _, r := range s.Levels {
		if r.Level.Kind == LevelQuorum {
			return true
		}
	}
	return s.levelSet.Load()
}
