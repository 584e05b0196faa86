package config

import (
	"errors"
	"fmt"
)

// checkForwardDir checks a second mount point.
func (c *Config) checkForwardDir() error {
	f := &c.Fuse
	if f.ForwardDir == "" {
		return nil
	}
	switch {
	case f.DaemonLocks:
		return errors.New("fuse.forward-dir is for fuse.locks: kernel: with daemon fuse.dir itself is what it would be; remove one of them")
	case f.Guardian:
		return errors.New("fuse.forward-dir and fuse.guardian: true do not go together: the locks that litefs keeps end with it, and a guardian would go on without them; remove one of them")
	case !f.Passthrough:
		return errors.New("fuse.forward-dir needs fuse.passthrough: auto: without it the kernel keeps pages of a file twice, once for each mount; remove one of them")
	}
	second := realPath(f.ForwardDir)
	for _, other := range []struct{ key, dir string }{{"fuse.dir", f.Dir}, {"data.dir", c.Data.Dir}} {
		if dir := realPath(other.dir); dir == second || isInside(dir, second) || isInside(second, dir) {
			return fmt.Errorf("fuse.forward-dir %s and %s %s are one, or one lies inside the other: give each a directory of its own", f.ForwardDir, other.key, other.dir)
		}
	}
	return nil
}
