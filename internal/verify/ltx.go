package verify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/litefs/litefs/internal/logkey"
	"github.com/litefs/litefs/internal/ltxlog"
)

// ErrNoEntry is returned when the log has no entry with the transaction asked for.
var ErrNoEntry = errors.New("no such transaction in the log")

// List prints the entries of the logs in a data directory, oldest first. names restricts it to those
// databases. It reads the ends of the entries only; Run proves that they are whole. asJSON: an object a
// line in place of a table.
func List(ctx context.Context, w io.Writer, dataDir string, names []string, keys *logkey.Keys, asJSON bool) error {
	if err := CheckDataDir(dataDir); err != nil {
		return err
	}
	records, err := findRecords(dataDir, names)
	if err != nil {
		return err
	}
	if asJSON {
		return listJSON(ctx, json.NewEncoder(w), records, keys)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "DATABASE\tMIN\tMAX\tPAGES\tBYTES\tPRE\tPOST\tEPOCH\tTIME")
	for _, rec := range records {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := listRecord(tw, rec, keys); err != nil {
			return errors.Join(fmt.Errorf("list the log of %s: %w", rec.name, err), tw.Flush())
		}
	}
	return tw.Flush()
}

func listRecord(w io.Writer, rec record, keys *logkey.Keys) error {
	return eachEntry(rec, keys, func(e ltxlog.Entry) error {
		_, err := fmt.Fprintf(w, "%s\t%016x\t%016x\t%d\t%d\t%016x\t%016x\t%d\t%s\n",
			rec.name, e.Min, e.Max, e.Commit, e.Size, e.Pre, e.Post, e.Epoch, e.Timestamp.UTC().Format(time.RFC3339Nano))
		return err
	})
}

// entryJSON is an entry for programs.
type entryJSON struct {
	Database  string    `json:"database"`
	Min       string    `json:"min"`
	Max       string    `json:"max"`
	Pages     uint32    `json:"pages"` // of the database
	PageSize  uint32    `json:"pageSize"`
	Bytes     int64     `json:"bytes"` // of the entry
	Pre       string    `json:"pre"`
	Post      string    `json:"post"`
	Epoch     uint64    `json:"epoch"`
	Timestamp time.Time `json:"timestamp"`
}

func jsonOf(name string, e ltxlog.Entry) entryJSON {
	return entryJSON{name, hex16(e.Min), hex16(e.Max), e.Commit, e.PageSize, e.Size, hex16(e.Pre), hex16(e.Post), e.Epoch, e.Timestamp.UTC()}
}

// listJSON writes an object for each entry.
func listJSON(ctx context.Context, enc *json.Encoder, records []record, keys *logkey.Keys) error {
	for _, rec := range records {
		err := eachEntry(rec, keys, func(e ltxlog.Entry) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return enc.Encode(jsonOf(rec.name, e))
		})
		if err != nil {
			return fmt.Errorf("list the log of %s: %w", rec.name, err)
		}
	}
	return nil
}

func eachEntry(rec record, keys *logkey.Keys, fn func(ltxlog.Entry) error) error {
	log, err := openLog(rec.ltx, keys)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range log.Entries() {
		if err := fn(e); err != nil {
			return errors.Join(err, log.Close())
		}
	}
	return log.Close()
}

// Dump prints the entry of database name that holds transaction txid: its header and its pages, after
// the whole entry has been checked. asJSON: one object.
func Dump(w io.Writer, dataDir, name string, txid uint64, keys *logkey.Keys, asJSON bool) (err error) {
	if err := CheckDataDir(dataDir); err != nil {
		return err
	}
	records, err := findRecords(dataDir, []string{name})
	if err != nil {
		return err
	}
	log, err := openLog(records[0].ltx, keys)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	e, ok := log.Find(txid)
	if !ok {
		return fmt.Errorf("%w: %s has no %016x", ErrNoEntry, name, txid)
	}
	if asJSON {
		return dumpJSON(w, name, e, log)
	}
	dumpHeader(w, name, e)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "page\tbytes\tchecksum\t")
	err = log.Pages(e, func(pgno uint32, data []byte) error {
		_, err := fmt.Fprintf(tw, "%d\t%d\t%016x\t\n", pgno, len(data), pageChecksum(pgno, data))
		return err
	})
	return errors.Join(err, tw.Flush())
}

// dumpJSON writes an entry with its pages, and where in the write-ahead log it was.
func dumpJSON(w io.Writer, name string, e ltxlog.Entry, log *ltxlog.Log) error {
	type page struct {
		Pgno     uint32 `json:"pgno"`
		Bytes    int    `json:"bytes"`
		Checksum string `json:"checksum"`
	}
	type wal struct {
		Offset int64  `json:"offset"`
		Bytes  int64  `json:"bytes"`
		Salt1  string `json:"salt1"`
		Salt2  string `json:"salt2"`
	}
	dump := struct {
		entryJSON
		WAL     *wal   `json:"wal,omitempty"`
		Changed []page `json:"changed"`
	}{entryJSON: jsonOf(name, e), Changed: []page{}}
	if e.WALSize > 0 {
		dump.WAL = &wal{e.WALOffset, e.WALSize, fmt.Sprintf("%08x", e.Salt1), fmt.Sprintf("%08x", e.Salt2)}
	}
	err := log.Pages(e, func(pgno uint32, data []byte) error {
		dump.Changed = append(dump.Changed, page{pgno, len(data), hex16(pageChecksum(pgno, data))})
		return nil
	})
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(dump)
}

func dumpHeader(w io.Writer, name string, e ltxlog.Entry) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "database\t%s\n", name)
	fmt.Fprintf(tw, "transactions\t%016x-%016x\n", e.Min, e.Max)
	fmt.Fprintf(tw, "checksum before\t%016x\n", e.Pre)
	fmt.Fprintf(tw, "checksum after\t%016x\n", e.Post)
	fmt.Fprintf(tw, "pages of the database\t%d\n", e.Commit)
	fmt.Fprintf(tw, "page size\t%d\n", e.PageSize)
	fmt.Fprintf(tw, "bytes of the entry\t%d\n", e.Size)
	fmt.Fprintf(tw, "epoch\t%d\n", e.Epoch)
	fmt.Fprintf(tw, "time\t%s\n", e.Timestamp.UTC().Format(time.RFC3339Nano))
	if e.WALSize > 0 {
		fmt.Fprintf(tw, "from the -wal\toffset %d, %d bytes, salts %08x %08x\n", e.WALOffset, e.WALSize, e.Salt1, e.Salt2)
	}
	// The table goes to a terminal or a pipe: an error of it shows in the flush of the pages below.
	_ = tw.Flush()
}
