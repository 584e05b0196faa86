package config

import (
	"errors"
	"fmt"
	"net"
	"path"
	"time"

	"go.yaml.in/yaml/v4"
)

// Ways of a write to the primary, as proxy.write has them.
const (
	WriteForward   = "forward"
	WriteFlyReplay = "fly-replay"
	WriteRedirect  = "redirect"
)

// Proxy stands in front of the application; the zero value is none.
type Proxy struct {
	Addr      string   // host:port to listen on
	Target    string   // host:port of the application; "": no proxy
	Databases []string // patterns of the databases that clients read and write

	MaxLag        time.Duration
	Passthrough   []string // patterns of paths, "*" being any text
	AlwaysForward []string
	Debug         bool

	Write       string // WriteForward, WriteFlyReplay or WriteRedirect
	RedirectURL string

	PrimaryRedirectTimeout time.Duration
	WaitTimeout            time.Duration
	TargetTimeout          time.Duration

	ReadTimeout, ReadHeaderTimeout, WriteTimeout, IdleTimeout time.Duration // 0: none
}

// IsZero reports that there is no proxy.
func (p Proxy) IsZero() bool { return p.Target == "" }

// proxyDefaults are LiteFS 0.5's where it has the key.
func proxyDefaults() Proxy {
	return Proxy{
		MaxLag:                 10 * time.Second,
		Write:                  WriteForward,
		PrimaryRedirectTimeout: 5 * time.Second,
		WaitTimeout:            5 * time.Second,
		TargetTimeout:          30 * time.Second,
		ReadHeaderTimeout:      10 * time.Second,
		IdleTimeout:            30 * time.Second,
	}
}

// proxyKeys are the keys below proxy.
func proxyKeys() []key {
	address := func(field func(p *Proxy) *string) func(*parser, *yaml.Node) error {
		return text(func(c *Config, s string) error { *field(&c.Proxy) = s; return checkAddr(s) })
	}
	duration := func(field func(p *Proxy) *time.Duration, parse func(string) (time.Duration, error)) func(*parser, *yaml.Node) error {
		return text(func(c *Config, s string) (err error) {
			*field(&c.Proxy), err = parse(s)
			return err
		})
	}
	list := func(field func(p *Proxy) *[]string, check func(string) error) func(*parser, *yaml.Node) error {
		return func(p *parser, n *yaml.Node) error {
			items, err := p.strings(n)
			*field(&p.cfg.Proxy) = items
			for _, item := range items {
				err = errors.Join(err, check(item))
			}
			return err
		}
	}
	return []key{
		{path: "proxy.addr", set: address(func(p *Proxy) *string { return &p.Addr })},
		{path: "proxy.target", set: address(func(p *Proxy) *string { return &p.Target })},
		{path: "proxy.db", set: list(func(p *Proxy) *[]string { return &p.Databases }, checkPattern)},
		{path: "proxy.max-lag", set: duration(func(p *Proxy) *time.Duration { return &p.MaxLag }, parsePositive)},
		{path: "proxy.debug", set: boolean(func(c *Config) *bool { return &c.Proxy.Debug })},
		{path: "proxy.passthrough", set: list(func(p *Proxy) *[]string { return &p.Passthrough }, checkPath)},
		{path: "proxy.always-forward", set: list(func(p *Proxy) *[]string { return &p.AlwaysForward }, checkPath)},
		{path: "proxy.write", set: text(setProxyWrite)},
		{path: "proxy.redirect-url", set: text(func(c *Config, s string) error { c.Proxy.RedirectURL = s; return nil })},
		{path: "proxy.primary-redirect-timeout", set: duration(func(p *Proxy) *time.Duration { return &p.PrimaryRedirectTimeout }, parsePositive)},
		{path: "proxy.wait-timeout", set: duration(func(p *Proxy) *time.Duration { return &p.WaitTimeout }, parsePositive)},
		{path: "proxy.target-timeout", set: duration(func(p *Proxy) *time.Duration { return &p.TargetTimeout }, parsePositive)},
		{path: "proxy.read-timeout", set: duration(func(p *Proxy) *time.Duration { return &p.ReadTimeout }, parseDuration)},
		{path: "proxy.read-header-timeout", set: duration(func(p *Proxy) *time.Duration { return &p.ReadHeaderTimeout }, parseDuration)},
		{path: "proxy.write-timeout", set: duration(func(p *Proxy) *time.Duration { return &p.WriteTimeout }, parseDuration)},
		{path: "proxy.idle-timeout", set: duration(func(p *Proxy) *time.Duration { return &p.IdleTimeout }, parseDuration)},
	}
}

