package demo_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/demo"
	"github.com/litefs/litefs/internal/sqlapp"
)

const childEnv = "LITEFS_DEMO_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		m.Run()
		return
	}
	if err := sqlapp.Serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// options of a demonstration with the command built from this tree, whose files lie in dir.
func options(t *testing.T, out *bytes.Buffer) demo.Options {
	t.Helper()
	dir := t.TempDir()
	binary := filepath.Join(dir, "litefs")
	if out, err := exec.Command("go", "build", "-o", binary, "github.com/litefs/litefs/cmd/litefs").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	temp := filepath.Join(dir, "tmp")
	if err := os.Mkdir(temp, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", temp)
	t.Cleanup(func() {
		if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
			t.Errorf("the demonstration left %v (%v)", left, err)
		}
	})
	return demo.Options{Out: out, Binary: binary, App: sqlapp.Command{Env: []string{childEnv + "=1"}}, Interval: 50 * time.Millisecond}
}

func TestDemoShowsAndVerifies(t *testing.T) {
	var out bytes.Buffer
	o := options(t, &out)
	o.Lines = 3
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := demo.Run(ctx, o); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for want, times := range map[string]int{
		"rows written": 3, "replica-1: ": 3, "replica-2: ": 3, "integrity_check ok": 3, "all 3 nodes are the same, byte for byte": 1,
	} {
		if n := strings.Count(out.String(), want); n != times {
			t.Errorf("the output says %q %d times, want %d:\n%s", want, n, times, out.String())
		}
	}
}

// On a terminal each report takes the place of the last one.
func TestDemoOnATerminal(t *testing.T) {
	var out bytes.Buffer
	o := options(t, &out)
	o.Lines, o.Terminal = 3, true
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := demo.Run(ctx, o); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if n := strings.Count(out.String(), "\x1b[4A"); n != 2 || !strings.Contains(out.String(), "byte for byte") {
		t.Errorf("the cursor goes up %d times, want 2:\n%q", n, out.String())
	}
}

// The end of the context, at whatever point, ends the demonstration without an error.
func TestDemoEndsWithItsContext(t *testing.T) {
	var out bytes.Buffer
	o := options(t, &out)
	for _, after := range []time.Duration{0, 300 * time.Millisecond, 1500 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		if err := demo.Run(ctx, o); err != nil {
			t.Errorf("after %s: %v\n%s", after, err, out.String())
		}
		cancel()
	}
}
