package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/litefs/litefs/internal/catalog"
	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/restore"
	"github.com/litefs/litefs/internal/sealstore"
)

func runKeys(ctx context.Context, args []string, std stdio) error {
	f := newFlags("keys", "litefs keys [flags]",
		"Lists with which key the databases of an encrypted archive are encrypted, all or\n"+
			"with -name one. -rotate: wraps their keys with the first of the keys that are given;\n"+
			"the others can be thrown away then. -destroy: destroys the key of one database, so\n"+
			"that nobody can ever read what the archive has of it; remove the database first.\n"+
			"-log: does the same with the log of a node, which it names by -config or -data; for\n"+
			"-destroy the node is stopped. The database itself stays, and begins a new log.",
		"litefs keys -from s3://bucket/litefs -key-file /etc/litefs.backup-keys -rotate")
	var a archiveFlags
	a.registerPlace(f)
	rotate := f.Bool("rotate", false, "wrap the databases' keys with the first key")
	destroy := f.Bool("destroy", false, "destroy the key of the database -name")
	asJSON := f.Bool("json", false, "print one JSON object a database")
	log := f.Bool("log", false, "the keys of the log of a node, not of an archive")
	data := f.String("data", "", "data `DIR` of the node, with -log")
	if rest, err := f.parse(args, std); err != nil {
		return err
	} else if len(rest) > 0 {
		return usagef("keys takes no arguments: name the archive with -from, the database with -name")
	}
	if *rotate && *destroy || *destroy && a.name == "" {
		return usagef("give -rotate, or -destroy with -name DB")
	}
	if *log {
		if a.from != "" || a.endpoint != "" || a.region != "" {
			return usagef("give -log, or -from and its flags: a log is in the data directory")
		}
		c := logKeysCommand{nodeFlags{configFlags: a.configFlags, data: *data, keyFile: a.keyFile}, a.name, *rotate, *destroy, *asJSON}
		return c.run(ctx, std.out)
	}
	if *data != "" {
		return usagef("-data goes with -log")
	}
	place, err := a.open(ctx)
	if err != nil {
		return err
	}
	store, ok := place.Store.(*sealstore.Store)
	if !ok {
		return config.Invalid(fmt.Errorf("%s cannot be encrypted", place.Store))
	}
	if *destroy {
		return destroyKey(ctx, store, a.name, *asJSON, std.out)
	}
	names := []string{a.name}
	if a.name == "" {
		if names, err = catalog.Databases(ctx, store); err != nil {
			return err
		}
	}
	for _, name := range names {
		do := store.KeyOf
		if *rotate {
			do = store.Rotate
		}
		state, err := do(ctx, name)
		if err != nil {
			return err
		}
		if err := printKey(std.out, keyLine{Database: name, WrappedBy: state.WrappedBy, Rotated: state.Rotated}, *asJSON); err != nil {
			return err
		}
	}
	return nil
}

// keyLine is what is told of the key of a database.
type keyLine struct {
	Database  string `json:"database"`
	ID        string `json:"id,omitempty"`
	Path      string `json:"path,omitempty"` // where the log is
	WrappedBy string `json:"wrappedBy"`      // id of the operator's key; "": there is none
	Rotated   bool   `json:"rotated"`
	Destroyed bool   `json:"destroyed"`
}

func printKey(w io.Writer, line keyLine, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(line)
	}
	text := "wrapped with key " + line.WrappedBy
	switch {
	case line.Destroyed:
		text = "destroyed"
	case line.WrappedBy == "":
		text = "no key: it is not encrypted, or its key has been destroyed"
	case line.Rotated:
		text += ", now"
	}
	what := line.Database
	if line.Path != "" {
		what = fmt.Sprintf("%q in %s", cmp.Or(line.Database, line.ID), line.Path)
	}
	_, err := fmt.Fprintf(w, "%s: %s\n", what, text)
	return err
}

func destroyKey(ctx context.Context, store *sealstore.Store, name string, asJSON bool, w io.Writer) error {
	was, err := store.Shred(ctx, name)
	if err != nil {
		return err
	}
	if !was {
		return fmt.Errorf("%w: %s has no key in %s", restore.ErrNoHistory, name, store)
	}
	return printKey(w, keyLine{Database: name, Destroyed: true}, asJSON)
}
