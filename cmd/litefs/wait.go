package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/litefs/litefs"
	node "github.com/litefs/litefs/http"
)

func runWait(ctx context.Context, args []string, std stdio) error {
	f := newFlags("wait", "litefs wait [flags] DB POS",
		"Waits until the running node has a position of a database, and prints where it is.\n"+
			"POS is what the file DB-pos holds, or a TXID alone. The exit code is 1 when the\n"+
			"node does not get there in time, or cannot any more.",
		"litefs wait app.db $(cat /mnt/primary/app.db-pos)")
	var c targetFlags
	c.register(f)
	timeout := f.Duration("timeout", 10*time.Second, "give up after this `duration`")
	epoch := f.Uint64("epoch", 0, "the position is of this `epoch`: in a later one what is missing is not waited for")
	asJSON := f.Bool("json", false, "print what the node answers")
	rest, err := f.parse(args, std)
	if err != nil {
		return err
	}
	if len(rest) != 2 {
		return usagef("want: litefs wait DB POS")
	}
	text := rest[1]
	if !strings.Contains(text, "/") {
		text += "/0000000000000000"
	}
	pos, err := litefs.ParsePos(text)
	if err != nil {
		return usagef("%v, like 000000000000002a or the content of %s-pos", err, rest[0])
	}
	if *timeout < 0 {
		return usagef("-timeout %v is negative", *timeout)
	}
	t, err := c.target()
	if err != nil {
		return err
	}
	w, err := waitFor(ctx, t, rest[0], pos, *epoch, *timeout)
	if err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(std.out).Encode(w)
	}
	_, err = fmt.Fprintln(std.out, w.Pos)
	return err
}

// askWait is what one request waits at most.
const askWait = time.Minute

// waitFor waits as long as it takes, in requests that each end.
func waitFor(ctx context.Context, t target, name string, pos litefs.Pos, epoch uint64, timeout time.Duration) (node.Waited, error) {
	for {
		ask := min(timeout, askWait)
		w, err := t.client.Wait(ctx, t.url, name, pos, epoch, ask)
		var status *node.StatusError
		if timeout -= ask; timeout <= 0 || !errors.As(err, &status) || status.Code != http.StatusGatewayTimeout {
			return w, err
		}
	}
}
