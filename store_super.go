package litefs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/litefs/litefs/sqlitefile"
)

// A transaction that spans attached databases has a super-journal: a file that
// names the journals of all members, and that each of these journals names.
// Its removal commits all of them at once (SQLite: vdbeCommit). What happens to
// the members' journals afterwards SQLite no longer checks, so capturing there
// could not refuse anything: the members are captured before the super-journal
// goes.

// maxSuper bounds a super-journal that is read: SQLite attaches at most 125
// databases.
const maxSuper = 1 << 20

// isSuper reports whether a path is that of a super-journal (SQLite names them
// DATABASE-mjXXXXXX9XX).
func isSuper(path string) bool {
	base := filepath.Base(path)
	i := strings.LastIndex(base, "-mj")
	return i > 0 && len(base)-i == len("-mjXXXXXX9XX") && base[i+len("-mjXXXXXX")] == '9'
}

// superEnds captures every member of the transaction that the removal of a
// super-journal commits. When one cannot be captured the commit is refused: the
// super-journal stays, SQLite rolls all members back, and what was captured of
// the others is taken back by what their rollbacks leave.
func (s *Store) superEnds(own bool, path string) error {
	members, err := s.superMembers(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return s.refuse(path, err)
	}
	for _, name := range members {
		if err := s.journalEnds(own, name, true); err != nil {
			return err
		}
	}
	for _, name := range members {
		if db := s.DBByName(name); db != nil {
			db.decideMember()
		}
	}
	return nil
}

// superMembers returns the databases whose journals are committed by the
// removal of the super-journal at path. A journal that does not name it (the
// application gave up before) is not.
func (s *Store) superMembers(path string) ([]string, error) {
	f, err := os.Open(filepath.Join(s.FilesDir(), path))
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSuper))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read the super-journal: %w", err)
	}
	var members []string
	for journal := range bytes.SplitSeq(b, []byte{0}) {
		name, typ := fileOf(s.inTree(string(journal)))
		if typ != FileTypeJournal {
			continue
		}
		super, err := s.superOf(name)
		if err != nil {
			return nil, err
		}
		if filepath.Base(super) == filepath.Base(path) {
			members = append(members, name)
		}
	}
	return members, nil
}

// superOf returns the super-journal that the journal of a database names.
func (s *Store) superOf(name string) (string, error) {
	f, err := os.Open(filepath.Join(s.FilesDir(), name) + "-journal")
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // read only
	fi, err := f.Stat()
	if err != nil {
		return "", err
	}
	return sqlitefile.SuperJournalName(f, fi.Size())
}

// superExists reports whether the super-journal that a journal names is still
// there.
func (s *Store) superExists(super string) bool {
	return s.inTree(super) != ""
}

// inTree maps the path of a file as the application wrote it to one of the
// tree, "" when there is no such file. The mount may have been reached through
// a symbolic link, or have been elsewhere in the run before, so ever shorter
// ends of the path are tried.
func (s *Store) inTree(path string) string {
	if rel, ok := strings.CutPrefix(path, s.MountDir()+"/"); ok && s.exists(rel) {
		return rel
	}
	for rest := strings.TrimPrefix(path, "/"); rest != ""; {
		if filepath.IsLocal(rest) && s.exists(rest) {
			return rest
		}
		_, rest, _ = strings.Cut(rest, "/")
	}
	return ""
}
