package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func setLeaseType(c *Config, s string) error {
	switch s {
	case LeaseStatic, LeaseConsul, LeaseEtcd, LeaseNATS, LeaseKubernetes, LeaseS3:
		c.Lease.Type = s
		return nil
	}
	return fmt.Errorf("%q is not a lease type: use consul, etcd, nats, kubernetes, s3 or static", s)
}

func setHostname(c *Config, s string) error { c.Lease.Hostname = s; return nil }

func setAdvertiseURL(c *Config, s string) error {
	c.Lease.AdvertiseURL = strings.TrimRight(s, "/")
	return checkURL(s)
}

func setConsulURL(c *Config, s string) error {
	c.Lease.Consul.URL = Secret(s)
	return checkServerURL(s, likeConsul)
}

// setKey, setTTL and setLockDelay are of lease servers that take any.
func setKey(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, s string) (err error) {
		*field(c), err = parseKey(s)
		return err
	}
}

func setTTL(field func(*Config) *time.Duration) func(*Config, string) error {
	return func(c *Config, s string) (err error) {
		*field(c), err = parseBetween(s, time.Second, 24*time.Hour)
		return err
	}
}

func setLockDelay(field func(*Config) *time.Duration) func(*Config, string) error {
	return func(c *Config, s string) (err error) {
		*field(c), err = parseBetween(s, time.Millisecond, time.Minute)
		return err
	}
}

func consulKey(c *Config) *string              { return &c.Lease.Consul.Key }
func consulTTL(c *Config) *time.Duration       { return &c.Lease.Consul.TTL }
func consulLockDelay(c *Config) *time.Duration { return &c.Lease.Consul.LockDelay }

func setEtcdURL(c *Config, s string) error {
	c.Lease.Etcd.URL = Secret(s)
	return checkServerURL(s, likeEtcd)
}

func setEtcdTTL(c *Config, s string) (err error) {
	c.Lease.Etcd.TTL, err = parseBetween(s, 2*time.Second, 24*time.Hour)
	if err == nil && c.Lease.Etcd.TTL%time.Second != 0 {
		err = fmt.Errorf("%q: etcd counts whole seconds", s)
	}
	return err
}

func setNATSURL(c *Config, s string) error {
	c.Lease.NATS.URL = Secret(s)
	for server := range strings.SplitSeq(s, ",") {
		if err := checkServerURL(strings.TrimSpace(server), likeNATS, "nats", "tls"); err != nil {
			return err
		}
	}
	return nil
}

func setNATSReplicas(c *Config, s string) (err error) {
	c.Lease.NATS.Replicas, err = parseCount(s, 5)
	return err
}

func setNATSBucket(c *Config, s string) error {
	c.Lease.NATS.Bucket = s
	if len(s) > 64 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
		return fmt.Errorf("%q is no name of a bucket: use letters, digits, - and _", s)
	}
	return nil
}

func setKubernetesURL(c *Config, s string) error {
	c.Lease.Kubernetes.URL = strings.TrimRight(s, "/")
	u, err := url.Parse(s)
	if err == nil && u.User != nil {
		return errors.New("must not carry a user or password: the credential is the service account's token")
	}
	return checkServerURL(s, "https://10.0.0.1:443")
}

func setKubernetesName(c *Config, s string) error {
	c.Lease.Kubernetes.Name = s
	if len(s) > 200 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" || strings.Trim(s, "-.") != s {
		return fmt.Errorf("%q is no name of a Lease: use a-z and 0-9, and - or . between", s)
	}
	return nil
}

func setS3URL(c *Config, s string) error {
	c.Lease.S3.URL = strings.TrimRight(s, "/")
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "s3" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("is not of the form s3://bucket/prefix") // not repeated: it may hold a credential
	}
	return nil
}

func setS3Endpoint(c *Config, s string) error {
	c.Lease.S3.Endpoint = strings.TrimRight(s, "/")
	u, err := url.Parse(s)
	if err == nil && u.User != nil {
		return errors.New("must not carry a user or password: the credential is lease.s3.access-key and secret-key")
	}
	return checkServerURL(s, "https://s3.example.com")
}

// Bucket takes the URL apart.
func (s S3) Bucket() (bucket, prefix string) {
	bucket, prefix, _ = strings.Cut(strings.TrimPrefix(s.URL, "s3://"), "/")
	return bucket, strings.Trim(prefix, "/")
}

// inCluster is how a pod finds the API server, as the kubelet tells it.
func (p *parser) inCluster() (string, error) {
	host, ok := p.src.LookupEnv("KUBERNETES_SERVICE_HOST")
	port, _ := p.src.LookupEnv("KUBERNETES_SERVICE_PORT")
	if !ok || host == "" || port == "" {
		return "", errors.New("lease.kubernetes.url is missing: this is no pod of Kubernetes, where KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT say where the API server is")
	}
	return "https://" + net.JoinHostPort(host, port), nil
}

