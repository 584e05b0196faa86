package litefs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/litefs/litefs/internal/durable"
	"github.com/litefs/litefs/internal/vfs"
)

// ErrOtherCluster reports that the lease belongs to another cluster than this node's data.
var ErrOtherCluster = errors.New("the lease is another cluster's")

// Names of the values that nodes keep beside the lease.
const (
	clusterIDName = "cluster-id"

	// SecretName is that of the secret by which the nodes of a cluster know each other.
	SecretName = "secret"
)

// guardCluster binds the lease to one cluster: the first node stores its cluster's id beside it, or a
// new one, and every other node must be of that cluster, or of none, and then joins it. What is stored
// is never replaced, so that a node with the data of another cluster cannot get the lease.
//
// The id is stored there before it is here: a node that dies in between comes back without one and
// joins.
func (s *Store) guardCluster(ctx context.Context, reg Registry) error {
	mine := s.ClusterID()
	offer := mine
	if offer == "" {
		var err error
		if offer, err = newClusterID(); err != nil {
			return err
		}
	}
	got, err := reg.SetOnce(ctx, clusterIDName, []byte(offer))
	if err != nil {
		return fmt.Errorf("cluster of the lease: %w", err)
	}
	theirs := strings.TrimSpace(string(got))
	switch {
	case theirs == mine:
		return s.offerSecret(ctx, reg)
	case theirs == "" || len(theirs) > 64 || strings.ContainsFunc(theirs, func(r rune) bool { return r <= ' ' || r > '~' }):
		return fmt.Errorf("what is stored beside the lease as the cluster's id is none: %.80q", theirs)
	case mine == "":
		return s.setClusterID(theirs)
	}
	return fmt.Errorf("%w: %v is of cluster %s, the data in %s of %s: give this node an empty data directory to join %s, or the lease another key to stay apart",
		ErrOtherCluster, reg, theirs, s.path, mine, theirs)
}

// offerSecret stores the cluster's secret beside the lease again if the server has lost it.
func (s *Store) offerSecret(ctx context.Context, reg Registry) error {
	known, err := ReadSecret(s.path)
	if err != nil || known == "" {
		return err
	}
	got, err := reg.SetOnce(ctx, SecretName, []byte(known))
	if err != nil {
		return fmt.Errorf("secret of the cluster: %w", err)
	}
	if string(got) != known {
		s.Logger.Warn("the secret beside the lease is not the one that this node has: remove this node's file, or the key, and start again",
			"lease", fmt.Sprint(reg), "file", filepath.Join(s.path, secretFile))
	}
	return nil
}

// newClusterID draws an id, in the form that LiteFS's have.
func newClusterID() (string, error) {
	id, err := randomHex(8)
	if err != nil {
		return "", err
	}
	return "LFSC" + strings.ToUpper(strings.TrimSpace(string(id))), nil
}

// secretFile keeps the cluster's secret: a node starts with it while the lease server is away, and
// offers it again to one that has lost its data. The commands of this machine read it.
const secretFile = "secret"

// ReadSecret returns the secret that the node with this data directory shares with its cluster by way
// of the lease server; empty if there is none.
func ReadSecret(dataDir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dataDir, secretFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("the cluster's secret: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// KeepSecret stores the secret for ReadSecret. The store is open.
func (s *Store) KeepSecret(secret string) error {
	if err := durable.Replace(vfs.OS(), filepath.Join(s.path, secretFile), []byte(secret+"\n")); err != nil {
		return fmt.Errorf("the cluster's secret: %w", err)
	}
	return nil
}
