package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// key is one key of the file: where its value goes, or why there is nowhere.
type key struct {
	path string // "fuse.dir"

	// set stores the value that stands at a node. nil: the feature does not
	// exist, and missing says so.
	set     func(p *parser, n *yaml.Node) error
	missing string
}

// Why a key is refused. Each completes "PATH at line N: ".
const (
	noTimeout = "a first copy has no time limit: it holds nobody up and goes on where it was cut; remove the key"
)

// keyTable lists every key, in the order in which they are printed.
func keyTable() []key {
	keys := []key{
		{path: "mount-dir", set: text(func(c *Config, s string) error { c.Fuse.Dir = s; return nil })},
		{path: "fuse.dir", set: text(func(c *Config, s string) error { c.Fuse.Dir = s; return nil })},
		{path: "fuse.allow-other", set: boolean(func(c *Config) *bool { return &c.Fuse.AllowOther })},
		{path: "fuse.debug", set: boolean(func(c *Config) *bool { return &c.Fuse.Debug })},
		{path: "fuse.passthrough", set: text(setPassthrough)},
		{path: "fuse.locks", set: text(setLocks)},
		{path: "fuse.forward-dir", set: text(func(c *Config, s string) error { c.Fuse.ForwardDir = s; return nil })},
		{path: "fuse.guardian", set: boolean(func(c *Config) *bool { return &c.Fuse.Guardian })},

		{path: "data.dir", set: text(func(c *Config, s string) error { c.Data.Dir = s; return nil })},
		{path: "data.compress", set: text(setCompress)},
		{path: "data.retention", set: text(func(c *Config, s string) (err error) {
			c.Data.Retention, err = parseDuration(s)
			return err
		})},
		{path: "data.retention-monitor-interval", set: text(func(c *Config, s string) (err error) {
			c.Data.RetentionMonitorInterval, err = parsePositive(s)
			return err
		})},
		{path: "data.scrub-interval", set: text(func(c *Config, s string) (err error) {
			c.Data.ScrubInterval, err = parseDuration(s)
			return err
		})},
		{path: "data.max-size", set: text(func(c *Config, s string) (err error) {
			c.Data.MaxSize, err = parseSize(s)
			return err
		})},
		{path: "data.log-key-file", set: setKeyFile(func(c *Config) *Secret { return &c.Data.LogKeys })},
		{path: "data.log-key-command", set: text(func(c *Config, s string) error { c.Data.LogKeyCommand = s; return nil })},
		{path: "data.encrypt-log", set: text(func(c *Config, s string) error {
			on, err := parseBool(s)
			c.Data.LogInClear = !on
			return err
		})},

		{path: "http.addr", set: text(func(c *Config, s string) error { c.HTTP.Addr = s; return checkAddr(s) })},
		{path: "http.token", set: setToken(clusterToken)},
		{path: "http.token-file", set: setTokenFile(clusterToken)},
		{path: "http.admin-token", set: setToken(adminToken)},
		{path: "http.admin-token-file", set: setTokenFile(adminToken)},

		{path: "http.tls.cert", set: text(func(c *Config, s string) error { c.HTTP.TLS.Cert = s; return nil })},
		{path: "http.tls.key", set: text(func(c *Config, s string) error { c.HTTP.TLS.Key = s; return nil })},
		{path: "http.tls.ca", set: text(func(c *Config, s string) error { c.HTTP.TLS.CA = s; return nil })},

		{path: "lease.type", set: text(setLeaseType)},
		{path: "lease.hostname", set: text(setHostname)},
		{path: "lease.advertise-url", set: text(setAdvertiseURL)},
		{path: "lease.candidate", set: boolean(func(c *Config) *bool { return &c.Lease.Candidate })},
		{path: "lease.promote", set: boolean(func(c *Config) *bool { return &c.Lease.Promote })},
		{path: "lease.databases", set: setPatterns(func(c *Config) *[]string { return &c.Lease.Databases })},
		{path: "lease.reconnect-delay", set: text(func(c *Config, s string) (err error) {
			c.Lease.ReconnectDelay, err = parsePositive(s)
			return err
		})},
		{path: "lease.roll-forward-timeout", set: text(func(c *Config, s string) (err error) {
			c.Lease.RollForwardTimeout, err = parseDuration(s)
			return err
		})},
		{path: "lease.demote-delay", set: text(func(c *Config, s string) (err error) {
			c.Lease.DemoteDelay, err = parseDuration(s)
			return err
		})},

		{path: "lease.consul.url", set: text(setConsulURL)},
		{path: "lease.consul.key", set: text(setKey(consulKey))},
		{path: "lease.consul.ttl", set: text(setTTL(consulTTL))},
		{path: "lease.consul.lock-delay", set: text(setLockDelay(consulLockDelay))},

		{path: "lease.etcd.url", set: text(setEtcdURL)},
		{path: "lease.etcd.key", set: text(setKey(func(c *Config) *string { return &c.Lease.Etcd.Key }))},
		{path: "lease.etcd.ttl", set: text(setEtcdTTL)},

		{path: "lease.nats.url", set: text(setNATSURL)},
		{path: "lease.nats.credentials", set: text(func(c *Config, s string) error { c.Lease.NATS.Credentials = s; return nil })},
		{path: "lease.nats.bucket", set: text(setNATSBucket)},
		{path: "lease.nats.replicas", set: text(setNATSReplicas)},
		{path: "lease.nats.key", set: text(setKey(func(c *Config) *string { return &c.Lease.NATS.Key }))},
		{path: "lease.nats.ttl", set: text(setTTL(func(c *Config) *time.Duration { return &c.Lease.NATS.TTL }))},
		{path: "lease.nats.lock-delay", set: text(setLockDelay(func(c *Config) *time.Duration { return &c.Lease.NATS.LockDelay }))},

		{path: "lease.kubernetes.url", set: text(setKubernetesURL)},
		{path: "lease.kubernetes.account-dir", set: text(func(c *Config, s string) error { c.Lease.Kubernetes.AccountDir = s; return nil })},
		{path: "lease.kubernetes.namespace", set: text(func(c *Config, s string) error { c.Lease.Kubernetes.Namespace = s; return nil })},
		{path: "lease.kubernetes.name", set: text(setKubernetesName)},
		{path: "lease.kubernetes.ttl", set: text(setTTL(func(c *Config) *time.Duration { return &c.Lease.Kubernetes.TTL }))},
		{path: "lease.kubernetes.lock-delay", set: text(setLockDelay(func(c *Config) *time.Duration { return &c.Lease.Kubernetes.LockDelay }))},

		{path: "lease.s3.url", set: text(setS3URL)},
		{path: "lease.s3.endpoint", set: text(setS3Endpoint)},
		{path: "lease.s3.region", set: text(func(c *Config, s string) error { c.Lease.S3.Region = s; return nil })},
		{path: "lease.s3.access-key", set: text(func(c *Config, s string) error { c.Lease.S3.AccessKey = s; return nil })},
		{path: "lease.s3.secret-key", set: text(func(c *Config, s string) error { c.Lease.S3.SecretKey = Secret(s); return nil })},
		{path: "lease.s3.key", set: text(setKey(func(c *Config) *string { return &c.Lease.S3.Key }))},
		{path: "lease.s3.ttl", set: text(setTTL(func(c *Config) *time.Duration { return &c.Lease.S3.TTL }))},
		{path: "lease.s3.lock-delay", set: text(setLockDelay(func(c *Config) *time.Duration { return &c.Lease.S3.LockDelay }))},

		// The group in which LiteFS 0.1 had what is now below lease.
		{path: "consul.url", set: text(setConsulURL)},
		{path: "consul.key", set: text(setKey(consulKey))},
		{path: "consul.ttl", set: text(setTTL(consulTTL))},
		{path: "consul.lock-delay", set: text(setLockDelay(consulLockDelay))},
		{path: "consul.hostname", set: text(setHostname)},
		{path: "consul.advertise-url", set: text(setAdvertiseURL)},

		{path: "durability", set: setDurability},

		{path: "replica.open", set: text(setReplicaOpen)},
		{path: "replica.max-staleness", set: text(setMaxStaleness)},
		{path: "replica.then", set: text(setThen)},
		{path: "replica.halt-databases", set: setPatterns(func(c *Config) *[]string { return &c.HaltDatabases })},

		{path: "exec", set: setExec},
		{path: "exit-on-error", set: boolean(func(c *Config) *bool { return &c.ExitOnError })},
		{path: "skip-sync", set: boolean(func(c *Config) *bool { return &c.SkipSync })},
		{path: "strict-verify", set: boolean(func(c *Config) *bool { return &c.StrictVerify })},

		{path: "log.format", set: text(setLogFormat)},
		{path: "log.timestamp", set: boolean(func(c *Config) *bool { return &c.Log.Timestamp })},
		{path: "log.debug", set: boolean(func(c *Config) *bool { return &c.Log.Debug })},

		{path: "tracing.enabled", set: boolean(func(c *Config) *bool { return &c.Trace.Enabled })},
		{path: "tracing.path", set: text(func(c *Config, s string) (err error) {
			c.Trace.Path, err = filepath.Abs(s)
			return err
		})},
		{path: "tracing.max-size", set: text(func(c *Config, s string) (err error) {
			c.Trace.MaxSize, err = parseCount(s, 1<<20)
			return err
		})},
		{path: "tracing.max-count", set: text(func(c *Config, s string) (err error) {
			c.Trace.MaxCount, err = parseCount(s, 10000)
			return err
		})},
		{path: "tracing.compress", set: boolean(func(c *Config) *bool { return &c.Trace.Compress })},
	}
	keys = append(keys, proxyKeys()...)
	keys = append(keys, backupKeys()...)
	for _, m := range []struct{ why, paths string }{
		{noTimeout, "http.snapshot-timeout"},
	} {
		for _, path := range strings.Fields(m.paths) {
			keys = append(keys, key{path: path, missing: m.why})
		}
	}
	return keys
}

