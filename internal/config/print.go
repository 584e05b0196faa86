package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v4"
)

// YAML is the configuration as a file: every key with its value in force, so
// that parsing it gives the same configuration. The credential is left out; a
// comment says that there is one.
func (c *Config) YAML() ([]byte, error) {
	root := c.node()
	escapeDollars(root)
	var out bytes.Buffer
	dumper, err := yaml.NewDumper(&out, yaml.WithIndent(2), yaml.WithLineWidth(-1))
	if err != nil {
		return nil, fmt.Errorf("print configuration: %w", err)
	}
	if err := dumper.Dump(root); err != nil {
		return nil, fmt.Errorf("print configuration: %w", err)
	}
	if err := dumper.Close(); err != nil {
		return nil, fmt.Errorf("print configuration: %w", err)
	}
	return out.Bytes(), nil
}

// JSON is the same for programs: an object of the file's groups and keys. Strings are the values
// themselves, durations and sizes written as in the file. A credential is left out.
func (c *Config) JSON() ([]byte, error) {
	var values map[string]any
	if err := c.node().Decode(&values); err != nil {
		return nil, fmt.Errorf("print configuration: %w", err)
	}
	b, err := json.MarshalIndent(values, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("print configuration: %w", err)
	}
	return append(b, '\n'), nil
}

// node is the configuration as a tree of groups and keys.
func (c *Config) node() *yaml.Node {
	root := &yaml.Node{Kind: yaml.MappingNode}
	group := func(name string) *yaml.Node {
		g := &yaml.Node{Kind: yaml.MappingNode}
		root.Content = append(root.Content, plain(name), g)
		return g
	}

	fuse := group("fuse")
	add(fuse, "dir", str(c.Fuse.Dir))
	add(fuse, "allow-other", plain(fmt.Sprint(c.Fuse.AllowOther)))
	add(fuse, "debug", plain(fmt.Sprint(c.Fuse.Debug)))
	passthrough := "off"
	if c.Fuse.Passthrough {
		passthrough = "auto"
	}
	add(fuse, "passthrough", str(passthrough))
	locks := "kernel"
	if c.Fuse.DaemonLocks {
		locks = "daemon"
	}
	add(fuse, "locks", str(locks))
	add(fuse, "forward-dir", str(c.Fuse.ForwardDir))
	add(fuse, "guardian", plain(fmt.Sprint(c.Fuse.Guardian)))

	data := group("data")
	add(data, "dir", str(c.Data.Dir))
	add(data, "retention", str(c.Data.Retention.String()))
	add(data, "retention-monitor-interval", str(c.Data.RetentionMonitorInterval.String()))
	add(data, "scrub-interval", str(c.Data.ScrubInterval.String()))
	add(data, "max-size", str(formatSize(c.Data.MaxSize)))
	if c.Data.LogKeys != "" {
		data.HeadComment = "# the keys of the log are not shown"
	}
	if c.Data.LogKeyCommand != "" {
		add(data, "log-key-command", str(c.Data.LogKeyCommand))
	}
	add(data, "encrypt-log", plain(fmt.Sprint(!c.Data.LogInClear)))

	http := group("http")
	add(http, "addr", str(c.HTTP.Addr))
	if c.HTTP.Token != "" {
		http.Content[len(http.Content)-2].HeadComment = "# a token is set; it is not shown"
	}
	if c.HTTP.AdminToken != "" {
		http.Content[len(http.Content)-1].LineComment = "# an operator's token is set; it is not shown"
	}

	if t := c.HTTP.TLS; t != (TLS{}) {
		files := &yaml.Node{Kind: yaml.MappingNode}
		for _, kv := range [][2]string{{"cert", t.Cert}, {"key", t.Key}, {"ca", t.CA}} {
			if kv[1] != "" {
				add(files, kv[0], str(kv[1]))
			}
		}
		add(http, "tls", files)
	}

	lease := group("lease")
	add(lease, "type", str(c.Lease.Type))
	add(lease, "hostname", str(c.Lease.Hostname))
	if c.Lease.AdvertiseURL != "" {
		add(lease, "advertise-url", str(c.Lease.AdvertiseURL))
	}
	add(lease, "candidate", plain(fmt.Sprint(c.Lease.Candidate)))
	add(lease, "promote", plain(fmt.Sprint(c.Lease.Promote)))
	if len(c.Lease.Databases) > 0 {
		add(lease, "databases", sequence(c.Lease.Databases))
	}
	add(lease, "reconnect-delay", str(c.Lease.ReconnectDelay.String()))
	add(lease, "roll-forward-timeout", str(c.Lease.RollForwardTimeout.String()))
	add(lease, "demote-delay", str(c.Lease.DemoteDelay.String()))
	switch c.Lease.Type {
	case LeaseConsul:
		server := serverGroup(lease, "consul", c.Lease.Consul.URL)
		add(server, "key", str(c.Lease.Consul.Key))
		add(server, "ttl", str(c.Lease.Consul.TTL.String()))
		add(server, "lock-delay", str(c.Lease.Consul.LockDelay.String()))
	case LeaseEtcd:
		server := serverGroup(lease, "etcd", c.Lease.Etcd.URL)
		add(server, "key", str(c.Lease.Etcd.Key))
		add(server, "ttl", str(c.Lease.Etcd.TTL.String()))
	case LeaseKubernetes:
		server := &yaml.Node{Kind: yaml.MappingNode}
		add(lease, "kubernetes", server)
		add(server, "url", str(c.Lease.Kubernetes.URL))
		add(server, "account-dir", str(c.Lease.Kubernetes.AccountDir))
		add(server, "namespace", str(c.Lease.Kubernetes.Namespace))
		add(server, "name", str(c.Lease.Kubernetes.Name))
		add(server, "ttl", str(c.Lease.Kubernetes.TTL.String()))
		add(server, "lock-delay", str(c.Lease.Kubernetes.LockDelay.String()))
	case LeaseS3:
		server := &yaml.Node{Kind: yaml.MappingNode}
		add(lease, "s3", server)
		add(server, "url", str(c.Lease.S3.URL))
		if c.Lease.S3.SecretKey != "" {
			server.Content[0].HeadComment = "# access-key and secret-key are set; they are not shown"
		}
		for _, kv := range [][2]string{{"endpoint", c.Lease.S3.Endpoint}, {"region", c.Lease.S3.Region}} {
			if kv[1] != "" {
				add(server, kv[0], str(kv[1]))
			}
		}
		add(server, "key", str(c.Lease.S3.Key))
		add(server, "ttl", str(c.Lease.S3.TTL.String()))
		add(server, "lock-delay", str(c.Lease.S3.LockDelay.String()))
	case LeaseNATS:
		server := serverGroup(lease, "nats", c.Lease.NATS.URL)
		if c.Lease.NATS.Credentials != "" {
			add(server, "credentials", str(c.Lease.NATS.Credentials))
		}
		add(server, "bucket", str(c.Lease.NATS.Bucket))
		add(server, "replicas", plain(fmt.Sprint(c.Lease.NATS.Replicas)))
		add(server, "key", str(c.Lease.NATS.Key))
		add(server, "ttl", str(c.Lease.NATS.TTL.String()))
		add(server, "lock-delay", str(c.Lease.NATS.LockDelay.String()))
	}

	if len(c.Durability) > 0 {
		add(root, "durability", durabilityYAML(c.Durability))
	}

	open := "writable"
	if c.ReplicaReadOnly {
		open = "readonly"
	}
	replica := group("replica")
	add(replica, "open", str(open))
	add(replica, "max-staleness", str(c.MaxStaleness.String()))
	then := "refuse"
	if c.ServeStale {
		then = "serve"
	}
	add(replica, "then", str(then))
	if len(c.HaltDatabases) > 0 {
		add(replica, "halt-databases", sequence(c.HaltDatabases))
	}

	if proxy := c.Proxy.yaml(); proxy != nil {
		add(root, "proxy", proxy)
	}

	if backup := c.Backup.yaml(); backup != nil {
		add(root, "backup", backup)
	}

	if len(c.Exec) > 0 {
		add(root, "exec", execYAML(c.Exec))
	}
	add(root, "exit-on-error", plain(fmt.Sprint(c.ExitOnError)))
	add(root, "skip-sync", plain(fmt.Sprint(c.SkipSync)))
	add(root, "strict-verify", plain(fmt.Sprint(c.StrictVerify)))

	log := group("log")
	add(log, "format", str(c.Log.Format))
	add(log, "timestamp", plain(fmt.Sprint(c.Log.Timestamp)))
	add(log, "debug", plain(fmt.Sprint(c.Log.Debug)))

	trace := group("tracing")
	add(trace, "enabled", plain(fmt.Sprint(c.Trace.Enabled)))
	if c.Trace.Path != "" {
		add(trace, "path", str(c.Trace.Path))
	}
	add(trace, "max-size", plain(fmt.Sprint(c.Trace.MaxSize)))
	add(trace, "max-count", plain(fmt.Sprint(c.Trace.MaxCount)))
	add(trace, "compress", plain(fmt.Sprint(c.Trace.Compress)))
	return root
}

