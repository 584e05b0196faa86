package main

import "context"

func runLTX(_ context.Context, args []string, std stdio) error {
	f := newFlags("ltx", "litefs ltx list|dump [flags] DATABASE",
		"Lists the transactions in the log of a database, or dumps one of them.",
		"litefs ltx list -config litefs.yml app.db")
	var n nodeFlags
	n.register(f)
	if _, err := f.parse(args, std); err != nil {
		return err
	}
	node, err := n.load()
	if err != nil {
		return err
	}
	return notBuilt("ltx (of " + node.url + ")")
}
