package e2e

import (
	"bytes"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// TestRunPromote: `litefs run -promote` moves the role to its node before the command begins, and hands the command's exit
// code back; -if-candidate leaves the command out on a node that may not lead, with code 0, and without it the node says so.
func TestRunPromote(t *testing.T) {
	c := newCluster(t, patience)
	a := c.start()
	becomesPrimary(a)
	sqlitetest.CLI(t, a.path("app.db"), "PRAGMA journal_mode=wal; CREATE TABLE t(v)")
	b := c.start()
	never := c.start(func(cfg *childnode.Config) {
		cfg.Lease = slices.Clone(cfg.Lease)
		cfg.Lease[slices.Index(cfg.Lease, "candidate: true")] = "candidate: false"
	})
	samePosition(a, b, "app.db")
	samePosition(a, never, "app.db")

	run := func(n *node, args ...string) (code int, stdout, stderr string) {
		t.Helper()
		cmd := exec.CommandContext(timeout(t), binary(t), append([]string{"run", "-config", n.configPath()}, args...)...)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		var exit *exec.ExitError
		if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode(), out.String(), errs.String()
	}
	migrate := func(n *node, who string) []string {
		return []string{"--", "sh", "-c", "sqlite3 -cmd '.timeout 20000' " + n.path("app.db") + " \"INSERT INTO t VALUES ('" + who + "')\" && echo " + who + " && exit 7"}
	}
	for _, step := range []struct {
		name         string
		n            *node
		flags        []string
		code         int
		stdout, says string
		primary      *node
	}{
		{"no candidate", never, []string{"-promote", "-if-candidate"}, 0, "", "may not become the primary", a},
		{"no candidate, and none asked for", never, []string{"-promote"}, 1, "", "litefs: ", a},
		{"a replica", b, []string{"-promote", "-if-candidate"}, 7, "a replica\n", "", b},
		{"the primary", b, []string{"-promote"}, 7, "the primary\n", "", b},
		{"back", a, []string{"-if-candidate", "-promote"}, 7, "back\n", "", a},
	} {
		code, stdout, stderr := run(step.n, append(step.flags, migrate(step.n, step.name)...)...)
		if code != step.code || stdout != step.stdout || !strings.Contains(stderr, step.says) || step.says == "" && stderr != "" {
			t.Errorf("%s: exit code %d, %q, %q", step.name, code, stdout, stderr)
		}
		becomesPrimary(step.primary)
	}
	// A candidate that is not asked to lead runs it as a replica.
	if code, stdout, stderr := run(b, "-if-candidate", "--", "sh", "-c", "echo here; exit 3"); code != 3 || stdout != "here\n" || stderr != "" {
		t.Errorf("on a replica: exit code %d, %q, %q", code, stdout, stderr)
	}
	becomesPrimary(a)
	for _, n := range []*node{a, b, never} {
		samePosition(a, n, "app.db")
		if got := sqlitetest.CLI(t, n.path("app.db"), "SELECT group_concat(v, ', ') FROM t"); got != "a replica, the primary, back\n" {
			t.Errorf("%s has %q", n.cfg.Mount, got)
		}
	}
}
