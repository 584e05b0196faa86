package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
	"time"

	node "github.com/litefs/litefs/http"
)

func runStatus(ctx context.Context, args []string, std stdio) error {
	f := newFlags("status", "litefs status [flags] [DIR]",
		"Asks the running node of this machine for its role, its databases and how far\n"+
			"its replicas are. A replica also asks its primary, to tell how many transactions\n"+
			"it is behind. The exit code is 1 when a database is set aside or does not follow.",
		"litefs status -config litefs.yml -watch")
	var c targetFlags
	c.register(f)
	asJSON := f.Bool("json", false, "print what the node answers")
	watch := f.Bool("watch", false, "print again each second, until interrupted")
	dirs, err := f.parse(args, std)
	if err != nil {
		return err
	}
	s, err := c.target(dirs...)
	if err != nil {
		return err
	}
	for {
		report, err := s.report(ctx)
		if ctx.Err() != nil {
			return nil // interrupted
		}
		if err == nil {
			err = report.print(std.out, *asJSON, *watch)
		}
		if err != nil || !*watch {
			if err == nil {
				err = report.fault()
			}
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// statusReport is what a node tells, and what its primary does.
type statusReport struct {
	Node node.Info
	// Primary is nil on a primary, and when the primary cannot be asked.
	Primary *node.Info
}

func (s target) report(ctx context.Context) (r statusReport, err error) {
	if r.Node, err = s.client.Info(ctx, s.url); err != nil {
		return r, err
	}
	if r.Node.PrimaryURL != "" && !r.Node.IsPrimary {
		if primary, err := s.client.Info(ctx, r.Node.PrimaryURL); err == nil {
			r.Primary = &primary // without it the lag in transactions is unknown, and printed so
		}
	}
	return r, nil
}

// fault is the first thing that is wrong with the node.
func (r statusReport) fault() error {
	for _, db := range r.Node.Failed {
		return fmt.Errorf("%s is set aside: %s", db.Name, db.Error)
	}
	for _, db := range r.Node.Databases {
		if db.Error != "" {
			return fmt.Errorf("%s does not follow the primary: %s", db.Name, db.Error)
		}
	}
	return nil
}

// clearScreen puts the next report in the place of the last.
const clearScreen = "\x1b[H\x1b[2J"

func (r statusReport) print(w io.Writer, asJSON, again bool) error {
	var b bytes.Buffer
	if asJSON {
		enc := json.NewEncoder(&b)
		if !again { // one line a report, else
			enc.SetIndent("", "  ")
		}
		if err := enc.Encode(r.Node); err != nil {
			return err
		}
	} else {
		if again {
			b.WriteString(clearScreen)
		}
		if err := r.printTables(&b); err != nil {
			return err
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

func (r statusReport) printTables(w io.Writer) error {
	n := r.Node
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "node\t%s\n", n.NodeID)
	fmt.Fprintf(tw, "role\t%s\n", n.Role)
	if n.PrimaryURL != "" {
		fmt.Fprintf(tw, "primary\t%s\n", n.PrimaryURL)
	}
	fmt.Fprintf(tw, "cluster\t%s, epoch %d\n", n.ClusterID, n.Epoch)
	fmt.Fprintf(tw, "mount\t%s, %s\n", n.Mount, ioMode(n.Passthrough))
	if n.LogsSealed {
		fmt.Fprint(tw, "logs\tencrypted\n")
	}
	if !n.IsPrimary {
		lag := lagText(n.LagMillis)
		if n.Stale {
			lag += ", more than replica.max-staleness"
		}
		fmt.Fprintf(tw, "lag\t%s\n", lag)
	}
	if s := n.Seeded; s != nil {
		text := fmt.Sprintf("%d databases, %s, came from the archive", s.Databases, size(s.Bytes))
		if s.Error != "" {
			text += "; the others from the primary: " + s.Error
		}
		fmt.Fprintf(tw, "start\t%s\n", text)
	}
	for _, a := range n.Archives {
		fmt.Fprintf(tw, "archive\t%s, %s\n", a.Place, archiveText(a))
	}
	fmt.Fprint(tw, "\nDATABASE\tTXID\tSIZE\tWAL\tLOG\tLEVEL\tSTATE\n")
	for _, db := range n.Databases {
		fmt.Fprintf(tw, "%q\t%s\t%s\t%s\t%s in %d\t%s\t%s\n", db.Name, db.TXID, size(int64(db.Pages)*int64(db.PageSize)),
			size(db.WALBytes), size(db.LogBytes), db.LogEntries, levelText(db), r.state(db))
	}
	for _, db := range n.Failed {
		fmt.Fprintf(tw, "%q\t\t\t\t\t\tset aside: %s\n", db.Name, db.Error)
	}
	if n.IsPrimary {
		printReplicas(tw, n.Replicas)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	return printInSync(w, n.InSync, n.Waited)
}

// levelText is the level of a database, and whether it is in force.
func levelText(db node.DatabaseInfo) string {
	if db.LevelPending {
		return db.Level + " (pending)"
	}
	return db.Level
}

func printReplicas(w io.Writer, replicas []node.ReplicaInfo) {
	fmt.Fprint(w, "\nREPLICA\tDATABASE\tAPPLIED\tDURABLE\tBEHIND\n")
	for _, rep := range replicas {
		who := rep.NodeID + " " + rep.Remote
		if !rep.Connected {
			who += ", gone for " + time.Since(rep.Contact).Round(time.Second).String()
		}
		for _, db := range rep.Databases {
			behind := strconv.FormatUint(db.LagTransactions, 10)
			if db.SnapshotBytes > 0 {
				behind += ", " + size(db.SnapshotSent) + " of a copy of " + size(db.SnapshotBytes) + " are sent"
			}
			fmt.Fprintf(w, "%s\t%q\t%s\t%s\t%s\n", who, db.Name, db.Applied, db.Durable, behind)
		}
		if len(rep.Databases) == 0 {
			fmt.Fprintf(w, "%s\t\t\t\t\n", who)
		}
	}
}

// state says in a few words how a database is.
func (r statusReport) state(db node.DatabaseInfo) string {
	switch {
	case db.Repairing != "":
		return db.Repairing
	case db.Error != "":
		return "does not follow: " + db.Error
	case db.Waiting:
		return "waits for readers: its write-ahead log is at its limit"
	case db.WritersHeld:
		return "writers wait: no replica is close enough behind"
	case db.Lent:
		return "lent: a replica has its write lock"
	case db.Borrowed:
		return "programs here write under the primary's lock"
	case db.NotBorrowed != "":
		return "a program here wanted to write and could not: " + db.NotBorrowed
	case db.LoadSize > 0:
		return "first copy " + drawBar(db.LoadBytes, db.LoadSize)
	case r.Node.IsPrimary:
		return "ok"
	case r.Primary == nil:
		return "primary not reached"
	}
	for _, p := range r.Primary.Databases {
		if p.ID == db.ID {
			return behindText(p.TXID, db.TXID)
		}
	}
	return "not on the primary"
}

// behindText compares TXIDs in hexadecimal. The primary was asked later.
func behindText(primary, own string) string {
	p, perr := strconv.ParseUint(primary, 16, 64)
	o, oerr := strconv.ParseUint(own, 16, 64)
	switch {
	case perr != nil || oerr != nil:
		return "?"
	case p > o:
		return fmt.Sprintf("%d behind", p-o)
	}
	return "ok"
}

func ioMode(passthrough bool) string {
	if passthrough {
		return "passthrough"
	}
	return "cached"
}

func lagText(ms *int64) string {
	if ms == nil {
		return "never had all that the primary has"
	}
	return (time.Duration(*ms) * time.Millisecond).String()
}

// size prints bytes with a unit.
func size(n int64) string {
	const units = "kMGT"
	if n < 1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	f, i := float64(n)/1024, 0
	for ; f >= 1024 && i < len(units)-1; i++ {
		f /= 1024
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}

// archiveText says how far an archive is.
func archiveText(a node.ArchiveInfo) string {
	text := "has everything"
	if a.Databases > 0 {
		text = fmt.Sprintf("%d databases behind, for %v", a.Databases, (time.Duration(a.LagMillis) * time.Millisecond).Round(time.Millisecond))
		if a.HeldBytes > 0 {
			text += ", " + size(a.HeldBytes) + " of logs are kept for archives"
		}
	}
	if a.Over != "" {
		text += "; it lacks more than backup.hold: " + a.Over
	}
	if a.Error != "" {
		text += "; fails: " + a.Error
	}
	return text
}
