package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/litefs/litefs/internal/archive"
	"github.com/litefs/litefs/internal/restore"
	"github.com/litefs/litefs/internal/sqlapp"
)

// moment names the state that a command wants.
type moment struct {
	timestamp, txid string
	number          uint64
}

func (m *moment) register(f *flags) {
	f.StringVar(&m.timestamp, "timestamp", "", "as it was at `TIME`, like 2006-01-02T15:04:05Z (default the newest)")
	f.StringVar(&m.txid, "txid", "", "as it was after transaction `TXID`, in hexadecimal")
	f.Uint64Var(&m.number, "moment", 0, "moment `N` of the history")
}

// find looks the state up.
func (m *moment) find(ctx context.Context, h *restore.History) (restore.Moment, error) {
	switch {
	case m.timestamp != "" && m.txid == "" && m.number == 0:
		at, err := time.Parse(time.RFC3339Nano, m.timestamp)
		if err != nil {
			return restore.Moment{}, usagef("-timestamp %q is not of the form 2006-01-02T15:04:05Z", m.timestamp)
		}
		return h.At(ctx, at)
	case m.txid != "" && m.timestamp == "" && m.number == 0:
		var txid uint64
		if n, err := fmt.Sscanf(strings.TrimPrefix(m.txid, "0x")+"\n", "%x\n", &txid); n != 1 || err != nil || txid == 0 {
			return restore.Moment{}, usagef("-txid %q is no transaction like 000000000000002a", m.txid)
		}
		return h.AtTXID(ctx, txid)
	case m.number != 0 && m.timestamp == "" && m.txid == "":
		return h.Moment(ctx, m.number)
	case m.timestamp != "" || m.txid != "" || m.number != 0:
		return restore.Moment{}, usagef("give one of -timestamp, -txid and -moment")
	}
	last, err := h.Newest(ctx)
	if err == nil && !h.Dropped.IsZero() {
		err = fmt.Errorf("%s was dropped at %s; the archive has it as it was before, at %s: restore it with -moment %d", h.Database, h.Dropped.Format(time.RFC3339), last, last.N)
	}
	return last, err
}

func runRestore(ctx context.Context, args []string, std stdio) error {
	f := newFlags("restore", "litefs restore -name DB [flags] FILE\n       litefs restore -name DB -into DB [flags]",
		"Writes a database out of an archive to FILE, which must not exist. Every object and\n"+
			"the whole database are checked before FILE is there. What Litestream 0.5 wrote is\n"+
			"read as well. No node need run.\n"+
			"With -into it becomes the content of a database of the cluster whose primary runs\n"+
			"with the configuration, or at -url, in one transaction that replicates (see litefs\n"+
			"import); what is there now stays in the archive, and in it can be gone back to.",
		"litefs restore -from s3://bucket/litefs -name app.db -timestamp 2006-01-02T15:04:05Z /tmp/app.db")
	var a archiveFlags
	var want moment
	a.register(f)
	want.register(f)
	into := f.String("into", "", "make it the content of `DB` of the running cluster, and write no FILE")
	url := f.String("url", "", "with -into: "+urlUsage)
	dry := f.Bool("dry-run", false, "show what would be read, and write nothing")
	integrity := f.String("integrity-check", "none", "`KIND` of SQLite's own check of FILE: none, quick or full")
	asJSON := f.Bool("json", false, "print JSON")
	files, err := f.parse(args, std)
	if err != nil {
		return err
	}
	switch {
	case *url != "" && *into == "":
		return usagef("-url goes with -into")
	case *into != "" && len(files) > 0:
		return usagef("give FILE, or -into, not both")
	case *into == "" && len(files) != 1 && !(*dry && len(files) == 0):
		return usagef("want: litefs restore -name DB [flags] FILE")
	}
	pragma, ok := map[string]string{"none": "", "quick": "quick_check", "full": "integrity_check"}[*integrity]
	if !ok {
		return usagef("-integrity-check %q is neither none, quick nor full", *integrity)
	}
	if pragma != "" && !sqlapp.Available {
		return usagef("-integrity-check: this binary has no SQLite; run sqlite3 FILE 'PRAGMA %s'", pragma)
	}
	h, err := a.openHistory(ctx)
	if err != nil {
		return err
	}
	m, err := want.find(ctx, h)
	if err != nil {
		return err
	}
	plan, err := h.Plan(m)
	if err != nil {
		return err
	}
	if *dry {
		return printRestorePlan(std.out, h, m, plan, *asJSON)
	}
	r := restoring{h: h, m: m, name: a.name, pragma: pragma, std: std}
	if *into != "" {
		at := targetFlags{url: *url}
		if *url == "" {
			at.configFlags = a.configFlags
		}
		return r.into(ctx, at, *into, *asJSON)
	}
	got, err := r.to(ctx, files[0])
	if err != nil {
		return err
	}
	return printRestored(std.out, files[0], got, *asJSON)
}

// restoring is a restore that was asked for.
type restoring struct {
	h      *restore.History
	m      restore.Moment
	name   string
	pragma string // SQLite's check of the file; "": none
	std    stdio
}

