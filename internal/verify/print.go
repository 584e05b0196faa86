package verify

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
)

// Print writes a report for people: a line a database, then what is wrong and what is worth knowing.
func (r *Report) Print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, d := range r.Databases {
		state := "ok"
		if !d.OK() {
			state = "BAD"
		}
		how := "checksum of all pages compared"
		if d.Replayed {
			how = "log replayed and compared page by page"
		}
		if d.Max == 0 {
			how = "no log"
		}
		fmt.Fprintf(tw, "%s\t%s\t%016x/%016x\t%d entries\t%d pages of %d\t%s\tintegrity %s\n",
			state, d.Name, d.Max, d.Checksum, d.Entries, d.Pages, d.PageSize, how, d.Integrity)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, d := range r.Databases {
		for _, f := range d.Faults {
			if _, err := fmt.Fprintf(w, "%s: %s\n", d.Name, f.Error()); err != nil {
				return err
			}
		}
		for _, n := range d.Notes {
			if _, err := fmt.Fprintf(w, "%s: note: %s\n", d.Name, n); err != nil {
				return err
			}
		}
	}
	if len(r.Databases) == 0 {
		_, err := fmt.Fprintf(w, "%s: no databases\n", r.DataDir)
		return err
	}
	return nil
}

// PrintJSON writes a report for programs: an object a database. TXIDs and checksums are hexadecimal, as
// they are everywhere else.
func (r *Report) PrintJSON(w io.Writer) error {
	type fault struct {
		TXID  string `json:"txid,omitempty"` // first transaction that is bad
		Error string `json:"error"`
	}
	enc := json.NewEncoder(w)
	for _, d := range r.Databases {
		faults := []fault{}
		for _, f := range d.Faults {
			line := fault{Error: f.Err.Error()}
			if f.TXID > 0 {
				line.TXID = hex16(f.TXID)
			}
			faults = append(faults, line)
		}
		err := enc.Encode(struct {
			ID        string   `json:"id"`
			Name      string   `json:"name"`
			OK        bool     `json:"ok"`
			First     string   `json:"first"` // transactions in the log
			TXID      string   `json:"txid"`
			Checksum  string   `json:"checksum"`
			Entries   int      `json:"entries"`
			PageSize  uint32   `json:"pageSize"`
			Pages     uint32   `json:"pages"`
			Replayed  bool     `json:"replayed"` // the log begins with transaction 1, so it was replayed from nothing
			Integrity string   `json:"integrity"`
			Faults    []fault  `json:"faults"`
			Notes     []string `json:"notes,omitempty"`
		}{d.ID, d.Name, d.OK(), hex16(d.First), hex16(d.Max), hex16(d.Checksum), d.Entries, d.PageSize, d.Pages, d.Replayed, d.Integrity, faults, d.Notes})
		if err != nil {
			return err
		}
	}
	return nil
}

func hex16(n uint64) string { return fmt.Sprintf("%016x", n) }
