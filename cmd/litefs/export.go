package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	node "github.com/litefs/litefs/http"
	"github.com/litefs/litefs/internal/pagesum"
	"github.com/litefs/litefs/sqlitefile"
)

func runExport(ctx context.Context, args []string, std stdio) error {
	f := newFlags("export", "litefs export -name DB [flags] FILE",
		"Writes a database of the running node to FILE, as it is at one moment: a file that\n"+
			"SQLite opens. Every page is checked against the database's checksum before FILE\n"+
			"is put in place, in one step; a FILE that is there stays until then.",
		"litefs export -name app.db -config litefs.yml /backup/app.db")
	var c configFlags
	c.register(f)
	url := f.String("url", "", urlUsage)
	name := f.String("name", "", "the `DB`: its path in the mount")
	files, err := f.parse(args, std)
	if err != nil {
		return err
	}
	if *name == "" || len(files) != 1 {
		return usagef("want: litefs export -name DB FILE")
	}
	t, err := newTarget(c, nil, *url)
	if err != nil {
		return err
	}
	pos, err := exportTo(ctx, t, *name, files[0])
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(std.out, "%s at %s is in %s\n", *name, pos, files[0])
	return err
}

// exportTo puts a checked copy of a database at path. Whatever fails leaves path as it was.
func exportTo(ctx context.Context, t target, name, path string) (pos string, err error) {
	e, err := t.client.Export(ctx, t.url, name)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return "", err
	}
	defer func() {
		if tmp != nil {
			err = errors.Join(err, tmp.Close(), os.Remove(tmp.Name()))
		}
	}()
	if err := copyChecked(tmp, e); err != nil {
		return "", fmt.Errorf("export of %s: %w", name, err)
	}
	// A -wal or journal of the file that is replaced would be taken for the new one's.
	for _, suffix := range []string{"-wal", "-shm", "-journal"} {
		if _, err := os.Lstat(path + suffix); err == nil {
			return "", fmt.Errorf("%s belongs to the database at %s, which may be in use: choose another file, or close it first", path+suffix, path)
		}
	}
	if err := errors.Join(tmp.Chmod(0o644), tmp.Sync()); err != nil {
		return "", err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return "", err
	}
	err = tmp.Close()
	tmp = nil
	return e.Pos.String(), errors.Join(err, syncDir(dir))
}

// copyChecked writes the pages of an export, and compares their checksum with that of the position.
func copyChecked(w io.Writer, e *node.Export) error {
	in, out := bufio.NewReaderSize(e, 1<<20), bufio.NewWriterSize(w, 1<<20)
	header, err := in.Peek(int(min(e.Size, 100)))
	if err != nil {
		return fmt.Errorf("broken off before the first page: %w", err)
	}
	if len(header) == 0 {
		return nil
	}
	pageSize := int64(binary.BigEndian.Uint16(header[16:]))
	if pageSize == 1 {
		pageSize = 65536
	}
	if pageSize < 512 || e.Size%pageSize != 0 {
		return fmt.Errorf("%d bytes are no database with pages of %d", e.Size, pageSize)
	}
	page := make([]byte, pageSize)
	var sum uint64
	for pgno := uint32(1); int64(pgno) <= e.Size/pageSize; pgno++ {
		if _, err := io.ReadFull(in, page); err != nil {
			return fmt.Errorf("broken off at page %d: %w", pgno, err)
		}
		if pgno != sqlitefile.LockPgno(uint32(pageSize)) {
			sum ^= pagesum.Page(pgno, page)
		}
		if _, err := out.Write(page); err != nil {
			return err
		}
	}
	if sum |= 1 << 63; sum != e.Pos.Chksum {
		return fmt.Errorf("checksum of the pages is %016x, want %016x: try again, and see litefs verify on the node", sum, e.Pos.Chksum)
	}
	return out.Flush()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
