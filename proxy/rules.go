package proxy

import (
	"net/http"
	"strings"
)

// healthPath is answered by the proxy itself.
const healthPath = "/litefs/health"

// kind is what a request is to the proxy.
type kind int

const (
	kindPassthrough kind = iota // to the application here, whatever it does
	kindHealth                  // answered by the proxy
	kindRead                    // to the application here, once it has what the client must see
	kindWrite                   // to the application on the primary
)

// rules tell reads from writes.
type rules struct {
	passthrough   []string
	alwaysForward []string
}

// classify says what a request is; path is decoded and begins with a slash.
func (ru rules) classify(method, path string) kind {
	switch {
	case matchAny(ru.passthrough, path):
		return kindPassthrough
	case path == healthPath && method == http.MethodGet:
		return kindHealth
	case method != http.MethodGet && method != http.MethodHead:
		return kindWrite
	case matchAny(ru.alwaysForward, path):
		return kindWrite
	}
	return kindRead
}

func matchAny(patterns []string, path string) bool {
	for _, p := range patterns {
		if match(p, path) {
			return true
		}
	}
	return false
}

// match reports whether all of s is what the pattern describes: "*" is any text,
// slashes included, every other character is itself.
func match(pattern, s string) bool {
	head, rest, wild := strings.Cut(pattern, "*")
	if !wild {
		return pattern == s
	}
	s, ok := strings.CutPrefix(s, head)
	if !ok {
		return false
	}
	for {
		var part string
		part, rest, wild = strings.Cut(rest, "*")
		if !wild {
			return strings.HasSuffix(s, part)
		}
		// The first place is the best one: it leaves the most for the parts after it.
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s = s[i+len(part):]
	}
}
