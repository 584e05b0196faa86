package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// get starts a request to a node; the end of ctx ends it.
func (n *node) get(ctx context.Context, path string) *http.Response {
	n.t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.cfg.Addr+path, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		n.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		n.t.Fatalf("GET %s: %s", path, resp.Status)
	}
	return resp
}

// text returns the whole of a short answer.
func (n *node) text(path string) string {
	n.t.Helper()
	resp := n.get(timeout(n.t), path)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	return string(b)
}

// observed starts a primary and a follower with a database that both have.
func observed(t *testing.T) (primary, follower *node, c *sqlitetest.Conn) {
	t.Helper()
	primary = startNode(t, func(c *childnode.Config) { c.LeaseKeys = []string{"hostname: bert"} })
	follower = startNode(t, follows(primary), func(c *childnode.Config) { c.LeaseKeys = []string{"hostname: bert"} })
	sqlitetest.CLI(t, primary.path("app.db"), "PRAGMA journal_mode=wal; CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB);")
	caughtUp(primary, follower, "app.db")
	eventually(t, "the follower knows that it has all", func() (bool, string) {
		b, err := os.ReadFile(follower.path(".lag"))
		return err == nil && len(b) == len("+000000000\n"), string(b)
	})
	return primary, follower, sqlitetest.Open(t, primary.path("app.db"), "synchronous=normal")
}

// The files that applications of LiteFS 0.5 read, in its formats.
func TestVirtualFiles(t *testing.T) {
	primary, follower, c := observed(t)
	c.MustExec("INSERT INTO t(v) VALUES (1)")
	settle(c)
	caughtUp(primary, follower, "app.db")
	for _, f := range []struct {
		n      *node
		name   string
		format string // of the content; "": there is no such file
	}{
		{primary, "app.db-pos", `^[0-9a-f]{16}/[0-9a-f]{16}\n$`},
		{follower, "app.db-pos", `^[0-9a-f]{16}/[0-9a-f]{16}\n$`},
		{primary, ".lag", `^\+000000000\n$`},
		{follower, ".lag", `^[+-][0-9]{9}\n$`},
		{primary, ".primary", ""},
		{follower, ".primary", `^bert\n$`},
	} {
		b, err := os.ReadFile(f.n.path(f.name))
		switch {
		case f.format == "" && !errors.Is(err, os.ErrNotExist):
			t.Errorf("%s of the %s is %q, %v: want none", f.name, role(f.n), b, err)
		case f.format != "" && (err != nil || !regexp.MustCompile(f.format).Match(b)):
			t.Errorf("%s of the %s is %q, %v: want %s", f.name, role(f.n), b, err, f.format)
		}
		if f.format == "" {
			continue
		}
		if err := os.WriteFile(f.n.path(f.name), []byte("x"), 0o600); err == nil {
			t.Errorf("%s of the %s can be written", f.name, role(f.n))
		}
	}
}

func role(n *node) string {
	if n.cfg.PrimaryURL == "" {
		return "primary"
	}
	return "replica"
}

