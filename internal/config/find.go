package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// SearchPath is where a file is looked for when none is named, in order; home
// may be "".
func SearchPath(home string) []string {
	paths := []string{"litefs.yml"}
	if home != "" {
		paths = append(paths, filepath.Join(home, "litefs.yml"))
	}
	return append(paths, "/etc/litefs.yml")
}

// Find returns the first of paths that exists. A file that exists but cannot
// be read is the one that was meant: it is not skipped.
func Find(paths []string) (string, error) {
	for _, path := range paths {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", Invalid(err)
		}
	}
	return "", Invalid(fmt.Errorf("no configuration file: name one with -config, or a directory to mount; looked for %s",
		strings.Join(paths, ", ")))
}
