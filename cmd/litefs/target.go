package main

import (
	"fmt"
	"net"
	"strings"

	node "github.com/litefs/litefs/http"
	"github.com/litefs/litefs/internal/config"
)

// urlUsage is the help of the flag -url.
const urlUsage = "`URL` of the node, like http://127.0.0.1:20202; " + config.TokenVariable + " holds its credential"

// targetFlags say which running node a command talks to.
type targetFlags struct {
	configFlags
	url string
}

func (c *targetFlags) register(f *flags) {
	c.configFlags.register(f)
	f.StringVar(&c.url, "url", "", urlUsage)
}

// copyFlags are those of a command that moves a database between the running node and a file.
type copyFlags struct {
	targetFlags
	name   string
	asJSON bool
}

// parse returns the node and the file.
func (c *copyFlags) parse(f *flags, args []string, std stdio) (t target, file string, err error) {
	c.register(f)
	f.StringVar(&c.name, "name", "", nameUsage)
	f.BoolVar(&c.asJSON, "json", false, "print JSON")
	files, err := f.parse(args, std)
	if err != nil {
		return t, "", err
	}
	if c.name == "" || len(files) != 1 {
		return t, "", usagef("want: litefs %s -name DB FILE", f.Name())
	}
	t, err = c.target()
	return t, files[0], err
}

// target is a running node that a command talks to.
type target struct {
	url    string
	client *node.Client
}

// target is the node that the flags name, or the configuration of dirs.
func (c *targetFlags) target(dirs ...string) (s target, err error) {
	if c.url != "" {
		if c.path != "" || len(dirs) > 0 {
			return s, usagef("give -url, or a configuration, not both")
		}
		if s.url, err = config.NodeURL(c.url); err != nil {
			return s, usagef("-url %v", err)
		}
		token, err := config.EnvToken(config.Source{})
		s.client = node.NewClient(nil, string(token))
		return s, err
	}
	cfg, err := c.load(dirs)
	if err != nil {
		return s, err
	}
	return targetOf(cfg)
}

// targetOf is the node of this machine with the configuration.
func targetOf(cfg *config.Config) (s target, err error) {
	host, port, err := net.SplitHostPort(cfg.HTTP.Addr)
	if err != nil {
		return s, config.Invalid(fmt.Errorf("http.addr %s: %w", cfg.HTTP.Addr, err))
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	s.url = "http://" + net.JoinHostPort(host, port)
	token, err := nodeToken(cfg)
	if err != nil {
		return s, err
	}
	if cfg.HTTP.AdminToken != "" {
		token = string(cfg.HTTP.AdminToken)
	}
	s.client = node.NewClient(nil, token)
	if files := node.TLSFiles(cfg.HTTP.TLS); !files.IsZero() {
		if err := s.client.UseTLS(files, nil); err != nil {
			return s, config.Invalid(err)
		}
		s.url = "https" + strings.TrimPrefix(s.url, "http")
		// Under a static lease it is the primary's.
		if (cfg.Lease.Candidate || cfg.Lease.Type != config.LeaseStatic) && cfg.Lease.AdvertiseURL != "" {
			s.url = cfg.Lease.AdvertiseURL // the name that the certificate is for
		}
	}
	return s, nil
}
