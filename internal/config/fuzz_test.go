package config_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/config"
)

// Any bytes give a configuration that survives printing, or one line.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"", "fuse: {dir: /mnt/a}", "mount-dir: $A\nexec: 'a b'", "a: &x [*x]", "--- a\n--- b", "fuse:\n  <<: *y",
		"fuse: {dir: /a}\nexec:\n  - cmd: \"${A == 'b'}\"", "lease: {candidate: no, advertise-url: 'http://[::1]:9'}\nmount-dir: /a",
		"fuse: {dir}\nexec:\n- : \"${ :\n\n'}\"",
		"? {a: b}\n: c", "\xff", "mount-dir: !!binary aGk=", "data: {max-size: 1T}\nfuse: {dir: \"a\\0b\"}",
	} {
		f.Add([]byte(seed))
	}
	src := source("A", "/mnt/a", "LITEFS_TOKEN", "t")
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := config.Parse(data, src)
		if err != nil {
			if !errors.Is(err, config.ErrInvalid) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("not one line: %q", err)
			}
			return
		}
		text, err := cfg.YAML()
		if err != nil {
			t.Fatal(err)
		}
		again, err := config.Parse(text, src)
		if err != nil {
			t.Fatalf("printed and read back: %v\n%s", err, text)
		}
		again.HTTP.Token = cfg.HTTP.Token
		if !reflect.DeepEqual(again, cfg) {
			t.Fatalf("printed and read back\ngot  %+v\nwant %+v\n%s", again, cfg, text)
		}
	})
}

// A command line that splits is joined to one that splits into the same.
func FuzzSplitCommand(f *testing.F) {
	f.Add(`sh -c 'a "b" $c' "" \d`)
	f.Fuzz(func(t *testing.T, line string) {
		argv, err := config.SplitCommand(line)
		if err != nil || len(argv) == 0 {
			return
		}
		again, err := config.SplitCommand(config.JoinCommand(argv))
		if err != nil || !reflect.DeepEqual(again, argv) {
			t.Fatalf("got %q, %v, want %q", again, err, argv)
		}
	})
}
