package litefs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/litefs/litefs/internal/durable"
	"github.com/litefs/litefs/internal/vfs"
)

// KnownReplica is a follower that was here, and where it listens.
type KnownReplica struct {
	NodeID string    `json:"nodeID"`
	URL    string    `json:"url"`
	Seen   time.Time `json:"seen"`
}

// Bounds of the file of known followers.
const (
	knownMemory  = 7 * 24 * time.Hour
	knownRefresh = time.Hour // how exact Seen is
	maxKnown     = 256
	maxKnownSize = 1 << 20 // bytes that are believed
)

// knownReplicas keeps the followers on disk: a primary that lost the end of its
// log with the power asks them for it.
type knownReplicas struct {
	path string

	mu   sync.Mutex // guards everything below
	list []KnownReplica
}

func (k *knownReplicas) open(path string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.path = path
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("known replicas: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	if err := json.NewDecoder(io.LimitReader(f, maxKnownSize)).Decode(&k.list); err != nil {
		return fmt.Errorf("known replicas, %s: %w: remove the file to start without them", path, err)
	}
	return nil
}

// note remembers a follower, durably.
func (k *knownReplicas) note(nodeID, url string, now time.Time) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	i := slices.IndexFunc(k.list, func(r KnownReplica) bool { return r.NodeID == nodeID })
	if i >= 0 && k.list[i].URL == url && now.Sub(k.list[i].Seen) < knownRefresh {
		return nil
	}
	list := slices.DeleteFunc(slices.Clone(k.list), func(r KnownReplica) bool {
		return r.NodeID == nodeID || r.URL == url || now.Sub(r.Seen) > knownMemory
	})
	list = append(list, KnownReplica{NodeID: nodeID, URL: url, Seen: now.UTC().Truncate(time.Second)})
	list = list[max(0, len(list)-maxKnown):]
	b, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return err
	}
	if err := durable.Replace(vfs.OS(), k.path, append(b, '\n')); err != nil {
		return fmt.Errorf("known replicas: %w", err)
	}
	k.list = list
	return nil
}

// all returns the followers, the one heard of last first.
func (k *knownReplicas) all(now time.Time) []KnownReplica {
	k.mu.Lock()
	defer k.mu.Unlock()
	list := slices.DeleteFunc(slices.Clone(k.list), func(r KnownReplica) bool { return now.Sub(r.Seen) > knownMemory })
	slices.SortStableFunc(list, func(a, b KnownReplica) int { return b.Seen.Compare(a.Seen) })
	return list
}

// KnownReplicas returns the followers that were here lately, and where they listen.
func (s *Store) KnownReplicas() []KnownReplica { return s.known.all(time.Now()) }

// RememberReplica keeps, durably, where a follower listens. told is what it says
// of itself, remote the address of its connection: a node that knows itself by a
// loopback address is reached at that one from another machine.
func (s *Store) RememberReplica(nodeID, told, remote string) error {
	u, err := replicaURL(told, remote)
	if err != nil {
		return fmt.Errorf("url of replica %.64q: %w", nodeID, err)
	}
	return s.known.note(nodeID, u, time.Now())
}

func replicaURL(told, remote string) (string, error) {
	u, err := url.Parse(told)
	if err != nil {
		return "", err
	}
	if len(told) > MaxNameLen || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("%.64q is no URL of a node", told)
	}
	from, err := netip.ParseAddrPort(remote)
	if err != nil {
		return "", fmt.Errorf("remote address: %w", err)
	}
	host, err := netip.ParseAddr(u.Hostname())
	local := u.Hostname() == "localhost" || err == nil && (host.IsLoopback() || host.IsUnspecified())
	if local && !from.Addr().Unmap().IsLoopback() {
		u.Host = net.JoinHostPort(from.Addr().Unmap().WithZone("").String(), u.Port())
	}
	return u.String(), nil
}
