package main

import (
	"context"
	"strconv"

	"github.com/litefs/litefs/internal/verify"
)

func runLTX(ctx context.Context, args []string, std stdio) error {
	f := newFlags("ltx", "litefs ltx list [flags] [DATABASE ...]\n       litefs ltx dump [flags] DATABASE TXID",
		"Shows the log of a node: list prints a line for each entry, dump the header and\n"+
			"the pages of the entry that holds a transaction. TXID is hexadecimal, as list\n"+
			"prints it.",
		"litefs ltx list -config litefs.yml app.db")
	var n nodeFlags
	n.register(f)
	n.registerKeys(f)
	asJSON := f.Bool("json", false, "print one JSON object an entry")
	args, err := f.parse(args, std)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		return usagef("want: litefs ltx list, or litefs ltx dump DATABASE TXID")
	}
	action, args := args[0], args[1:]
	switch action {
	case "list":
		dir, err := n.dataDir(ctx)
		if err != nil {
			return err
		}
		keys, err := n.logKeys(ctx)
		if err != nil {
			return err
		}
		return n.blame(verify.List(ctx, std.out, dir, args, keys, *asJSON))

	case "dump":
		if len(args) != 2 {
			return usagef("want: litefs ltx dump DATABASE TXID")
		}
		txid, err := strconv.ParseUint(args[1], 16, 64)
		if err != nil || txid == 0 {
			return usagef("%q is not a TXID like 000000000000002a", args[1])
		}
		dir, err := n.dataDir(ctx)
		if err != nil {
			return err
		}
		keys, err := n.logKeys(ctx)
		if err != nil {
			return err
		}
		return n.blame(verify.Dump(std.out, dir, args[0], txid, keys, *asJSON))
	}
	return usagef("unknown action %q: litefs ltx has list and dump", action)
}