func setProxyWrite(c *Config, s string) error {
	switch s {
	case WriteForward, WriteFlyReplay, WriteRedirect:
		c.Proxy.Write = s
		return nil
	}
	return fmt.Errorf("%q is neither forward, fly-replay nor redirect", s)
}

func checkPattern(s string) error {
	if _, err := path.Match(s, ""); err != nil {
		return fmt.Errorf("%q is no pattern: %w", s, err)
	}
	return nil
}

func checkPath(s string) error {
	if s[0] != '/' && s[0] != '*' {
		return fmt.Errorf("%q begins neither with / nor with *: it matches no path", s)
	}
	return nil
}

// strings takes a string, or a list of them. Empty ones are absent.
func (p *parser) strings(n *yaml.Node) ([]string, error) {
	items := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		items = n.Content
	}
	var list []string
	for _, item := range items {
		s, err := p.scalar(resolve(item))
		if err != nil {
			return nil, err
		}
		if s != "" {
			list = append(list, s)
		}
	}
	return list, nil
}

// concludeProxy checks the keys of the proxy against each other. Without a
// target there is none, and a key that would have an effect is an error rather
// than ignored.
func (p *parser) concludeProxy() error {
	px := &p.cfg.Proxy
	if px.Target == "" {
		if fmt.Sprint(*px) != fmt.Sprint(proxyDefaults()) {
			return errors.New("proxy.target is missing: name the host:port of the application, or remove the other keys of proxy")
		}
		*px = Proxy{}
		return nil
	}
	switch {
	case px.Addr == "":
		return errors.New("proxy.addr is missing: name the host:port that clients of the application connect to")
	case len(px.Databases) == 0:
		return errors.New("proxy.db is missing: name the databases of the application, so that its clients read what they have written")
	case px.Write == WriteRedirect && px.RedirectURL == "":
		return errors.New("proxy.redirect-url is missing: with proxy.write: redirect it is where clients reach the primary, like http://{hostname}:8080")
	case px.Write != WriteRedirect && px.RedirectURL != "":
		return errors.New("proxy.redirect-url is for proxy.write: redirect")
	}
	host, _, err := net.SplitHostPort(px.Target)
	if err != nil {
		return fmt.Errorf("proxy.target: %w", err)
	}
	if host == "" {
		px.Target = "localhost" + px.Target
	}
	return nil
}

// yaml is the group of the proxy; nil when there is none.
func (p Proxy) yaml() *yaml.Node {
	if p.IsZero() {
		return nil
	}
	g := &yaml.Node{Kind: yaml.MappingNode}
	list := func(name string, items []string) {
		if len(items) == 0 {
			return
		}
		l := &yaml.Node{Kind: yaml.SequenceNode}
		for _, item := range items {
			l.Content = append(l.Content, str(item))
		}
		add(g, name, l)
	}
	add(g, "addr", str(p.Addr))
	add(g, "target", str(p.Target))
	list("db", p.Databases)
	add(g, "max-lag", str(p.MaxLag.String()))
	add(g, "debug", plain(fmt.Sprint(p.Debug)))
	list("passthrough", p.Passthrough)
	list("always-forward", p.AlwaysForward)
	add(g, "write", str(p.Write))
	if p.RedirectURL != "" {
		add(g, "redirect-url", str(p.RedirectURL))
	}
	add(g, "primary-redirect-timeout", str(p.PrimaryRedirectTimeout.String()))
	add(g, "wait-timeout", str(p.WaitTimeout.String()))
	add(g, "target-timeout", str(p.TargetTimeout.String()))
	add(g, "read-timeout", str(p.ReadTimeout.String()))
	add(g, "read-header-timeout", str(p.ReadHeaderTimeout.String()))
	add(g, "write-timeout", str(p.WriteTimeout.String()))
	add(g, "idle-timeout", str(p.IdleTimeout.String()))
	return g
}