// text is a key whose value is one scalar. An empty value is an absent key.
func text(set func(c *Config, s string) error) func(*parser, *yaml.Node) error {
	return func(p *parser, n *yaml.Node) error {
		s, err := p.scalar(n)
		if err != nil || s == "" {
			return err
		}
		return set(p.cfg, s)
	}
}

func boolean(field func(c *Config) *bool) func(*parser, *yaml.Node) error {
	return text(func(c *Config, s string) (err error) {
		*field(c), err = parseBool(s)
		return err
	})
}

func setPassthrough(c *Config, s string) error {
	switch s {
	case "auto":
		c.Fuse.Passthrough = true
	case "off", "false":
		c.Fuse.Passthrough = false
	default:
		return fmt.Errorf("%q is neither auto nor off", s)
	}
	return nil
}

func setLocks(c *Config, s string) error {
	switch s {
	case "kernel":
		c.Fuse.DaemonLocks = false
	case "daemon":
		c.Fuse.DaemonLocks = true
	default:
		return fmt.Errorf("%q is neither kernel nor daemon", s)
	}
	return nil
}

func setReplicaOpen(c *Config, s string) error {
	switch s {
	case "writable":
		c.ReplicaReadOnly = false
	case "readonly":
		c.ReplicaReadOnly = true
	default:
		return fmt.Errorf("%q is neither writable nor readonly", s)
	}
	return nil
}

