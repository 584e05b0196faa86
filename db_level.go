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

	"github.com/litefs/litefs/internal/durable"
	"github.com/litefs/litefs/internal/vfs"
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
	return db.Level().Gated() && db.store.ungatedWAL(db.Name()+"-wal")
}

// ErrGuarded says why a node with a guardian takes neither: a daemon that dies within a commit takes the commit's last
// frame with it, while the application goes on.
var ErrGuarded = errors.New("levels quorum and archive do not go together with fuse.guardian yet: turn the guardian off")

// levelTimeout bounds how long SetLevel waits for the commit under way.
const levelTimeout = 10 * time.Second

// SetLevel gives the database a level, durably: it survives a restart, and comes before the rules. nil takes that back. A
// commit that is under way is ended first. Only the primary sets levels: replicas are told, each before it gets a
// transaction that was committed under the new one. Errors: ErrReadOnlyReplica, ErrGuarded,
// ErrNoArchive.
func (db *DB) SetLevel(ctx context.Context, level *Level) error {
	if level != nil {
		if err := level.Validate(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, levelTimeout)
	defer cancel()
	if err := db.lockSettled(ctx); err != nil {
		return err
	}
	err := ErrReadOnlyReplica
	if db.store.Role() == RolePrimary {
		err = db.noteLevel(level)
	}
	db.mu.Unlock()
	if err != nil {
		return err
	}
	db.levelChanged()
	return nil
}

// noteLevel keeps a level that was set. db.mu is held.
func (db *DB) noteLevel(level *Level) error {
	if level != nil {
		if err := db.store.mayAsk(*level); err != nil {
			return err
		}
	}
	if err := db.writeLevel(level); err != nil {
		return fmt.Errorf("note the level: %w", err)
	}
	db.level.Store(level)
	return nil
}

func (db *DB) levelChanged() {
	db.store.levelsChanged()
	db.store.MarkDirty(db.id)
	db.log().Info("level set", "level", db.Level().String(), "pending", db.LevelPending())
}

// LevelNoted is what SetLevel has noted: a level as Level.String has it, or LevelOfRule.
func (db *DB) LevelNoted() string {
	if l := db.level.Load(); l != nil {
		return l.String()
	}
	return LevelOfRule
}

// takeLevel notes, durably, what the primary has noted: this node promises the same if it becomes the primary. The
// write-ahead log is opened anew for it, unless local programs have it open.
func (db *DB) takeLevel(ctx context.Context, text string) error {
	if text == db.LevelNoted() {
		return nil
	}
	level, err := levelOf(text)
	if err == nil {
		db.mu.Lock()
		err = db.noteLevel(level)
		db.mu.Unlock()
	}
	if err != nil {
		return fmt.Errorf("the primary has set level %.64q: %w", text, err)
	}
	_, err = db.reopenWAL(ctx, db.store.wantsDirectWAL(db.Name()))
	if err != nil && !errors.Is(err, ErrDatabaseNotFound) { // without a peer nobody has it open
		return fmt.Errorf("open the write-ahead log for level %.64q: %w", text, err)
	}
	db.levelChanged()
	return nil
}

// levelOf reads what LevelNoted says; nil: the rules count.
func levelOf(text string) (*Level, error) {
	if text == LevelOfRule {
		return nil, nil
	}
	level, err := ParseLevel(text)
	return &level, err
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
		return durable.Replace(vfs.OS(), db.levelPath(), []byte(level.String()+"\n"))
	}
	err := os.Remove(db.levelPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = vfs.OS().SyncDir(db.dir)
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
	if err == nil {
		err = db.store.mayAsk(level)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", db.levelPath(), err)
	}
	db.level.Store(&level)
	return nil
}

// SetLevel is DB.SetLevel by name. text is as Level.String has it, or "rule" for what the rules say.
func (s *Store) SetLevel(ctx context.Context, name, text string) error {
	level, err := levelOf(text)
	if err != nil {
		return err
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
	if s.lockDev.Load() == 0 || s.ctx.Err() != nil {
		return // Mounted does it
	}
	if s.promises() {
		s.keeping.Do(func() { s.goRun(s.keepInSync) })
	}
	if s.asks(LevelMaxLag) || s.Archive != nil { // which may be full
		s.bounding.Do(func() { s.goRun(s.boundLag) })
	}
}
