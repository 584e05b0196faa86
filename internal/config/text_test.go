package config

import (
	"math"
	"reflect"
	"testing"
)

func TestExpand(t *testing.T) {
	env := map[string]string{"A": "1", "_B2": "x y", "EMPTY": "", "R": "ord"}
	e := expander{lookup: func(n string) (string, bool) { v, ok := env[n]; return v, ok }}
	for _, tt := range []struct{ in, want string }{
		{"", ""},
		{"plain", "plain"},
		{"$A", "1"},
		{"${A}", "1"},
		{"${ A }", "1"},
		{"a${A}b$_B2/c", "a1bx y/c"},
		{"$EMPTY", ""},
		{"$$A", "$A"},
		{"$", "$"},
		{"5$", "5$"},
		{"$1 $/", "$1 $/"},
		{"${R == 'ord'}", "true"},
		{"${R=='ord'}", "true"},
		{`${R == "ams"}`, "false"},
		{"${R != 'ams'}", "true"},
		{"${R == A}", "false"},
		{"${R == R}", "true"},
		{"${NOPE == ''}", "true"},
		{"${NOPE != ''}", "false"},
		{"${R == NOPE}", "false"},
	} {
		if got, err := e.expand(tt.in); err != nil || got != tt.want {
			t.Errorf("%q: got %q, %v, want %q", tt.in, got, err, tt.want)
		}
	}
	for _, in := range []string{"${", "${}", "${A", "${A B}", "${A == }", "${A == 'x}", "${A == x y}", "${1}", "$NOPE", "${NOPE}", "${A = 'x'}"} {
		if got, err := e.expand(in); err == nil {
			t.Errorf("%q: got %q, want an error", in, got)
		}
	}
	e.emptyIfUnset = true
	if got, err := e.expand("a $NOPE b"); err != nil || got != "a  b" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestSplitCommand(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want []string
	}{
		{"", nil},
		{"  \t\n ", nil},
		{"a", []string{"a"}},
		{" a  b\tc\n", []string{"a", "b", "c"}},
		{"'a b' c", []string{"a b", "c"}},
		{`"a b"'c d'e`, []string{"a bc de"}},
		{`''`, []string{""}},
		{`a ""`, []string{"a", ""}},
		{`a\ b`, []string{"a b"}},
		{`'a\b'`, []string{`a\b`}},
		{`"a\"b\\c\$d\e"`, []string{`a"b\c$d\e`}},
		{"a\\\nb", []string{"ab"}},
		{"\"a\\\nb\"", []string{"ab"}},
		{"a # b", []string{"a", "#", "b"}},
		{"sh -c 'echo $HOME | wc'", []string{"sh", "-c", "echo $HOME | wc"}},
		{`it\'s`, []string{"it's"}},
	} {
		got, err := SplitCommand(tt.in)
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q: got %q, %v, want %q", tt.in, got, err, tt.want)
		}
	}
	for _, in := range []string{"'", `"`, `a\`, `"a\`, `"a\"`, "a 'b"} {
		if got, err := SplitCommand(in); err == nil {
			t.Errorf("%q: got %q, want an error", in, got)
		}
	}
}

func TestSize(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "17": 17, "17B": 17, "1K": 1024, "1kb": 1024, "1KiB": 1024, "2 MB": 2 << 20,
		"3G": 3 << 30, "1TB": 1 << 40, "9223372036854775807": math.MaxInt64,
	} {
		got, err := parseSize(in)
		if err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", in, got, err, want)
		}
		if back, err := parseSize(formatSize(want)); err != nil || back != want {
			t.Errorf("%q printed as %q is read as %d, %v", in, formatSize(want), back, err)
		}
	}
	for _, in := range []string{"", "K", "-1", "1.5G", "1X", "1KX", "9223372036854775808", "9007199254740992K", "1 000"} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("%q: got %d, want an error", in, got)
		}
	}
}

func TestLoopback(t *testing.T) {
	for addr, want := range map[string]bool{
		"127.0.0.1:1": true, "127.9.9.9:1": true, "[::1]:1": true, "localhost:1": true, "LocalHost:1": true,
		":1": false, "0.0.0.0:1": false, "[::]:1": false, "10.0.0.1:1": false, "localhost.example:1": false, "127.0.0.1": false,
	} {
		if got := addrIsLoopback(addr); got != want {
			t.Errorf("%s: got %v, want %v", addr, got, want)
		}
	}
}
