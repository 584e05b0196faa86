package litefs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// A level that was set while the node ran is kept beside the database's record, and goes before the rules.
func (db *DB) levelPath() string { return filepath.Join(db.dir, "level") }

// openLevel reads the level that was set, if one was.
func (db *DB) openLevel() error {
	b, err := os.ReadFile(db.levelPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	l, err := ParseLevel(strings.TrimSpace(string(b)))
	if err != nil {
		return fmt.Errorf("%s: %w", db.levelPath(), err)
	}
	db.setLevel(l)
	return nil
}

func (db *DB) setLevel(l Level) {
	db.levelOwn.Store(&l)
	if l.Kind == LevelQuorum {
		db.store.levelSet.Store(true)
	}
}

// Level is what is promised of transactions of the database.
func (db *DB) Level() Level {
	if l := db.levelOwn.Load(); l != nil {
		return *l
	}
	return db.store.levelByName(db.Name())
}

// LevelPending reports whether the level waits for the last close of a write-ahead log that is open otherwise than the
// level asks for: until then its commits are not held back.
func (db *DB) LevelPending() bool {
	return db.Level().Kind == LevelQuorum && db.store.ungatedWAL(db.Name()+"-wal")
}

// SetLevel changes the level, durably and on this node. ErrGuarded: the node does not promise.
func (db *DB) SetLevel(l Level) error {
	if err := l.Validate(); err != nil {
		return err
	}
	if l.Kind == LevelQuorum && db.store.Guarded {
		return ErrGuarded
	}
	if err := writeFileSync(db.levelPath(), []byte(l.String()+"\n")); err != nil {
		return fmt.Errorf("level of %s: %w", db.Name(), err)
	}
	db.setLevel(l)
	db.log().Info("level of durability", "level", l.String(), "pending", db.LevelPending())
	db.store.MarkDirty(db.id)
	return nil
}

// ErrGuarded says why a node with a guardian takes no quorum: a daemon that dies within a commit takes the commit's last
// frame with it, while the application goes on.
var ErrGuarded = errors.New("level quorum and fuse.guardian do not go together yet: turn the guardian off")
