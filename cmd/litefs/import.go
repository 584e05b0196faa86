package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"

	node "github.com/litefs/litefs/http"
	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/dbfile"
)

func runImport(ctx context.Context, args []string, std stdio) error {
	f := newFlags("import", "litefs import -name DB [flags] FILE",
		"Makes FILE, a SQLite database that nobody has open, the content of a database of\n"+
			"the cluster, in one transaction that replicates: header, size, checksum and every\n"+
			"b-tree are checked before anything changes. Connections stay open and see the new\n"+
			"content from their next transaction on; the page size may be another one. A\n"+
			"database that does not exist is made. On a replica, the primary is asked.",
		"litefs import -name app.db -config litefs.yml /backup/app.db")
	var c copyFlags
	t, file, err := c.parse(f, args, std)
	if err != nil {
		return err
	}
	info, err := importFrom(ctx, t, c.name, file, std)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return fmt.Errorf("import of %s: interrupted: nothing has changed, unless the whole file had been sent", c.name)
	}
	if err != nil {
		return err
	}
	if c.asJSON {
		return json.NewEncoder(std.out).Encode(info)
	}
	verb := "is the content of"
	if info.Created {
		verb = "was made the new database"
	}
	_, err = fmt.Fprintf(std.out, "%s %s %s, %d pages of %d bytes, at %s\n", file, verb, info.Name, info.Pages, info.PageSize, info.Pos)
	return err
}

// importFrom sends the file at path to the primary.
func importFrom(ctx context.Context, t target, name, path string, std stdio) (info node.ImportInfo, err error) {
	image, file, err := dbfile.OpenFile(path)
	if errors.Is(err, dbfile.ErrNoImage) || errors.Is(err, fs.ErrNotExist) {
		err = config.Invalid(err)
	}
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	bar := newProgress(std.err, "reading "+path)
	sum, err := image.Checksum(ctx, bar.report)
	bar.end()
	if err != nil {
		return info, fmt.Errorf("%s: %w", path, err)
	}
	url, err := t.primary(ctx)
	if err != nil {
		return info, err
	}
	bar = newProgress(std.err, "sending "+path)
	defer bar.end()
	body := &countingReader{r: io.NewSectionReader(file, 0, image.Size()), total: image.Size(), report: bar.report}
	return t.client.Import(ctx, url, name, body, image.Size(), sum)
}

// primary is the URL of the primary that the node knows.
func (t target) primary(ctx context.Context) (string, error) {
	info, err := t.client.Info(ctx, t.url)
	switch {
	case err != nil:
		return "", err
	case info.IsPrimary:
		return t.url, nil
	case info.PrimaryURL == "":
		return "", fmt.Errorf("%s is not the primary and knows none: try again once there is one", t.url)
	}
	return info.PrimaryURL, nil
}

// countingReader tells how much of it was read.
type countingReader struct {
	r      io.Reader
	done   int64
	total  int64
	report dbfile.Progress
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.done += int64(n)
	c.report(c.done, c.total)
	return n, err
}
