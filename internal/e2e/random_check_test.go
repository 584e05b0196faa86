package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/litefs/litefs/internal/sqlitetest"
	"github.com/litefs/litefs/internal/verify"
	"github.com/litefs/litefs/sqlitefile"
)

// This file is what a random run proves.

// check ends every transaction and proves that the log, the files and the follower agree.
func (r *random) check() {
	r.note("check")
	r.exitAll()
	// A follower waits for readers before it changes the page size of a database.
	r.endReader()
	var names []string
	for _, db := range r.dbs {
		names = append(names, db.name)
	}
	eventually(r.t, "both nodes hold the same", func() (bool, string) {
		err := agree(r.t, r.primary, r.follower, names)
		return err == nil, fmt.Sprint(err)
	})
	for _, db := range r.dbs {
		out := strings.Fields(sqlitetest.CLI(r.t, r.follower.path(db.name), "PRAGMA integrity_check; SELECT n FROM seq;"))
		if len(out) != 2 || out[0] != "ok" || out[1] != fmt.Sprint(db.low) {
			r.fail("the follower's %s says %v, want ok and %d", db.name, out, db.low)
		}
	}
	r.noErrors()
}

// checkStopped stops both nodes and proves it once more, of what they leave on disk.
func (r *random) checkStopped() {
	for _, p := range r.procs {
		p.app.Exit()
	}
	r.endReader()
	var names []string
	for _, db := range r.dbs {
		names = append(names, db.name)
	}
	sameEverywhere(r.t, r.primary, r.follower, names...)
	r.noErrors()
}

// agree returns nil when both nodes, which may be running, hold exactly the named databases, verified
// and byte for byte the same.
func agree(t interface {
	TempDir() string
	Context() context.Context
}, primary, follower *node, names []string) error {
	var reports [2]map[string]*verify.Database
	for i, n := range []*node{primary, follower} {
		report, err := verify.Run(t.Context(), verify.Options{DataDir: n.cfg.Data, Keys: n.keys, TempDir: t.TempDir()})
		if err != nil {
			return err
		}
		reports[i] = map[string]*verify.Database{}
		for _, db := range report.Databases {
			reports[i][db.Name] = db
			if len(db.Faults) > 0 || len(db.Notes) > 0 {
				return fmt.Errorf("node %d: %s: %v %v", i, db.Name, db.Faults, db.Notes)
			}
		}
		if len(reports[i]) != len(names) {
			return fmt.Errorf("node %d has %d databases, want %v", i, len(reports[i]), names)
		}
	}
	for _, name := range names {
		p, f := reports[0][name], reports[1][name]
		if p == nil || f == nil {
			return fmt.Errorf("%s: primary %+v, follower %+v", name, p, f)
		}
		if p.Max == 0 || p.Max != f.Max || p.Checksum != f.Checksum {
			return fmt.Errorf("%s: primary at %016x/%016x, follower at %016x/%016x", name, p.Max, p.Checksum, f.Max, f.Checksum)
		}
		a, err := liveImage(t.TempDir(), primary, name)
		if err != nil {
			return err
		}
		b, err := liveImage(t.TempDir(), follower, name)
		if err != nil {
			return err
		}
		if !bytes.Equal(a, b) {
			return fmt.Errorf("%s: %d bytes on the primary and %d on the follower differ", name, len(a), len(b))
		}
	}
	return nil
}

// liveImage returns the pages of a database as SQLite sees them in a copy of the files of a node.
func liveImage(dir string, n *node, name string) ([]byte, error) {
	path := filepath.Join(dir, "copy.db")
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(filepath.Join(n.cfg.Data, "files", name+suffix))
		if os.IsNotExist(err) && suffix != "" {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(path+suffix, b, 0o600); err != nil {
			return nil, err
		}
	}
	if _, err := sqlitetest.TryCLI(path, "PRAGMA wal_checkpoint(TRUNCATE);"); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	hdr, err := sqlitefile.ParseHeader(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	// SQLite ignores what lies behind the last page.
	return b[:min(len(b), int(hdr.Pages(int64(len(b))))*int(hdr.PageSize))], nil
}

// allowedErrors are the lines of level ERROR that a run may leave in a log, and why.
var allowedErrors = []struct{ text, why string }{
	{`msg="database not streamed"`, "a snapshot is needed of a file that cp is writing over; tried again when that has ended"},
	{`msg="the daemon has died and is started again`, "the run has killed it below its guardian"},
}

// noErrors fails when a line of level ERROR was logged since the last look.
func (r *random) noErrors() {
	for _, n := range []*node{r.primary, r.follower} {
		for line := range strings.Lines(r.newLines(n)) {
			if !strings.Contains(line, "level=ERROR") {
				continue
			}
			if !slices.ContainsFunc(allowedErrors, func(a struct{ text, why string }) bool { return strings.Contains(line, a.text) }) {
				r.t.Errorf("in the log of %s: %s", n.cfg.Mount, line)
			}
		}
	}
}

// newLines returns the whole lines that a node has logged since the last look.
func (r *random) newLines(n *node) string {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	b := n.log.b.Bytes()
	end := bytes.LastIndexByte(b, '\n') + 1
	lines := string(b[r.seen[n]:end])
	r.seen[n] = end
	return lines
}
