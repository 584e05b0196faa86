package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/config"
)

// The trace has what the log leaves out, and the log does not get more by it.
func TestTrace(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return string(b)
	}
	path := "tracing.path=" + filepath.Join(dir, "file.trace")
	off := "tracing.path=" + filepath.Join(dir, "off.trace")
	for _, tt := range []struct {
		name   string
		set    []string
		loud   bool
		inFile bool
	}{
		{"none", nil, false, false}, {"file", []string{path}, false, true}, {"loud", nil, true, false},
		{"off", []string{off, "tracing.enabled=false"}, false, false},
	} {
		cfg, err := config.Default(filepath.Join(dir, "mnt"), config.Source{Set: tt.set})
		if err != nil {
			t.Fatal(err)
		}
		logger, trace := newLogger(cfg, stdio{out: file(tt.name + ".out"), err: file(tt.name + ".err")}, tt.loud)
		logger.Debug("quiet")
		logger.Info("said")
		if err := trace.Close(); err != nil {
			t.Error(err)
		}
		for name, want := range map[string]bool{tt.name + ".trace": tt.inFile, tt.name + ".out": tt.loud, tt.name + ".err": false} {
			if got := strings.Contains(read(name), "quiet"); got != want {
				t.Errorf("%s has what is traced: %v, want %v", name, got, want)
			}
		}
		if !strings.Contains(read(tt.name+".err"), "said") {
			t.Errorf("%s: the log is empty", tt.name)
		}
	}
}
