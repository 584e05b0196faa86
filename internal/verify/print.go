package verify

import (
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
