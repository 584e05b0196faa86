package childnode

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Config is the part of a node's configuration that the users of this package vary.
type Config struct {
	Mount       string   // fuse.dir
	Data        string   // data.dir
	Addr        string   // http.addr
	PrimaryURL  string   // set: a follower of the node at that URL; empty: the static primary
	Passthrough bool     // fuse.passthrough: auto, or off
	Guardian    bool     // fuse.guardian
	DaemonLocks bool     // fuse.locks: daemon
	ForwardDir  string   // fuse.forward-dir
	Debug       bool     // log.debug
	Lease       []string // lines of the section lease, as "key: value"; nil: static, as PrimaryURL says
	DataKeys    []string // further lines of the section data, as "key: value"
	LeaseKeys   []string // likewise of the section lease
	Durability  []string // items of the list durability, as "{match: ..., level: ...}"
	Backup      []string // lines of the section backup, as "key: value"; none: no archive
	Replica     []string // lines of the section replica, as "key: value"
	Proxy       []string // lines of the section proxy, as "key: value"; none: no proxy
}

// YAML returns the configuration file.
func (c Config) YAML() string {
	var b strings.Builder
	passthrough := "off"
	if c.Passthrough {
		passthrough = "auto"
	}
	fmt.Fprintf(&b, "fuse:\n  dir: %s\n  passthrough: %s\n", strconv.Quote(c.Mount), strconv.Quote(passthrough))
	if c.Guardian {
		b.WriteString("  guardian: true\n")
	}
	if c.DaemonLocks {
		b.WriteString("  locks: daemon\n")
	}
	if c.ForwardDir != "" {
		fmt.Fprintf(&b, "  forward-dir: %s\n", strconv.Quote(c.ForwardDir))
	}
	fmt.Fprintf(&b, "data:\n  dir: %s\n", strconv.Quote(c.Data))
	for _, line := range c.DataKeys {
		fmt.Fprintf(&b, "  %s\n", line)
	}
	if len(c.Durability) > 0 {
		b.WriteString("durability:\n")
	}
	for _, item := range c.Durability {
		fmt.Fprintf(&b, "  - %s\n", item)
	}
	if len(c.Backup) > 0 {
		b.WriteString("backup:\n")
	}
	for _, line := range c.Backup {
		fmt.Fprintf(&b, "  %s\n", line)
	}
	fmt.Fprintf(&b, "http:\n  addr: %s\n", strconv.Quote(c.Addr))
	if c.Lease != nil {
		fmt.Fprintf(&b, "lease:\n  advertise-url: %s\n", strconv.Quote("http://"+c.Addr))
		for _, line := range c.Lease {
			fmt.Fprintf(&b, "  %s\n", line)
		}
	} else {
		url := c.PrimaryURL
		if url == "" {
			url = "http://" + c.Addr
		}
		fmt.Fprintf(&b, "lease:\n  type: static\n  candidate: %t\n  advertise-url: %s\n", c.PrimaryURL == "", strconv.Quote(url))
	}
	for _, line := range c.LeaseKeys {
		fmt.Fprintf(&b, "  %s\n", line)
	}
	if len(c.Replica) > 0 {
		b.WriteString("replica:\n")
	}
	for _, line := range c.Replica {
		fmt.Fprintf(&b, "  %s\n", line)
	}
	if len(c.Proxy) > 0 {
		b.WriteString("proxy:\n")
	}
	for _, line := range c.Proxy {
		fmt.Fprintf(&b, "  %s\n", line)
	}
	fmt.Fprintf(&b, "log:\n  debug: %t\n", c.Debug)
	return b.String()
}

// WriteFile writes the configuration file at path.
func (c Config) WriteFile(path string) error {
	if err := os.WriteFile(path, []byte(c.YAML()), 0o600); err != nil {
		return fmt.Errorf("write the configuration of a node: %w", err)
	}
	return nil
}

// Secret is what the nodes of a cluster with a lease server know each other by, as the node keeps it.
func (c Config) Secret() (string, error) {
	b, err := os.ReadFile(filepath.Join(c.Data, "secret"))
	if err != nil {
		return "", fmt.Errorf("secret of the cluster: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// FreeAddr returns a loopback address that nobody listens on, and that nobody else gets here before this process ends: who
// asks may listen later, or stop for a while. A node keeps its address over a restart,
// so the port is taken from below the range that the kernel hands out for outgoing connections: there
// it would be a matter of luck whether it is still free the second time.
func FreeAddr() (string, error) {
	const low, high, tries = 12000, 32000, 200
	var last error
	for range tries {
		port := low + rand.IntN(high-low)
		if claimed, err := claim(port); err != nil {
			return "", err
		} else if !claimed {
			continue
		}
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			last = err
			continue
		}
		if err := l.Close(); err != nil {
			return "", fmt.Errorf("probe %s: %w", addr, err)
		}
		return addr, nil
	}
	return "", fmt.Errorf("no free port between %d and %d: %w", low, high, last)
}

// claim makes a port this process's own, by a name that the kernel gives once and takes back when the process ends: its
// descriptor is not closed before.
func claim(port int) (bool, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("claim port %d: %w", port, err)
	}
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: "@litefs-port-" + strconv.Itoa(port)}); err == nil {
		return true, nil
	}
	err = errors.Join(err, unix.Close(fd))
	if errors.Is(err, unix.EADDRINUSE) {
		return false, nil
	}
	return false, fmt.Errorf("claim port %d: %w", port, err)
}
