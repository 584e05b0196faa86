package litefs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/litefs/litefs/internal/durable"
	"github.com/litefs/litefs/internal/role"
	"github.com/litefs/litefs/internal/vfs"
)

// NodePosition is what a node tells of itself to one that may become the
// primary.
type NodePosition struct {
	ID        string   `json:"id"`
	URL       string   `json:"url"`
	ClusterID string   `json:"clusterID,omitempty"`
	Candidate bool     `json:"candidate"`
	Able      bool     `json:"able"` // it reached the lease service lately
	Primary   bool     `json:"primary"`
	Fullness  Fullness `json:"fullness"`
}

// maxNodes bounds the list of known nodes.
const maxNodes = 64

// askTimeout bounds how long a candidate waits for a node that does not answer.
const askTimeout = time.Second

// Position is what this node tells of itself.
func (s *Store) Position() NodePosition {
	p := NodePosition{ID: s.nodeID, ClusterID: s.ClusterID(), Candidate: s.Candidate(), Primary: s.IsPrimary(), Fullness: s.Fullness()}
	if s.Leaser != nil {
		p.URL = s.Leaser.AdvertiseURL()
	}
	if s.roles != nil {
		p.Able = bootNow()-role.Time(s.roles.able.Load()) < ableFor
	}
	return p
}

// Fullness says how much of the cluster's history this node has.
func (s *Store) Fullness() Fullness {
	var f Fullness
	for _, db := range s.DBs() {
		received, _, _ := db.reached()
		f.Epoch = max(f.Epoch, db.Epoch())
		f.Txns += received.TXID
	}
	return f
}

// recordOf is what this primary leaves beside its lease.
func (s *Store) recordOf(successor string) Record {
	return Record{
		NodeID: s.nodeID, Hostname: s.PrimaryHostname, URL: s.Leaser.AdvertiseURL(), ClusterID: s.ClusterID(),
		Epoch: s.Epoch(), Position: s.Fullness(), Successor: successor,
	}
}

// askPeers asks all known nodes how full they are. Those that do not answer are
// not live.
func (s *Store) askPeers(ctx context.Context) []role.Peer {
	asker, ok := s.Client.(interface {
		Position(ctx context.Context, url string) (NodePosition, error)
	})
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var (
		mu    sync.Mutex
		peers []role.Peer
		wg    sync.WaitGroup
	)
	for _, n := range s.Nodes() {
		wg.Go(func() {
			p, err := asker.Position(ctx, n.URL)
			if err != nil || p.ID == s.nodeID || p.ClusterID != s.ClusterID() {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			peers = append(peers, role.Peer{ID: p.ID, Candidate: p.Candidate, Able: p.Able, Primary: p.Primary, Fullness: fullnessOf(p.Fullness)})
		})
	}
	wg.Wait()
	return peers
}

// Nodes returns the other nodes that this one knows of, by URL.
func (s *Store) Nodes() []NodePosition {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.nodes)
}

// noteNode notes that a node exists.
func (s *Store) noteNode(n NodePosition) { s.noteNodes([]NodePosition{n}) }

// noteNodes adds nodes to those that are known, on disk too.
func (s *Store) noteNodes(nodes []NodePosition) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := false
	for _, n := range nodes {
		if n.ID == "" || n.URL == "" || n.ID == s.nodeID {
			continue
		}
		i := slices.IndexFunc(s.nodes, func(o NodePosition) bool { return o.ID == n.ID || o.URL == n.URL })
		switch {
		case i < 0 && len(s.nodes) < maxNodes:
			s.nodes = append(s.nodes, NodePosition{ID: n.ID, URL: n.URL, Candidate: n.Candidate})
			changed = true
		case i >= 0 && (s.nodes[i].ID != n.ID || s.nodes[i].URL != n.URL):
			s.nodes[i] = NodePosition{ID: n.ID, URL: n.URL, Candidate: n.Candidate}
			changed = true
		}
	}
	if !changed {
		return
	}
	b, err := json.Marshal(s.nodes)
	if err == nil {
		err = durable.Replace(vfs.OS(), s.nodesPath(), append(b, '\n'))
	}
	if err != nil {
		s.Logger.Warn("the list of nodes is not on disk", "error", err)
	}
}

func (s *Store) nodesPath() string { return filepath.Join(s.path, "nodes") }

func (s *Store) readNodes() error {
	b, err := os.ReadFile(s.nodesPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list of nodes: %w", err)
	}
	if err := json.Unmarshal(b, &s.nodes); err != nil {
		s.Logger.Warn("the list of nodes is damaged and begins anew", "error", err)
		s.nodes = nil
	}
	return nil
}
