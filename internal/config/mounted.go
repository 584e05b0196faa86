package config

import (
	"os"
	"path/filepath"
	"strings"
)

// IsMounted reports whether a litefs mount is on dir, without asking that mount
// anything: its daemon may be dead, or dying, and never answer.
func IsMounted(dir string) bool {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err != nil {
		return false
	}
	return mountedIn(string(b), filepath.Join(parent, filepath.Base(dir)))
}

// mountedIn looks dir up in a mount table (proc_pid_mountinfo(5)).
func mountedIn(table, dir string) bool {
	for line := range strings.Lines(table) {
		head, tail, ok := strings.Cut(line, " - ")
		f := strings.Fields(head)
		if ok && len(f) > 4 && unescapeMount.Replace(f[4]) == dir && strings.HasPrefix(tail, "fuse.litefs ") {
			return true
		}
	}
	return false
}

var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