// minStaleness is more than a heartbeat takes.
const minStaleness = 2 * time.Second

func setMaxStaleness(c *Config, s string) (err error) {
	if s == "0" || s == "0s" {
		c.MaxStaleness = 0
		return nil
	}
	if c.MaxStaleness, err = parsePositive(s); err != nil {
		return err
	}
	if c.MaxStaleness < minStaleness {
		return fmt.Errorf("%v is less than %v, in which a replica hears of its primary", c.MaxStaleness, minStaleness)
	}
	return nil
}

func setThen(c *Config, s string) error {
	switch s {
	case "refuse", "serve":
		c.ServeStale = s == "serve"
		return nil
	}
	return fmt.Errorf("%q is neither refuse nor serve", s)
}

// setCompress takes the one value that is true of this program: entries of
// the log are always compressed.
func setCompress(_ *Config, s string) error {
	compress, err := parseBool(s)
	if err == nil && !compress {
		err = fmt.Errorf("a log without compression is not built yet; remove the key")
	}
	return err
}

func setLogFormat(c *Config, s string) error {
	if s != LogText && s != LogJSON {
		return fmt.Errorf("%q is neither text nor json", s)
	}
	c.Log.Format = s
	return nil
}

func clusterToken(c *Config) *Secret { return &c.HTTP.Token }
func adminToken(c *Config) *Secret   { return &c.HTTP.AdminToken }

// setToken does not take an empty value for an absent key: whoever wrote the
// key believes that there is a credential.
func setToken(field func(*Config) *Secret) func(*parser, *yaml.Node) error {
	return func(p *parser, n *yaml.Node) error {
		s, err := p.scalar(n)
		if err == nil {
			err = checkToken(s)
		}
		*field(p.cfg) = Secret(s)
		return err
	}
}

func setTokenFile(field func(*Config) *Secret) func(*parser, *yaml.Node) error {
	return func(p *parser, n *yaml.Node) error {
		name, err := p.scalar(n)
		if err != nil {
			return err
		}
		if name == "" {
			return fmt.Errorf("is empty: name the file that holds the token")
		}
		data, err := p.src.ReadFile(name)
		if err != nil {
			return err
		}
		s := strings.TrimRight(string(data), "\r\n")
		if err := checkToken(s); err != nil {
			return fmt.Errorf("the token in %s %w", name, err)
		}
		*field(p.cfg) = Secret(s)
		return nil
	}
}

// setPatterns takes a pattern of databases' names, or a list of them.
func setPatterns(field func(*Config) *[]string) func(p *parser, n *yaml.Node) error {
	return func(p *parser, n *yaml.Node) error {
		patterns, err := p.strings(n)
		for _, pattern := range patterns {
			err = errors.Join(err, checkPattern(pattern))
		}
		*field(p.cfg) = patterns
		return err
	}
}

// setExec takes a command line, or a list of {cmd: line}.
