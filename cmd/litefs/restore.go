package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	return h.Newest(ctx)
}

func runRestore(ctx context.Context, args []string, std stdio) error {
	f := newFlags("restore", "litefs restore -name DB [flags] FILE",
		"Writes a database out of an archive to FILE, which must not exist. Every object and\n"+
			"the whole database are checked before FILE is there. What Litestream 0.5 wrote is\n"+
			"read as well. No node need run; to make FILE the content of a running cluster's\n"+
			"database, litefs import it.",
		"litefs restore -from s3://bucket/litefs -name app.db -timestamp 2006-01-02T15:04:05Z /tmp/app.db")
	var a archiveFlags
	var want moment
	a.register(f)
	want.register(f)
	dry := f.Bool("dry-run", false, "show what would be read, and write nothing")
	integrity := f.String("integrity-check", "none", "`KIND` of SQLite's own check of FILE: none, quick or full")
	asJSON := f.Bool("json", false, "print JSON")
	files, err := f.parse(args, std)
	if err != nil {
		return err
	}
	if len(files) != 1 && !(*dry && len(files) == 0) {
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
	bar := newProgress(std.err, "restoring "+a.name)
	got, err := h.Restore(ctx, m, files[0], bar.report)
	bar.end()
	if err != nil {
		return restoreError(err)
	}
	if pragma != "" {
		rows, err := askFile(ctx, files[0], pragma)
		if err != nil {
			return fmt.Errorf("%s is restored and could not be checked: %w", files[0], err)
		}
		if text := strings.Join(rows, "; "); text != "ok" {
			return fmt.Errorf("%s is what the database was, and PRAGMA %s says: %s", files[0], pragma, text)
		}
	}
	return printRestored(std.out, files[0], got, *asJSON)
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
