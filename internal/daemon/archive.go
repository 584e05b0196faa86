package daemon

import (
	"context"
	"crypto/rand"
	"path/filepath"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/archive"
	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/objstore"
	"github.com/litefs/litefs/internal/objstore/s3"
	"github.com/litefs/litefs/internal/seal"
	"github.com/litefs/litefs/internal/sealstore"
	"github.com/litefs/litefs/internal/ship"
)

// newShipper makes what keeps the archive, if there is one. The store asks it what the log must keep, so
// it is there before the store opens.
func (n *Node) newShipper() error {
	b := n.cfg.Backup
	if len(b.All()) == 0 {
		return nil
	}
	o := ship.Options{
		Source: archived{n.store}, Dir: filepath.Join(n.cfg.Data.Dir, "archiving"), Logger: n.logger,
		Interval: b.Interval, SnapshotInterval: b.SnapshotInterval,
		Retention: ship.Retention{Age: b.Retention, Count: b.RetentionCount, Size: b.RetentionSize},
		Requests:  float64(b.MaxRequests), Bandwidth: b.MaxBandwidth,
	}
	keys, err := ArchiveKeys(context.Background(), b)
	if err != nil {
		return config.Invalid(err)
	}
	for _, t := range b.All() {
		place, err := OpenArchive(t, keys)
		if err != nil {
			return config.Invalid(err)
		}
		place.Hold = ship.Hold{Bytes: t.Hold, GiveUp: t.HoldThen == config.HoldGiveUp}
		o.Targets = append(o.Targets, place)
	}
	if n.shipper, err = ship.New(o); err != nil {
		return err
	}
	n.store.Archive = n.shipper
	if b.Seed {
		n.store.Seeder = seeder{places: o.Targets, match: n.cfg.Lease.Databases}
	}
	return nil
}

// OpenArchive opens the place that a configuration names, encrypted with keys if there are any. It asks
// nothing of a service.
func OpenArchive(t config.BackupTarget, keys *seal.Keys) (ship.Target, error) {
	if t.Type == config.BackupFile {
		dir, err := objstore.OpenDir(t.Path)
		return ship.Target{Store: sealstore.New(dir, keys), Layout: archive.LayoutDir}, err
	}
	bucket, prefix := t.Bucket()
	s, err := s3.New(s3.Options{
		Bucket: bucket, Prefix: prefix, Endpoint: t.Endpoint, Region: t.Region,
		AccessKey: t.AccessKey, SecretKey: string(t.SecretKey),
	})
	if err != nil {
		return ship.Target{}, err
	}
	return ship.Target{Store: sealstore.New(s, keys), Layout: archive.LayoutBucket, Check: func(ctx context.Context) error {
		return s.Check(ctx, "litefs-check-"+rand.Text())
	}}, nil
}

// archived is the store as what is archived.
type archived struct{ *litefs.Store }

func (a archived) Databases() []ship.Database {
	dbs := a.DBs()
	out := make([]ship.Database, len(dbs))
	for i, db := range dbs {
		out[i] = db
	}
	return out
}
