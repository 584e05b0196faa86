// Package netns is a network of machines on one machine, for long tests: Linux network namespaces on a
// bridge, between which the network is cut, in one direction or both, and slowed down.
//
// Only the network is another one: files, mounts and processes are shared, so that a node that runs in a
// namespace serves a mount that everybody sees. The host has an address on the bridge too, which no cut
// concerns: a test asks a node about itself while the node is alone.
//
// It needs root, the command ip, and a kernel with bridges, veth and policy routing; Delay needs netem.
package netns

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Network is a bridge and the namespaces on it, which are numbered from 0.
type Network struct {
	id     string // in the names of all that is made, so that several networks can be
	subnet string // the first three bytes of its addresses
	nodes  int

	mu  sync.Mutex
	cut map[[2]int]bool // from, to
}

// MaxNodes is how many namespaces a network can have.
const MaxNodes = 200

// hostAddr is the last byte of the host's address.
const hostAddr = 254

// New makes a network of n namespaces. The caller closes it.
func New(n int) (*Network, error) {
	if n < 1 || n > MaxNodes {
		return nil, fmt.Errorf("network of %d namespaces, want 1 to %d", n, MaxNodes)
	}
	var b [3]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, fmt.Errorf("name a network: %w", err)
	}
	// 198.18.0.0/15 is for tests of networks: no machine has an address in it.
	nw := &Network{id: "lf" + hex.EncodeToString(b[:]), subnet: fmt.Sprintf("198.%d.%d", 18+b[0]&1, b[1]), nodes: n, cut: make(map[[2]int]bool)}
	if err := nw.make(); err != nil {
		return nil, errors.Join(err, nw.Close())
	}
	return nw, nil
}

func (nw *Network) make() error {
	bridge := nw.id + "b"
	if err := ip("link", "add", bridge, "type", "bridge"); err != nil {
		return err
	}
	if err := ip("addr", "add", nw.address(hostAddr)+"/24", "dev", bridge); err != nil {
		return err
	}
	if err := ip("link", "set", bridge, "up"); err != nil {
		return err
	}
	for i := range nw.nodes {
		ns := nw.namespace(i)
		for _, args := range [][]string{
			{"netns", "add", ns},
			{"link", "add", nw.outside(i), "type", "veth", "peer", "name", "eth0", "netns", ns},
			{"link", "set", nw.outside(i), "master", bridge, "up"},
			{"-n", ns, "addr", "add", nw.Addr(i) + "/24", "dev", "eth0"},
			{"-n", ns, "link", "set", "eth0", "up"},
			{"-n", ns, "link", "set", "lo", "up"},
			// What is for this node is looked up after the rules of Cut.
			{"-n", ns, "rule", "add", "pref", "30000", "table", "local"},
			{"-n", ns, "rule", "del", "pref", "0"},
		} {
			if err := ip(args...); err != nil {
				return err
			}
		}
	}
	return nil
}

// Close removes the network. Processes that run in it stay, with nobody to talk to.
func (nw *Network) Close() error {
	var errs []error
	have, err := exec.Command("ip", "netns", "list").Output()
	if err != nil {
		return fmt.Errorf("ip netns list: %w", err)
	}
	for i := range nw.nodes {
		if strings.Contains(string(have), nw.namespace(i)) {
			errs = append(errs, ip("netns", "del", nw.namespace(i)))
		}
	}
	links, err := exec.Command("ip", "-brief", "link").Output()
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("ip link: %w", err))...)
	}
	for _, line := range strings.Split(string(links), "\n") {
		name, _, _ := strings.Cut(line, " ")
		name, _, _ = strings.Cut(name, "@")
		if !strings.HasPrefix(name, nw.id) {
			continue
		}
		// The kernel takes a pair with its namespace, a moment after: then there is nothing to remove.
		if err := ip("link", "del", name); err != nil && !strings.Contains(err.Error(), "Cannot find device") {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Addr returns the IP address of the ith namespace.
func (nw *Network) Addr(i int) string { return nw.address(i + 1) }

func (nw *Network) address(n int) string   { return nw.subnet + "." + strconv.Itoa(n) }
func (nw *Network) namespace(i int) string { return nw.id + "n" + strconv.Itoa(i) }
func (nw *Network) outside(i int) string   { return nw.id + "v" + strconv.Itoa(i) }

// Command returns the command line, its binary first, that runs args in the ith namespace. It becomes the
// process of args: their signals and process ids are one.
func (nw *Network) Command(i int, args ...string) []string {
	// "ip netns exec" would hide mounts that are made below it.
	return append([]string{"nsenter", "--net=/run/netns/" + nw.namespace(i)}, args...)
}

// Cut lets what from sends to to vanish, until Heal. The other direction stays as it is.
func (nw *Network) Cut(from, to int) error {
	nw.mu.Lock()
	defer nw.mu.Unlock()
	if from == to || nw.cut[[2]int{from, to}] {
		return nil
	}
	// Where it arrives, and without a word: the sender learns nothing, as from a cable that is out.
	if err := ip("-n", nw.namespace(to), "rule", "add", "pref", "10", "from", nw.Addr(from), "iif", "eth0", "blackhole"); err != nil {
		return err
	}
	nw.cut[[2]int{from, to}] = true
	return nil
}

// Part cuts, in both directions, each of some from each of the others.
func (nw *Network) Part(some ...int) error {
	in := make(map[int]bool)
	for _, i := range some {
		in[i] = true
	}
	var errs []error
	for other := range nw.nodes {
		for _, i := range some {
			if !in[other] {
				errs = append(errs, nw.Cut(i, other), nw.Cut(other, i))
			}
		}
	}
	return errors.Join(errs...)
}

// Heal ends all cuts.
func (nw *Network) Heal() error {
	nw.mu.Lock()
	defer nw.mu.Unlock()
	var errs []error
	for c := range nw.cut {
		errs = append(errs, ip("-n", nw.namespace(c[1]), "rule", "del", "pref", "10", "from", nw.Addr(c[0]), "iif", "eth0", "blackhole"))
		delete(nw.cut, c)
	}
	return errors.Join(errs...)
}

// Delay makes all that the ith namespace sends arrive so much later; 0 ends that.
func (nw *Network) Delay(i int, d time.Duration) error {
	return run("tc", "-n", nw.namespace(i), "qdisc", "replace", "dev", "eth0", "root", "netem", "delay", strconv.FormatInt(d.Microseconds(), 10)+"us")
}

func ip(args ...string) error { return run("ip", args...) }

// run runs a command and returns what it says as an error.
func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
