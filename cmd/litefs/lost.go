package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"text/tabwriter"

	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/lostfound"
)

func runLost(ctx context.Context, args []string, std stdio) error {
	f := newFlags("lost", "litefs lost [flags] [NAME]",
		"Lists the transactions that this node had and its cluster did not keep, after a\n"+
			"failover or a power cut. With the NAME that the list shows: which tables they\n"+
			"changed. With -export: the database as it was here, as a file. They stay until\n"+
			"their directory is removed.",
		"litefs lost -config litefs.yml -export /tmp/app.db app.db-2-000000000000002a")
	var n nodeFlags
	n.register(f)
	n.registerKeys(f)
	export := f.String("export", "", "write the database to `FILE`, which must not exist")
	asJSON := f.Bool("json", false, "print JSON")
	temp := f.String("temp", "", "`DIR` for a copy, as large as the database (default the system's)")
	names, err := f.parse(args, std)
	if err != nil {
		return err
	}
	if len(names) > 1 || *export != "" && len(names) == 0 {
		return usagef("name one of what litefs lost lists")
	}
	data, err := n.dataDir(ctx)
	if err != nil {
		return err
	}
	dir := filepath.Join(data, "lost+found")
	if len(names) == 0 {
		list, err := lostfound.List(dir)
		return errors.Join(printLost(std.out, list, *asJSON), err)
	}
	kept, err := lostfound.Find(dir, names[0])
	if err != nil {
		return config.Invalid(err)
	}
	keys, err := n.logKeys(ctx)
	if err != nil {
		return err
	}
	if *export != "" {
		if err := kept.Export(*export, keys); err != nil {
			return err
		}
		if *asJSON {
			return json.NewEncoder(std.out).Encode(exportedLost{kept.Name, fmt.Sprintf("%016x", kept.Last), *export})
		}
		_, err := fmt.Fprintf(std.out, "%s: %q after transaction %016x\n", *export, kept.Name, kept.Last)
		return err
	}
	tables, err := kept.Tables(ctx, *temp, keys)
	if err != nil {
		return err
	}
	return printKept(std.out, kept, tables, *asJSON)
}

// exportedLost is a database that was written to a file.
type exportedLost struct {
	Name string `json:"name"`
	TXID string `json:"txid"` // after which it is
	File string `json:"file"`
}

func printLost(w io.Writer, list []lostfound.Kept, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(w)
		for _, k := range list {
			if err := enc.Encode(named{k.Key, k}); err != nil {
				return err
			}
		}
		return nil
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(tw, "NAME\tDATABASE\tTRANSACTIONS\tNEWEST\tKEPT\tSIZE\n")
	for _, k := range list {
		fmt.Fprintf(tw, "%s\t%q\t%d\t%s\t%s\t%s\n", k.Key, k.Name, k.Last-k.First+1, k.Newest.UTC().Format("2006-01-02 15:04:05"), k.At.Format("2006-01-02 15:04:05"), size(k.Bytes))
	}
	return tw.Flush()
}

// named is what is kept with the name that it has here.
type named struct {
	Key string `json:"key"`
	lostfound.Kept
}

func printKept(w io.Writer, k lostfound.Kept, tables []lostfound.Table, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(struct {
			named
			Tables []lostfound.Table `json:"tables"`
		}{named{k.Key, k}, tables})
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "database\t%q\n", k.Name)
	fmt.Fprintf(tw, "transactions\t%016x to %016x, of epoch %d\n", k.First, k.Last, k.Epoch)
	fmt.Fprintf(tw, "written\tuntil %s, kept %s\n", k.Newest.UTC().Format("2006-01-02 15:04:05"), k.At.Format("2006-01-02 15:04:05"))
	fmt.Fprintf(tw, "why\t%s\n", k.Reason)
	fmt.Fprintf(tw, "directory\t%s\n", k.Path)
	fmt.Fprint(tw, "\nTABLE\tROWS\tPAGES CHANGED\n")
	for _, t := range tables {
		rows := "not readable"
		if t.Rows >= 0 {
			rows = fmt.Sprint(t.Rows)
		}
		fmt.Fprintf(tw, "%q\t%s\t%d\n", t.Name, rows, t.Pages)
	}
	return tw.Flush()
}
