package litefs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/litefs/litefs/internal/durable"
	"github.com/litefs/litefs/internal/logkey"
	"github.com/litefs/litefs/internal/vfs"
)

// ltxName is the directory of the log in a database's record. Its key, when it is encrypted, lies beside it.
const ltxName = "ltx"

// sealedMarker is formatMarker once the logs may be encrypted: an earlier version would take their entries for torn
// ones, and remove them.
const sealedMarker = "litefs 2 with encrypted logs\nltx 3\n"

// settleLogKeys comes before any log is opened. A node whose logs need a key that was not given does not start: one that
// sets all of its databases aside would be no use to anybody.
func (s *Store) settleLogKeys() error {
	ents, err := os.ReadDir(filepath.Join(s.path, "dbs"))
	if err != nil {
		return fmt.Errorf("list the databases: %w", err)
	}
	for _, ent := range ents {
		id, err := ParseDBID(ent.Name())
		if err != nil {
			continue // openRecords tells of it
		}
		if _, err := s.LogKeys.Sealing(s.DBDir(id), FormatDBID(id)); errors.Is(err, logkey.ErrNoKey) {
			return badDataDir("%s", err)
		}
	}
	if s.LogKeys == nil {
		return nil
	}
	if !s.LogKeys.On() {
		s.Logger.Info("new transactions are written to the logs in the clear: encryption is switched off, and what is encrypted can be read")
		return nil
	}
	if err := durable.Replace(vfs.OS(), filepath.Join(s.path, "FORMAT"), []byte(sealedMarker)); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	s.Logger.Info("new transactions are written to the logs encrypted", "key", s.LogKeys.Operator.Current())
	return nil
}

// removeRecord removes the record of a database that was dropped, and the key of its log first: whatever the disk keeps of
// the rest, nobody can read it.
func removeRecord(dir string) error {
	if err := logkey.Destroy(dir); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}
