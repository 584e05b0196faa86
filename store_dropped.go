package litefs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/litefs/litefs/internal/durable"
	"github.com/litefs/litefs/internal/vfs"
)

// The ids of databases that were dropped are kept in <data>/dropped, one a line,
// oldest first: a follower that comes back later than this node was restarted
// must hear of the drop. That an id is unknown here does not say that its
// database was dropped: this may be an old copy of the data directory.

// maxDropped is how many ids are kept.
const maxDropped = 1 << 16

// readDropped reads the list, and shortens it when it has become long.
func (s *Store) readDropped() error {
	path := filepath.Join(s.path, "dropped")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list of dropped databases: %w", err)
	}
	lines := strings.Fields(string(b))
	if len(lines) > 2*maxDropped {
		lines = lines[len(lines)-maxDropped:]
		if err := durable.Replace(vfs.OS(), path, []byte(strings.Join(lines, "\n")+"\n")); err != nil {
			return fmt.Errorf("list of dropped databases: %w", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, line := range lines {
		id, err := ParseDBID(line)
		if err != nil {
			continue // torn by a power cut: its record is still there and is set aside
		}
		s.dropped[id] = struct{}{}
	}
	return nil
}

// rememberDropped adds an id to the list, durably.
func (s *Store) rememberDropped(id uint32) {
	s.mu.Lock()
	s.dropped[id] = struct{}{}
	s.mu.Unlock()
	if err := s.writeDropped(id); err != nil {
		s.Logger.Error("a follower that is away will not hear that a database was dropped", "id", FormatDBID(id), "error", err)
	}
}

// rememberGone is rememberDropped for a record that is set aside at the start.
// On a replica it is not dropped: the primary sends it again.
func (s *Store) rememberGone(id uint32) {
	if s.lastRole == RolePrimary {
		s.rememberDropped(id)
	}
}

func (s *Store) writeDropped(id uint32) error {
	f, err := os.OpenFile(filepath.Join(s.path, "dropped"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	// A line of its own, whatever a power cut left of the last one.
	_, err = f.WriteString("\n" + FormatDBID(id) + "\n")
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close(), vfs.OS().SyncDir(s.path))
}