// to restores into a file and checks it.
func (r *restoring) to(ctx context.Context, file string) (restore.Result, error) {
	bar := newProgress(r.std.err, "restoring "+r.name)
	got, err := r.h.Restore(ctx, r.m, file, bar.report)
	bar.end()
	if err != nil || r.pragma == "" {
		return got, restoreError(err)
	}
	rows, err := askFile(ctx, file, r.pragma)
	if err != nil {
		return got, fmt.Errorf("%s is restored and could not be checked: %w", file, err)
	}
	if text := strings.Join(rows, "; "); text != "ok" {
		return got, fmt.Errorf("%s is what the database was, and PRAGMA %s says: %s", file, r.pragma, text)
	}
	return got, nil
}

// into restores into a file of its own, and has the primary import it.
func (r *restoring) into(ctx context.Context, at targetFlags, database string, asJSON bool) (err error) {
	t, err := at.target()
	if err != nil {
		return err
	}
	// Before anything is read: a replica would pass the file on, and whoever restores should know where he is.
	info, err := t.client.Info(ctx, t.url)
	if err != nil {
		return err
	}
	if !info.IsPrimary {
		if info.PrimaryURL == "" {
			return fmt.Errorf("restore into %s: the node at %s is a replica, and knows no primary: try again when there is one", database, t.url)
		}
		return fmt.Errorf("restore into %s: the node at %s is a replica: the primary is %s, restore there, or with -url %s", database, t.url, info.PrimaryURL, info.PrimaryURL)
	}
	dir, err := os.MkdirTemp("", "litefs-restore-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	file := filepath.Join(dir, "restored.db")
	got, err := r.to(ctx, file)
	if err != nil {
		return err
	}
	imported, err := importFrom(ctx, t, database, file, r.std)
	if err != nil {
		return fmt.Errorf("%s is restored, and not in the cluster: %w", got.Moment, err)
	}
	if asJSON {
		return json.NewEncoder(r.std.out).Encode(struct {
			restoredMoment
			Into    string   `json:"into"`
			Pos     string   `json:"pos"`
			Created bool     `json:"created"`
			Damaged []string `json:"damaged,omitempty"`
		}{momentJSON(got.N, got.Header), imported.Name, imported.Pos, imported.Created, got.Skipped})
	}
	_, err = fmt.Fprintf(r.std.out, "%s is the content of %s now, at %s\n", got.Moment, imported.Name, imported.Pos)
	return err
}

// restoreError says how to get what the archive still has.
func restoreError(err error) error {
	var damaged *restore.DamagedError
	if errors.As(err, &damaged) && damaged.Next != nil {
		return fmt.Errorf("%w: restore it with -moment %d", err, damaged.Next.N)
	}
	return err
}

// restoredMoment is a moment in JSON.
type restoredMoment struct {
	Moment   uint64    `json:"moment"`
	Time     time.Time `json:"time"`
	TXID     string    `json:"txid"` // what -txid takes: Litestream's are the moments
	Checksum string    `json:"checksum,omitempty"`
	Epoch    uint64    `json:"epoch,omitempty"`
	Size     int64     `json:"size"` // bytes of the database
}

func momentJSON(n uint64, h archive.Header) restoredMoment {
	m := restoredMoment{Moment: n, Time: h.Time, TXID: fmt.Sprintf("%016x", n), Size: int64(h.Commit) * int64(h.PageSize)}
	if h.State.Known() {
		m.TXID, m.Checksum, m.Epoch = fmt.Sprintf("%016x", h.State.TXID), fmt.Sprintf("%016x", h.State.Sum), h.State.Epoch
	}
	return m
}

func printRestorePlan(w io.Writer, h *restore.History, m restore.Moment, plan []archive.Object, asJSON bool) error {
	var bytes int64
	keys := make([]string, 0, len(plan))
	for _, o := range plan {
		bytes += o.Size
		keys = append(keys, h.Key(o))
	}
	if asJSON {
		return json.NewEncoder(w).Encode(struct {
			restoredMoment
			Objects []string `json:"objects"`
			Bytes   int64    `json:"bytes"`
		}{momentJSON(m.N, m.Header), keys, bytes})
	}
	for i, o := range plan {
		if _, err := fmt.Fprintf(w, "%8s  %s\n", size(o.Size), keys[i]); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "%s: %d objects, %s; a database of %s\n", m, len(plan), size(bytes), size(int64(m.Commit)*int64(m.PageSize)))
	return err
}

func printRestored(w io.Writer, file string, got restore.Result, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(struct {
			restoredMoment
			File    string   `json:"file"`
			Objects int      `json:"objects"`
			Bytes   int64    `json:"bytes"`
			Damaged []string `json:"damaged,omitempty"`
		}{momentJSON(got.N, got.Header), file, got.Objects, got.Read, got.Skipped})
	}
	for _, s := range got.Skipped {
		if _, err := fmt.Fprintf(w, "done without a damaged object: %s\n", s); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "%s is in %s\n", got.Moment, file)
	return err
}
