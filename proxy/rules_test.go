package proxy

import (
	"strings"
	"testing"
)

func TestClassify(t *testing.T) {
	ru := rules{passthrough: []string{"*.png", "/static/*"}, alwaysForward: []string{"/admin*", "/a*b*c"}}
	for _, tt := range []struct {
		method, path string
		want         kind
	}{
		{"GET", "/", kindRead},
		{"HEAD", "/x", kindRead},
		{"POST", "/", kindWrite},
		{"PUT", "/", kindWrite},
		{"DELETE", "/", kindWrite},
		{"OPTIONS", "/", kindWrite},
		{"get", "/", kindWrite}, // methods are case-sensitive
		{"GET", "/litefs/health", kindHealth},
		{"POST", "/litefs/health", kindWrite},
		{"GET", "/litefs/health/", kindRead},
		{"POST", "/a/b.png", kindPassthrough},
		{"POST", "/static/", kindPassthrough},
		{"POST", "/static", kindWrite},
		{"GET", "/admin", kindWrite},
		{"GET", "/administrators/x", kindWrite},
		{"GET", "/a12b34c", kindWrite},
		{"GET", "/abc", kindWrite},
		{"GET", "/abcd", kindRead},
		{"GET", "/acb", kindRead},
	} {
		if got := ru.classify(tt.method, tt.path); got != tt.want {
			t.Errorf("classify(%s %s) = %d, want %d", tt.method, tt.path, got, tt.want)
		}
	}
}

// FuzzMatch compares match with the definition of a pattern, tried out.
func FuzzMatch(f *testing.F) {
	f.Add("/a*b*c", "/aXbYc")
	f.Add("*", "")
	f.Add("**a", "ba")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern) > 12 || len(s) > 24 {
			return
		}
		if got, want := match(pattern, s), matchSlow(pattern, s); got != want {
			t.Errorf("match(%q, %q) = %v, want %v", pattern, s, got, want)
		}
	})
}

func matchSlow(pattern, s string) bool {
	if pattern == "" {
		return s == ""
	}
	if strings.HasPrefix(pattern, "*") {
		return matchSlow(pattern[1:], s) || s != "" && matchSlow(pattern, s[1:])
	}
	return s != "" && s[0] == pattern[0] && matchSlow(pattern[1:], s[1:])
}
