package litefs

import "errors"

// Level is what is promised of transactions of the database.
func (db *DB) Level() Level { return db.store.levelByName(db.Name()) }

// LevelPending reports whether the level waits for the last close of a write-ahead log that is open otherwise than the
// level asks for: until then its commits are not held back.
func (db *DB) LevelPending() bool {
	return db.Level().Kind == LevelQuorum && db.store.ungatedWAL(db.Name()+"-wal")
}

// ErrGuarded says why a node with a guardian takes no quorum: a daemon that dies within a commit takes the commit's last
// frame with it, while the application goes on.
var ErrGuarded = errors.New("level quorum and fuse.guardian do not go together yet: turn the guardian off")
