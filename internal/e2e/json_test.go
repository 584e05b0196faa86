package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// objects runs a command with -json and returns what it printed: an object, or some.
func objects(t *testing.T, args ...string) (list []map[string]any) {
	t.Helper()
	cmd := exec.CommandContext(timeout(t), binary(t), args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("%q: %v, %s", args, err, stderr.String())
	}
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var o map[string]any
		err := dec.Decode(&o)
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatalf("%q: %v in\n%s", args, err, out)
		}
		list = append(list, o)
	}
}

// What a program reads of each command has the fields that it looks for.
func TestMachineReadable(t *testing.T) {
	c := newCluster(t, 5*time.Second)
	a := c.start()
	becomesPrimary(a)
	b := c.start()
	sqlitetest.CLI(t, a.path("app.db"), "PRAGMA journal_mode=wal; CREATE TABLE t(v); INSERT INTO t VALUES (1);")
	samePosition(a, b, "app.db")
	image := filepath.Join(t.TempDir(), "copy.db")
	first, other := "-config "+a.configPath(), "-config "+b.configPath()
	for _, tt := range []struct{ args, fields string }{
		{"config " + first, "fuse data http lease log"},
		{"status " + first, "nodeID role epoch databases"},
		{"wait " + other + " app.db 0000000000000001", "pos"},
		{"export " + other + " -name app.db " + image, "name pos file size"},
		{"import " + other + " -name app.db " + image, "name pos pages pageSize created"},
		{"scrub " + first, "name pages entries txid"},
		{"promote " + other, "nodeID role epoch"},
		{"ltx list " + first, "database min max pages pageSize bytes pre post epoch timestamp"},
		{"ltx dump " + first + " app.db 1", "database min max changed"},
		{"verify " + first, "name ok txid checksum faults integrity"},
		{"version", "version go os arch"},
	} {
		args := append(strings.Fields(tt.args), "-json")
		list := objects(t, args...)
		if len(list) == 0 {
			t.Errorf("%s: nothing", tt.args)
			continue
		}
		for _, field := range strings.Fields(tt.fields) {
			if _, ok := list[0][field]; !ok {
				t.Errorf("%s: no %q in %v", tt.args, field, list[0])
			}
		}
		if args[0] == "promote" && list[0]["role"] != "primary" {
			t.Errorf("after promote: %v", list[0])
		}
	}
	eventually(t, "it hands back", func() (bool, string) { // once the other one is connected
		out, err := litefs(t, "demote", "-config", b.configPath(), "-json")
		var o struct{ NodeID, Role string }
		jsonErr := json.Unmarshal([]byte(out), &o)
		return err == nil && jsonErr == nil && o.NodeID != "" && o.Role != "primary", out
	})
	if list := objects(t, "lost", "-json", "-config", a.configPath()); len(list) != 0 {
		t.Errorf("lost: %v", list)
	}
}
