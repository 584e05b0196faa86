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
	// LevelMaxLag acknowledges a commit when this node has it, and lets nobody begin to write while every replica lacks
	// transactions that are older than a bound.
	LevelMaxLag
	// LevelArchive acknowledges a commit when every archive of this node has it as well, and every replica that may
	// become the primary.
	LevelArchive
)

// Level is what is promised of the transactions of a database: docs/guarantees.md. The zero value is async.
type Level struct {
	Kind    LevelKind
	N       int           // of LevelQuorum: replicas that must have a transaction, at least 1
	Memory  bool          // of LevelQuorum: received is enough, here and there, it need not be on disk
	Timeout time.Duration // of LevelQuorum and LevelArchive: how long a commit waits before it fails
	MaxLag  time.Duration // of LevelMaxLag: the age of the oldest transaction that no replica has
}

// DefaultQuorumTimeout is how long a commit waits for replicas where nothing else is said.
const DefaultQuorumTimeout = 5 * time.Second

// DefaultArchiveTimeout is how long a commit waits for archives where nothing else is said.
const DefaultArchiveTimeout = 15 * time.Second

// Gated reports whether commits are held back until somebody else than this node has them.
func (l Level) Gated() bool { return l.Kind == LevelQuorum || l.Kind == LevelArchive }

// Bounds of a level.
const (
	MaxQuorum        = 16
	MaxQuorumTimeout = 5 * time.Minute
	MinMaxLag        = 100 * time.Millisecond
	MaxMaxLag        = 24 * time.Hour
)

// String is how the level is shown: its kind, then replicas, acknowledgement and time-out, or the bound.
func (l Level) String() string {
	switch l.Kind {
	case LevelAsync:
		return "async"
	case LevelMaxLag:
		return "max-lag:" + l.MaxLag.String()
	case LevelArchive:
		return "archive:" + l.Timeout.String()
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
	case l.Kind == LevelMaxLag:
		if l.MaxLag < MinMaxLag || l.MaxLag > MaxMaxLag {
			return fmt.Errorf("a lag of %v: want %v to %v", l.MaxLag, MinMaxLag, MaxMaxLag)
		}
		return nil
	case !l.Gated():
		return fmt.Errorf("level %d is not known", l.Kind)
	case l.Kind == LevelArchive && (l.N != 0 || l.Memory):
		return errors.New("level archive has neither a number of replicas nor an acknowledgement")
	case l.Kind == LevelQuorum && (l.N < 1 || l.N > MaxQuorum):
		return fmt.Errorf("a quorum of %d: want 1 to %d replicas", l.N, MaxQuorum)
	case l.Timeout < time.Millisecond || l.Timeout > MaxQuorumTimeout:
		return fmt.Errorf("a time-out of %v: want 1ms to %v", l.Timeout, MaxQuorumTimeout)
	}
	return nil
}

// ParseLevel reads a level as String writes it: "async", "quorum:1", "quorum:2,memory,10s", "max-lag:2s", "archive",
// "archive:30s".
func ParseLevel(text string) (l Level, err error) {
	kind, rest, _ := strings.Cut(text, ":")
	switch kind {
	case "async":
		if rest != "" {
			err = fmt.Errorf("async takes no %q", rest)
		}
	case "quorum":
		l, err = parseQuorum(rest)
	case "max-lag":
		l.Kind = LevelMaxLag
		if l.MaxLag, err = time.ParseDuration(rest); err != nil {
			err = fmt.Errorf("%q is no duration, like 2s", rest)
		}
	case "archive":
		l.Kind, l.Timeout = LevelArchive, DefaultArchiveTimeout
		if rest != "" {
			if l.Timeout, err = time.ParseDuration(rest); err != nil {
				err = fmt.Errorf("%q is no time-out, like 30s", rest)
			}
		}
	default:
		err = errors.New("it is none of async, quorum, max-lag and archive")
	}
	if err == nil {
		err = l.Validate()
	}
	if err != nil {
		return Level{}, fmt.Errorf("level %.64q: %w: want one like async, quorum:1, quorum:2,memory,10s, max-lag:2s or archive:30s", text, err)
	}
	return l, nil
}

func parseQuorum(rest string) (l Level, err error) {
	l = Level{Kind: LevelQuorum, Timeout: DefaultQuorumTimeout}
	parts := strings.Split(rest, ",")
	if l.N, err = strconv.Atoi(parts[0]); err != nil {
		return l, fmt.Errorf("%q is no number of replicas", parts[0])
	}
	for _, part := range parts[1:] {
		switch part {
		case "durable":
			l.Memory = false
		case "memory":
			l.Memory = true
		default:
			if l.Timeout, err = time.ParseDuration(part); err != nil {
				return l, fmt.Errorf("%q is neither durable nor memory nor a time-out, like 5s", part)
			}
		}
	}
	return l, nil
}

// LevelRule gives the databases that match a pattern a level.
type LevelRule struct {
	Match string // as path.Match has it
	Level Level
}

// levelByName is the level of the database with this name, or of one that will have it.
func (s *Store) levelByName(name string) Level {
	if db := s.DBByName(name); db != nil {
		return db.Level()
	}
	return s.levelByRule(name)
}

// levelByRule is the level that the rules give a database: that of the first one that matches.
func (s *Store) levelByRule(name string) Level {
	for _, r := range s.Levels {
		if ok, err := path.Match(r.Match, name); err == nil && ok {
			return r.Level
		}
	}
	return Level{}
}

// promises reports whether any database may be at a level at which commits wait for replicas.
func (s *Store) promises() bool { return s.asks(LevelQuorum) || s.asks(LevelArchive) }

// ErrNoArchive says why a node without a place for archives takes no level archive.
var ErrNoArchive = errors.New("level archive needs a place for archives: configure backup")

// mayAsk says why a level cannot be had on this node.
func (s *Store) mayAsk(l Level) error {
	switch {
	case l.Gated() && s.Guarded:
		return ErrGuarded
	case l.Kind == LevelArchive && s.Archive == nil:
		return ErrNoArchive
	}
	return nil
}

// asks reports whether any database may be at a level of a kind.
func (s *Store) asks(kind LevelKind) bool {
	for _, r := range s.Levels {
		if r.Level.Kind == kind {
			return true
		}
	}
	for _, db := range s.DBs() {
		if l := db.level.Load(); l != nil && l.Kind == kind {
			return true
		}
	}
	return false
}
