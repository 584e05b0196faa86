package main

import (
	"context"
	"encoding/json"
	"fmt"
)

func runPromote(ctx context.Context, args []string, std stdio) error {
	f := newFlags("promote", "litefs promote [flags]",
		"Makes the running node the primary, and returns when it is. The node that is the\n"+
			"primary hands over: its writers wait for a moment, and nothing is lost.\n"+
			"While nobody is the primary, a node that lacks transactions which others have, or had,\n"+
			"does not become it; with -force and its own id it does, and those are not in the\n"+
			"cluster then: nodes that have them keep them in lost+found.",
		"litefs promote -config /etc/litefs.yml")
	var c targetFlags
	c.register(f)
	force := f.String("force", "", "the node's `id`, as litefs status shows it: become the primary even if others have more")
	asJSON := f.Bool("json", false, "print JSON")
	rest, err := f.parse(args, std)
	if err != nil {
		return err
	}
	if len(rest) != 0 {
		return usagef("want: litefs promote")
	}
	t, err := c.target()
	if err != nil {
		return err
	}
	if err := t.client.Promote(ctx, t.url, *force); err != nil {
		return err
	}
	return t.printRole(ctx, std, "this node is the primary", *asJSON)
}

func runDemote(ctx context.Context, args []string, std stdio) error {
	f := newFlags("demote", "litefs demote [flags]",
		"Makes the running node, which is the primary, hand over, and returns when it has.\n"+
			"Writers wait for a moment, and nothing is lost. Without -to the candidate that is\n"+
			"most up to date becomes the primary.",
		"litefs demote -to 5227d4801089e84e")
	var c targetFlags
	c.register(f)
	to := f.String("to", "", "`id` of the node that becomes the primary, as litefs status shows it")
	asJSON := f.Bool("json", false, "print JSON")
	rest, err := f.parse(args, std)
	if err != nil {
		return err
	}
	if len(rest) != 0 {
		return usagef("want: litefs demote")
	}
	t, err := c.target()
	if err != nil {
		return err
	}
	if err := t.client.Demote(ctx, t.url, *to); err != nil {
		return err
	}
	return t.printRole(ctx, std, "this node is not the primary any more", *asJSON)
}

// moved is a node after its role has moved. The next primary may not be known yet.
type moved struct {
	NodeID     string `json:"nodeID"`
	Role       string `json:"role"`
	PrimaryURL string `json:"primaryURL,omitempty"`
	Epoch      uint64 `json:"epoch"`
}

// printRole says that the role has moved: in words, or what the node tells of itself now.
func (t target) printRole(ctx context.Context, std stdio, words string, asJSON bool) error {
	if !asJSON {
		_, err := fmt.Fprintln(std.out, words)
		return err
	}
	info, err := t.client.Info(ctx, t.url)
	if err != nil {
		return fmt.Errorf("%s, but does not answer: %w", words, err)
	}
	return json.NewEncoder(std.out).Encode(moved{info.NodeID, info.Role, info.PrimaryURL, info.Epoch})
}