// concludeKubernetes fills in what a pod knows.
func (p *parser) concludeKubernetes() (err error) {
	k := &p.cfg.Lease.Kubernetes
	if k.URL == "" {
		if k.URL, err = p.inCluster(); err != nil {
			return err
		}
	}
	if k.Namespace == "" {
		text, err := p.src.ReadFile(filepath.Join(k.AccountDir, "namespace"))
		if err != nil {
			return fmt.Errorf("lease.kubernetes.namespace is missing, and the service account does not say it: %w", err)
		}
		k.Namespace = strings.TrimSpace(string(text))
	}
	return nil
}

func parseBetween(s string, low, high time.Duration) (time.Duration, error) {
	d, err := parseDuration(s)
	if err == nil && (d < low || d > high) {
		err = fmt.Errorf("%q must be from %v to %v", s, low, high)
	}
	return d, err
}

// parseKey takes a name of a key that has others below it.
func parseKey(s string) (string, error) {
	key := strings.Trim(s, "/")
	if key == "" || len(key) > 256 || strings.Contains(key, "//") || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("%q is no key like %s", s, DefaultLeaseKey)
	}
	return key, nil
}

// Addresses of lease servers on this machine.
const (
	likeConsul = "http://127.0.0.1:8500"
	likeEtcd   = "http://127.0.0.1:2379"
	likeNATS   = "nats://127.0.0.1:4222"
)

// checkServerURL accepts the address of a server, by default of http or https. It never repeats it: it may
// hold a credential.
func checkServerURL(s, like string, schemes ...string) error {
	if len(schemes) == 0 {
		schemes = []string{"http", "https"}
	}
	u, err := url.Parse(s)
	if err != nil || !slices.Contains(schemes, u.Scheme) || u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("is not a URL like " + like)
	}
	return nil
}

// withoutCredential is a lease server's URL, or a list of them, as it may be shown, and whether something
// was left out.
func withoutCredential(s Secret) (shown string, hidden bool) {
	var all []string
	for server := range strings.SplitSeq(string(s), ",") {
		u, err := url.Parse(strings.TrimSpace(server))
		if err != nil {
			return "", s != ""
		}
		hidden = hidden || u.User != nil
		u.User = nil
		all = append(all, u.String())
	}
	return strings.Join(all, ","), hidden
}

// concludeLease settles the type of the lease and what it needs.
func (p *parser) concludeLease() error {
	l := &p.cfg.Lease
	if path, line := p.firstOf("consul."); path != "" {
		// LiteFS 0.1 has no other lease and no lease.type.
		if typeLine, ok := p.seen["lease.type"]; ok && l.Type != LeaseConsul {
			return fmt.Errorf("lease.type at line %d is %s and %s at line %d is for consul: keep one", typeLine, l.Type, path, line)
		}
		l.Type = LeaseConsul
	}
	for _, server := range []struct {
		leaseType, like string
		url             Secret
	}{
		{LeaseConsul, likeConsul, l.Consul.URL},
		{LeaseEtcd, likeEtcd, l.Etcd.URL},
		{LeaseNATS, likeNATS, l.NATS.URL},
		{LeaseS3, "s3://bucket/prefix, with lease.s3.endpoint: http://127.0.0.1:7070", Secret(l.S3.URL)},
	} {
		switch {
		case l.Type == server.leaseType && server.url == "":
			return fmt.Errorf("lease.%s.url is missing: where is the server? For one on this machine: %s", server.leaseType, server.like)
		case l.Type != server.leaseType && server.url != "":
			return fmt.Errorf("lease.%s.url has no use with lease.type: %s: set lease.type: %s, or remove it", server.leaseType, l.Type, server.leaseType)
		}
	}
	if (l.S3.AccessKey == "") != (l.S3.SecretKey == "") {
		return errors.New("lease.s3.access-key and lease.s3.secret-key come together: only one of them is set")
	}
	if l.Type == LeaseKubernetes {
		if err := p.concludeKubernetes(); err != nil {
			return err
		}
	}
	if l.Type == LeaseStatic && l.Promote {
		return errors.New("lease.promote has no use with lease.type: static, where the file says who is primary: remove it, or use another type")
	}
	return nil
}

// firstOf is the key below a group that stands first in the file; "" if there is none.
func (p *parser) firstOf(prefix string) (path string, line int) {
	for seen, at := range p.seen {
		if strings.HasPrefix(seen, prefix) && (path == "" || at < line || at == line && seen < path) {
			path, line = seen, at
		}
	}
	return path, line
}

// concludeAdvertiseURL finds this node's own URL, where there is a lease server to tell it to.
func (c *Config) concludeAdvertiseURL() error {
	if c.Lease.AdvertiseURL != "" {
		return nil
	}
	host, port, err := net.SplitHostPort(c.HTTP.Addr)
	if err != nil {
		return fmt.Errorf("http.addr: %w", err)
	}
	if port == "0" {
		return errors.New("lease.advertise-url is missing: with http.addr's port 0 nobody knows where this node will be reached")
	}
	if !hostIsLoopback(host) {
		host = c.Lease.Hostname
	}
	scheme := "http"
	if c.HTTP.TLS != (TLS{}) {
		scheme = "https"
	}
	c.Lease.AdvertiseURL = scheme + "://" + net.JoinHostPort(host, port)
	return checkURL(c.Lease.AdvertiseURL)
}
