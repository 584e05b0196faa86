package litefs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Level is what is promised of transactions of the database: what was set while the node ran, else what the rules of its
// store say.
func (db *DB) Level() Level {
	if l := db.level.Load(); l != nil {
		return *l
	}
	return db.store.levelByRule(db.Name())
}

// LevelSet reports whether the level was set by SetLevel, and not by a rule.
func (db *DB) LevelSet() bool { return db.level.Load() != nil }

// LevelPending reports whether the level waits for the last close of a write-ahead log that is open otherwise than the
// level asks for: until then its commits are not held back.
func (db *DB) LevelPending() bool {
	return db.Level().Kind == LevelQuorum && db.store.ungatedWAL(db.Name()+"-wal")
}

// ErrGuarded says why a node with a guardian takes no quorum: a daemon that dies within a commit takes the commit's last
// frame with it, while the application goes on.
var ErrGuarded = errors.New("level quorum and fuse.guardian do not go together yet: turn the guardian off")

// levelTimeout bounds how long SetLevel waits for the commit under way.
const levelTimeout = 10 * time.Second

// SetLevel gives the database a level on this node, durably: it survives a restart, and comes before the rules. nil
// takes that back. A commit that is under way is ended first.
func (db *DB) SetLevel(ctx context.Context, level *Level) error {
	if level != nil {
		if err := level.Validate(); err != nil {
			return err
		}
		if level.Kind == LevelQuorum && db.store.Guarded {
			return ErrGuarded
		}
	}
	ctx, cancel := context.WithTimeout(ctx, levelTimeout)
	defer cancel()
	if err := db.lockSettled(ctx); err != nil {
		return err
	}
	err := db.writeLevel(level)
	if err == nil {
		db.level.Store(level)
	}
	db.mu.Unlock()
	if err != nil {
		return fmt.Errorf("note the level: %w", err)
	}
	db.store.levelsChanged()
	db.log().Info("level set", "level", db.Level().String(), "pending", db.LevelPending())
	return nil
}

// lockSettled takes db.mu when no transaction is undecided: replicas are told what is at levels at which one may be.
func (db *DB) lockSettled(ctx context.Context) error {
	for {
		// A commit that waits for replicas has db.mu.
		if db.mu.TryLock() {
			settled, err := db.settleUndecided()
			if settled && db.undecided == nil || db.closed {
				return nil
			}
			db.mu.Unlock()
			if err != nil {
				return err
			}
		}
		pause := time.NewTimer(time.Millisecond)
		select {
		case <-ctx.Done():
			pause.Stop()
			return fmt.Errorf("a commit of %s is under way, or in doubt until the next one: try again: %w", db.Name(), context.Cause(ctx))
		case <-pause.C:
		}
	}
}

func (db *DB) levelPath() string { return filepath.Join(db.dir, "level") }

func (db *DB) writeLevel(level *Level) error {
	if level != nil {
		return writeFileSync(db.levelPath(), []byte(level.String()+"\n"))
	}
	err := os.Remove(db.levelPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = syncDir(db.dir)
	}
	return err
}

// readLevel reads what SetLevel has noted. What cannot be read is an error: a level that is not kept is a promise that
// is not.
func (db *DB) readLevel() error {
	b, err := os.ReadFile(db.levelPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	level, err := ParseLevel(strings.TrimSpace(string(b)))
	if err == nil && level.Kind == LevelQuorum && db.store.Guarded {
		err = ErrGuarded
	}
	if err != nil {
		return fmt.Errorf("%s: %w", db.levelPath(), err)
	}
	db.level.Store(&level)
	return nil
}

// SetLevel is DB.SetLevel by name. text is as Level.String has it, or "rule" for what the rules say.
func (s *Store) SetLevel(ctx context.Context, name, text string) error {
	var level *Level
	if text != LevelOfRule {
		l, err := ParseLevel(text)
		if err != nil {
			return err
		}
		level = &l
	}
	db := s.DBByName(name)
	if db == nil {
		return fmt.Errorf("%q: %w", name, ErrDatabaseNotFound)
	}
	return db.SetLevel(ctx, level)
}

// LevelOfRule stands for the level that the rules of the configuration give.
const LevelOfRule = "rule"

// levelsChanged starts what levels need that is not running yet: what looks at replicas all the time does not run where
// nothing is promised.
func (s *Store) levelsChanged() {
	if s.mountDev.Load() == 0 || s.ctx.Err() != nil {
		return // Mounted does it
	}
	if s.asks(LevelQuorum) {
		s.keeping.Do(func() { s.goRun(s.keepInSync) })
	}
	if s.asks(LevelMaxLag) {
		s.bounding.Do(func() { s.goRun(s.boundLag) })
	}
}