// serverGroup begins the keys of a lease server.
func serverGroup(lease *yaml.Node, name string, url Secret) *yaml.Node {
	g := &yaml.Node{Kind: yaml.MappingNode}
	add(lease, name, g)
	shown, hidden := withoutCredential(url)
	add(g, "url", str(shown))
	if hidden {
		g.Content[0].HeadComment = "# the URL has a credential; it is not shown"
	}
	return g
}

func add(mapping *yaml.Node, name string, value *yaml.Node) {
	mapping.Content = append(mapping.Content, plain(name), value)
}

// plain is a value that YAML's own rules read as what it is.
func plain(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: s} }

// strTag marks a scalar that is a string, whatever it looks like.
const strTag = "!!str"

// str is a string: quoted where it must be.
func str(s string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: strTag, Value: s}
}

// escapeDollars doubles the dollar signs of strings, so that reading them back expands nothing.
func escapeDollars(n *yaml.Node) {
	if n.Tag == strTag {
		n.Value = strings.ReplaceAll(n.Value, "$", "$$")
	}
	for _, child := range n.Content {
		escapeDollars(child)
	}
}

// sequence is a list of strings.
func sequence(items []string) *yaml.Node {
	list := &yaml.Node{Kind: yaml.SequenceNode}
	for _, item := range items {
		list.Content = append(list.Content, str(item))
	}
	return list
}