// Metrics have the names of LiteFS 0.5 where they mean the same, and the values of what happened.
func TestMetricsOfBothNodes(t *testing.T) {
	primary, follower, c := observed(t)
	if _, err := c.Repeat([]sqlapp.Step{insert(100)}, 20, 0); err != nil {
		t.Fatal(err)
	}
	settle(c)
	caughtUp(primary, follower, "app.db")
	want := map[*node][]string{
		primary: {
			`litefs_is_primary 1`, `litefs_db_count 1`, `litefs_lag_seconds 0`, `litefs_http_stream_count 1`,
			`litefs_subscriber_count [1-9]\d*`, `litefs_db_commit_count\{db="app.db"\} [1-9]\d*`,
			`litefs_db_ltx_reap_count\{db="app.db"\} 0`, `litefs_commit_to_apply_seconds_count 0`,
		},
		follower: {
			`litefs_is_primary 0`, `litefs_db_count 1`, `litefs_lag_seconds \S+`, `litefs_http_stream_count 0`,
			`litefs_subscriber_count \d+`, `litefs_db_commit_count\{db="app.db"\} 0`, `litefs_db_lag_seconds\{db="app.db"\} \S*[1-9]\S*`,
			`litefs_commit_to_apply_seconds_count [1-9]\d*`, `litefs_commit_to_apply_seconds_bucket\{le="\+Inf"\} [1-9]\d*`,
		},
	}
	for n, lines := range want {
		lines = append(lines, `litefs_db_txid\{db="app.db"\} [1-9]\d*`, `litefs_db_ltx_count\{db="app.db"\} [1-9]\d*`, `litefs_db_ltx_bytes\{db="app.db"\} [1-9]\d*`)
		got := n.text("/metrics")
		for _, line := range lines {
			if !regexp.MustCompile(`(?m)^` + line + `$`).MatchString(got) {
				t.Errorf("the %s has no line %s in\n%s", role(n), line, got)
			}
		}
	}
}

// GET /info has what LiteFS 0.5 tells.
func TestInfoOfBothNodes(t *testing.T) {
	primary, follower, _ := observed(t)
	var infos []map[string]any
	for _, n := range []*node{primary, follower} {
		var info map[string]any
		if err := json.Unmarshal([]byte(n.text("/info")), &info); err != nil {
			t.Fatal(err)
		}
		infos = append(infos, info)
		host, ok := info["primary"].(map[string]any)
		if info["isPrimary"] != (n == primary) || info["candidate"] != (n == primary) || info["path"] != n.cfg.Data || !ok || host["hostname"] != "bert" {
			t.Errorf("%s: %v", role(n), info)
		}
	}
	if id := infos[0]["clusterID"]; id == "" || id != infos[1]["clusterID"] || infos[0]["nodeID"] == infos[1]["nodeID"] {
		t.Errorf("identities: %v, %v", infos[0], infos[1])
	}
}

// GET /events is a line of JSON for each thing that happens, on either node.
func TestEventsOfBothNodes(t *testing.T) {
	primary, follower, c := observed(t)
	ctx := timeout(t)
	streams := map[*node]*bufio.Scanner{}
	for _, n := range []*node{primary, follower} {
		resp := n.get(ctx, "/events")
		t.Cleanup(func() { _ = resp.Body.Close() })
		streams[n] = bufio.NewScanner(resp.Body)
		want := `{"type":"init","data":{"isPrimary":` + map[bool]string{true: "true", false: "false"}[n == primary] + `,"hostname":"bert"}}`
		if !streams[n].Scan() || streams[n].Text() != want {
			t.Fatalf("%s: first event %s (%v), want %s", role(n), streams[n].Text(), streams[n].Err(), want)
		}
	}
	c.MustExec("INSERT INTO t(v) VALUES (1)")
	settle(c)
	var told []string
	for _, n := range []*node{primary, follower} {
		if !streams[n].Scan() {
			t.Fatalf("%s: %v", role(n), streams[n].Err())
		}
		line := streams[n].Text()
		const format = `^\{"type":"tx","db":"app.db","data":\{"txID":"[0-9a-f]{16}","postApplyChecksum":"[0-9a-f]{16}","pageSize":4096,"commit":2,"timestamp":"[0-9TZ:.-]+",` +
			`"minTXID":"[0-9a-f]{16}","dbID":"[0-9a-f]{16}","epoch":1,"node":"[0-9a-f]{16}","pages":[12]\}\}$`
		if !regexp.MustCompile(format).MatchString(line) {
			t.Errorf("%s: %s, want %s", role(n), line, format)
		}
		told = append(told, line)
	}
	if len(slices.Compact(told)) != 1 {
		t.Errorf("the nodes tell different things: %s", strings.Join(told, "\n"))
	}
}
