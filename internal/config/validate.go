package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"path/filepath"
	"strings"
)

// conclude fills in what follows from other keys and checks the keys against
// each other.
func (p *parser) conclude() error {
	for _, pair := range [][2]string{
		{"mount-dir", "fuse.dir"}, {"http.token", "http.token-file"}, {"http.admin-token", "http.admin-token-file"},
		{"consul.url", "lease.consul.url"}, {"consul.key", "lease.consul.key"}, {"consul.ttl", "lease.consul.ttl"},
		{"consul.lock-delay", "lease.consul.lock-delay"}, {"consul.hostname", "lease.hostname"},
		{"consul.advertise-url", "lease.advertise-url"},
	} {
		a, okA := p.seen[pair[0]]
		b, okB := p.seen[pair[1]]
		if okA && okB {
			return fmt.Errorf("%s at line %d and %s at line %d say the same: keep one", pair[0], a, pair[1], b)
		}
	}
	c := p.cfg
	if err := c.concludeDirs(); err != nil {
		return err
	}
	if err := p.concludeLease(); err != nil {
		return err
	}
	c.concludeAddr()
	if c.Lease.Type == LeaseStatic && !c.Lease.Candidate && c.Lease.AdvertiseURL == "" {
		return errors.New("lease.advertise-url is missing: with lease.candidate: false it must be the URL of the primary, like http://10.0.0.1:" + DefaultPort)
	}
	if err := p.concludeHostname(); err != nil {
		return err
	}
	if c.Lease.Type != LeaseStatic {
		if err := c.concludeAdvertiseURL(); err != nil {
			return err
		}
	}
	if c.Fuse.Guardian && c.Fuse.DaemonLocks {
		return errors.New("fuse.locks: daemon and fuse.guardian: true do not go together: the locks that litefs keeps end with it, and a guardian would go on without them; remove one of them")
	}
	if err := c.checkForwardDir(); err != nil {
		return err
	}
	if c.Fuse.Guardian && c.promises() {
		return errors.New("durability: levels quorum and archive do not go together with fuse.guardian: true yet: remove one of them")
	}
	if c.Lease.Candidate && len(c.Lease.Databases) > 0 {
		return errors.New("lease.databases is for nodes with lease.candidate: false; a candidate has all databases")
	}
	if err := c.checkTLS(); err != nil {
		return err
	}
	if err := p.concludeProxy(); err != nil {
		return err
	}
	if c.Data.LogKeys != "" && c.Data.LogKeyCommand != "" {
		return errors.New("data.log-key-file and data.log-key-command say the same: keep one")
	}
	if err := c.concludeBackup(); err != nil {
		return err
	}
	if c.asks(LevelArchive) && len(c.Backup.All()) == 0 {
		return errors.New("durability: level archive needs a place for archives: set backup.type, or use another level")
	}
	return c.checkExposure()
}

// concludeHostname names this machine, and on a static follower the primary's, which the URL has.
func (p *parser) concludeHostname() error {
	l := &p.cfg.Lease
	if l.Hostname != "" {
		return nil
	}
	if l.Candidate || l.Type != LeaseStatic {
		host, err := p.src.Hostname()
		if err != nil {
			return fmt.Errorf("lease.hostname is not set and the machine's name cannot be read: %w", err)
		}
		l.Hostname = host
		return nil
	}
	u, err := url.Parse(l.AdvertiseURL)
	if err != nil {
		return fmt.Errorf("lease.advertise-url: %w", err)
	}
	l.Hostname = u.Hostname()
	return nil
}

