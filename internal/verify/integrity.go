package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
)

// checkIntegrity runs PRAGMA integrity_check on a copy: the replayed file where there is one, for it
// has been compared page by page, else a copy of the files.
func checkIntegrity(ctx context.Context, o Options, rec record, r *replay, found *comparison, db *Database) error {
	check := o.Integrity
	if check == nil {
		check = sqlite3Integrity
	}
	path := r.file.Name()
	if !r.complete {
		if found.pending || found.behind {
			db.note("integrity_check was not run: the files are not at the log's position")
			return nil
		}
		if err := copyImage(rec, r); err != nil {
			return err
		}
	}
	rows, err := check(ctx, path)
	if errors.Is(err, ErrNoSQLite) {
		db.note("integrity_check was not run: %s", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("integrity_check: %w", err)
	}
	if db.Integrity = strings.Join(rows, "; "); db.Integrity != "ok" {
		db.fault(0, "integrity_check: %s", db.Integrity)
	}
	return nil
}

// copyImage writes the pages of the database, as an application sees them, to the replay's file.
func copyImage(rec record, r *replay) error {
	img, err := openImage(rec.file, r.head, true)
	if err != nil {
		return err
	}
	defer img.close() //nolint:errcheck // read only
	size := int64(img.count) * int64(img.pageSize)
	w := io.NewOffsetWriter(r.file, 0)
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, io.NewSectionReader(img, 0, size), make([]byte, img.pageSize)); err != nil {
		return fmt.Errorf("copy the database: %w", err)
	}
	if err := r.file.Truncate(size); err != nil {
		return fmt.Errorf("copy the database: %w", err)
	}
	return nil
}

// ErrNoSQLite is returned by an Integrity function that has no SQLite to ask.
var ErrNoSQLite = errors.New("no SQLite here: install the sqlite3 command")

// sqlite3Integrity asks the sqlite3 command.
func sqlite3Integrity(ctx context.Context, path string) ([]string, error) {
	command, err := exec.LookPath("sqlite3")
	if err != nil {
		return nil, ErrNoSQLite
	}
	// immutable: the copy says WAL in its header, and has and needs neither -wal nor -shm.
	cmd := exec.CommandContext(ctx, command, "-batch", "-readonly", "file:"+path+"?immutable=1", "PRAGMA integrity_check;")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("sqlite3: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n"), nil
}
