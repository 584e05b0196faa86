package main

import (
	"os"

	"github.com/litefs/litefs/internal/config"
)

// configFlags are the flags that say which configuration is meant.
type configFlags struct {
	path     string
	noExpand bool
	set      list
}

func (c *configFlags) register(f *flags) {
	f.StringVar(&c.path, "config", "", "configuration `FILE`")
	f.BoolVar(&c.noExpand, "no-expand-env", false, "leave $NAME in the file as it is")
	f.Var(&c.set, "set", "`KEY=VALUE` in place of the file's, like http.addr=127.0.0.1:20203; may be repeated")
}

// load reads the configuration: of the file, or of dir without one, or of the
// first file of the search path.
func (c *configFlags) load(positional []string) (*config.Config, error) {
	src := config.Source{Set: c.set, NoExpand: c.noExpand}
	switch {
	case len(positional) > 1:
		return nil, usagef("one directory at most, but there are %d: a command to start goes after --", len(positional))
	case len(positional) == 1 && positional[0] == "":
		return nil, usagef("the directory to mount is empty")
	case len(positional) == 1 && c.path != "":
		return nil, usagef("give -config %s or the directory %s, not both: fuse.dir in the file names the directory", c.path, positional[0])
	case len(positional) == 1:
		return config.Default(positional[0], src)
	case c.path != "":
		return config.Load(c.path, src)
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = "" // one place less to look
	}
	path, err := config.Find(config.SearchPath(home))
	if err != nil {
		return nil, err
	}
	return config.Load(path, src)
}
