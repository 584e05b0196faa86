package http

import (
	"fmt"
	"net/http"
	"net/url"
	"path"
)

// headerDatabases names, once for each pattern, the databases that a replica wants; absent: all. Patterns
// are those of path.Match, of whole names, and escaped as in a URL's query.
const headerDatabases = "Litefs-Databases"

// Bounds of a filter in a handshake.
const (
	maxPatterns   = 128
	maxPatternLen = 1024
)

// filter says which databases a replica wants. Empty: all.
type filter []string

// wants reports whether a database of this name is wanted.
func (f filter) wants(name string) bool {
	for _, pattern := range f {
		if ok, err := path.Match(pattern, name); ok && err == nil { // bad patterns were refused
			return true
		}
	}
	return len(f) == 0
}

func (f filter) validate() error {
	if len(f) > maxPatterns {
		return fmt.Errorf("%d patterns of databases, at most %d are allowed", len(f), maxPatterns)
	}
	for _, pattern := range f {
		if _, err := path.Match(pattern, ""); err != nil || pattern == "" || len(pattern) > maxPatternLen {
			return fmt.Errorf("%.64q is no pattern of database names", pattern)
		}
	}
	return nil
}

func (f filter) write(h http.Header) {
	for _, pattern := range f {
		h.Add(headerDatabases, url.QueryEscape(pattern))
	}
}

// readFilter reads what write has written.
func readFilter(h http.Header) (filter, error) {
	var f filter
	for _, s := range h.Values(headerDatabases) {
		pattern, err := url.QueryUnescape(s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", headerDatabases, err)
		}
		f = append(f, pattern)
	}
	return f, f.validate()
}
