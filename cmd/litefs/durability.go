package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	node "github.com/litefs/litefs/http"
)

func runDurability(ctx context.Context, args []string, std stdio) error {
	f := newFlags("durability", "litefs durability [flags] [set DB LEVEL]",
		"Shows what the running node promises of the commits of each database, or sets it:\n"+
			"  async                 a commit returns when this node has it\n"+
			"  quorum:1              when 1 replica has it on disk as well, or fails after 5s;\n"+
			"                        quorum:2,memory,10s: in the log of 2, within 10s\n"+
			"  archive               when every archive of this node has it as well, or fails after 15s;\n"+
			"                        archive:1m: within a minute\n"+
			"  max-lag:2s            writers wait while every replica is further behind\n"+
			"  rule                  what the configuration says\n"+
			"A level is set on the primary, wherever the command runs; replicas are told and keep\n"+
			"it, so that the next primary promises the same. It is kept over restarts, and comes\n"+
			"before the rules. It is pending until a write-ahead log that is open has been closed\n"+
			"by its last connection.",
		"litefs durability -config litefs.yml set app.db quorum:1")
	var c targetFlags
	c.register(f)
	asJSON := f.Bool("json", false, "print JSON")
	rest, err := f.parse(args, std)
	if err != nil {
		return err
	}
	if len(rest) > 0 && (rest[0] != "set" || len(rest) != 3) {
		return usagef("want: litefs durability, or litefs durability set DB LEVEL")
	}
	t, err := c.target()
	if err != nil {
		return err
	}
	if len(rest) == 0 {
		info, err := t.client.Info(ctx, t.url)
		if err != nil {
			return err
		}
		return printLevels(std.out, levelsOf(info), *asJSON)
	}
	url, err := t.primary(ctx)
	if err != nil {
		return err
	}
	db, err := t.client.SetLevel(ctx, url, rest[1], rest[2])
	if err != nil {
		return err
	}
	return printLevels(std.out, levels{Databases: []level{levelOf(db)}}, *asJSON)
}

// levels is what a node promises.
type levels struct {
	Databases []level  `json:"databases"`
	InSync    []string `json:"inSync,omitempty"`    // replicas that the lease record names
	Waited    []string `json:"waitedFor,omitempty"` // replicas that commits at levels quorum and archive wait for
}

type level struct {
	Name    string `json:"name"`
	Level   string `json:"level"`
	Set     bool   `json:"set"`     // by litefs durability, and not by a rule
	Pending bool   `json:"pending"` // until the last close of the write-ahead log that is open
	Held    bool   `json:"writersHeld"`
}

func levelsOf(info node.Info) levels {
	l := levels{Databases: []level{}, InSync: info.InSync, Waited: info.Waited}
	for _, db := range info.Databases {
		l.Databases = append(l.Databases, levelOf(db))
	}
	return l
}

func levelOf(db node.DatabaseInfo) level {
	return level{Name: db.Name, Level: db.Level, Set: db.LevelSet, Pending: db.LevelPending, Held: db.WritersHeld}
}

func printLevels(w io.Writer, l levels, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(l)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(tw, "DATABASE\tLEVEL\tFROM\tSTATE\n")
	for _, db := range l.Databases {
		from, state := "rule", "in force"
		if db.Set {
			from = "set"
		}
		switch {
		case db.Pending:
			state = "pending: until the last connection has closed the write-ahead log that is open"
		case db.Held:
			state = "writers wait: no replica is close enough behind"
		}
		fmt.Fprintf(tw, "%q\t%s\t%s\t%s\n", db.Name, db.Level, from, state)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	return printInSync(w, l.InSync, l.Waited)
}

// printInSync says which replicas commits wait for, if there are any.
func printInSync(w io.Writer, inSync, waited []string) error {
	if len(inSync) == 0 && len(waited) == 0 {
		return nil
	}
	_, err := fmt.Fprintf(w, "\nin sync: %s; commits at levels quorum and archive wait for: %s\n", orNone(inSync), orNone(waited))
	return err
}

func orNone(ids []string) string {
	if len(ids) == 0 {
		return "none"
	}
	return strings.Join(ids, " ")
}