// concludeDirs makes both directories absolute and keeps them apart: data
// inside the mount would be hidden by it, a mount inside the data would show
// the data to itself.
func (c *Config) concludeDirs() error {
	if c.Fuse.Dir == "" {
		return errors.New("fuse.dir is missing: name the directory in which the databases shall be seen")
	}
	var err error
	if c.Fuse.Dir, err = filepath.Abs(c.Fuse.Dir); err != nil {
		return fmt.Errorf("fuse.dir %s: %w", c.Fuse.Dir, err)
	}
	if c.Fuse.Dir == string(filepath.Separator) {
		return errors.New("fuse.dir must not be /")
	}
	if c.Fuse.ForwardDir != "" {
		if c.Fuse.ForwardDir, err = filepath.Abs(c.Fuse.ForwardDir); err != nil {
			return fmt.Errorf("fuse.forward-dir %s: %w", c.Fuse.ForwardDir, err)
		}
	}
	if c.Data.Dir == "" {
		c.Data.Dir = DataDirFor(c.Fuse.Dir)
	}
	if c.Data.Dir, err = filepath.Abs(c.Data.Dir); err != nil {
		return fmt.Errorf("data.dir %s: %w", c.Data.Dir, err)
	}

	mount, data := realPath(c.Fuse.Dir), realPath(c.Data.Dir)
	switch {
	case mount == data:
		return fmt.Errorf("data.dir and fuse.dir are the same directory (%s): give each its own", mount)
	case isInside(data, mount):
		return fmt.Errorf("data.dir %s lies inside fuse.dir %s, which would hide it: move it beside", c.Data.Dir, c.Fuse.Dir)
	case isInside(mount, data):
		return fmt.Errorf("fuse.dir %s lies inside data.dir %s: move it beside", c.Fuse.Dir, c.Data.Dir)
	}
	return nil
}

// concludeAddr opens the node to others only where there is a credential.
func (c *Config) concludeAddr() {
	if c.HTTP.Addr != "" {
		return
	}
	host := "127.0.0.1"
	if c.hasCredential() {
		host = ""
	}
	c.HTTP.Addr = net.JoinHostPort(host, DefaultPort)
}

// hasCredential reports whether nodes have something to know each other by: a token that is configured,
// or the one that they keep with the lease server.
func (c *Config) hasCredential() bool { return c.HTTP.Token != "" || c.Lease.Type != LeaseStatic }

// checkExposure refuses to speak beyond this machine without a credential.
func (c *Config) checkExposure() error {
	switch {
	case c.HTTP.AdminToken == "":
	case !c.hasCredential():
		return errors.New("http.admin-token is set and http.token is not: nodes would have no credential: set both, or neither")
	case c.HTTP.AdminToken == c.HTTP.Token:
		return errors.New("http.admin-token and http.token are the same: draw another one, or remove http.admin-token")
	}
	if c.hasCredential() {
		return nil
	}
	const remedy = "set the same http.token (or http.token-file, or " + TokenVariable + ") on every node"
	if !addrIsLoopback(c.HTTP.Addr) {
		return fmt.Errorf("http.addr %s is reachable from other machines and there is no http.token: %s, or use http.addr: 127.0.0.1:%s",
			c.HTTP.Addr, remedy, DefaultPort)
	}
	if c.Lease.AdvertiseURL != "" {
		u, err := url.Parse(c.Lease.AdvertiseURL)
		if err != nil || !hostIsLoopback(u.Hostname()) {
			return fmt.Errorf("lease.advertise-url %s is on another machine and there is no http.token: %s",
				c.Lease.AdvertiseURL, remedy)
		}
	}
	return nil
}

// checkTLS wants what a server needs, and a URL that says what it speaks.
func (c *Config) checkTLS() error {
	t := c.HTTP.TLS
	switch {
	case t == TLS{}:
		return nil
	case t.Cert == "" || t.Key == "":
		return errors.New("http.tls needs both cert and key: every node has a certificate")
	case strings.HasPrefix(c.Lease.AdvertiseURL, "http:"):
		return fmt.Errorf("lease.advertise-url %s is in the clear and http.tls is set: write https", c.Lease.AdvertiseURL)
	}
	return nil
}

// realPath resolves the symbolic links of the part of path that exists. What
// cannot be resolved (a stale mount, a missing permission) stays as written.
func realPath(path string) string {
	if IsMounted(path) {
		return filepath.Join(realPath(filepath.Dir(path)), filepath.Base(path))
	}
	rest := ""
	for p := path; ; p = filepath.Dir(p) {
		real, err := filepath.EvalSymlinks(p)
		if err == nil {
			return filepath.Join(real, rest)
		}
		if !errors.Is(err, fs.ErrNotExist) || p == filepath.Dir(p) {
			return path
		}
		rest = filepath.Join(filepath.Base(p), rest)
	}
}

// isInside reports whether the clean absolute path lies below dir.
func isInside(path, dir string) bool {
	return strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
