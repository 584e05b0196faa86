package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/daemon"
	"github.com/litefs/litefs/internal/restore"
	"github.com/litefs/litefs/internal/ship"
)

// archiveFlags say which archive a command reads.
type archiveFlags struct {
	configFlags
	from, endpoint, region string
	keyFile                string
	name                   string
	history                uint64
}

func (a *archiveFlags) register(f *flags) {
	a.registerPlace(f)
	f.Uint64Var(&a.history, "history", 0, "number `N` of a history of the database (default the one that was written last)")
}

// registerPlace registers the flags of a command that reads no history.
func (a *archiveFlags) registerPlace(f *flags) {
	a.configFlags.register(f)
	f.StringVar(&a.from, "from", "", "the archive: a directory or `s3://BUCKET/PREFIX`, whose credential is AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (default the first of the configuration)")
	f.StringVar(&a.endpoint, "endpoint", "", "`URL` of the S3 service (default AWS's)")
	f.StringVar(&a.region, "region", "", "`REGION` of the bucket")
	f.StringVar(&a.keyFile, "key-file", "", "`FILE` of keys of an encrypted archive (default those of the configuration, else of LITEFS_BACKUP_KEY)")
	f.StringVar(&a.name, "name", "", "the `DB`: its path in the mount; none for what Litestream wrote to -from")
}

// open opens the archive.
func (a *archiveFlags) open(ctx context.Context) (ship.Target, error) {
	target, backup, err := a.target()
	if err != nil {
		return ship.Target{}, err
	}
	if a.keyFile != "" {
		text, err := os.ReadFile(a.keyFile)
		if err != nil {
			return ship.Target{}, config.Invalid(err)
		}
		backup = config.Backup{Keys: config.Secret(text)}
	}
	keys, err := daemon.ArchiveKeys(ctx, backup)
	if err != nil {
		return ship.Target{}, config.Invalid(err)
	}
	return daemon.OpenArchive(target, keys)
}

// target is the place that the flags name, and the configuration if it is of one.
func (a *archiveFlags) target() (t config.BackupTarget, b config.Backup, err error) {
	if a.from == "" {
		if a.endpoint != "" || a.region != "" {
			return t, b, usagef("-endpoint and -region go with -from s3://BUCKET/PREFIX")
		}
		cfg, err := a.load(nil)
		if err != nil {
			return t, b, err
		}
		places := cfg.Backup.All()
		if len(places) == 0 {
			return t, b, config.Invalid(errors.New("the configuration has no backup.type: name the archive with -from"))
		}
		return places[0], cfg.Backup, nil
	}
	if a.path != "" {
		return t, b, usagef("give -from, or a configuration, not both")
	}
	if strings.HasPrefix(a.from, "s3://") {
		return config.BackupTarget{Type: config.BackupS3, URL: a.from, Endpoint: a.endpoint, Region: a.region}, b, nil
	}
	if info, err := os.Stat(a.from); errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return t, b, usagef("-from %s is no directory", a.from)
	}
	return config.BackupTarget{Type: config.BackupFile, Path: a.from}, b, nil
}

// openHistory opens the history that the flags name.
func (a *archiveFlags) openHistory(ctx context.Context) (*restore.History, error) {
	place, err := a.open(ctx)
	if err != nil {
		return nil, err
	}
	if a.name != "" {
		return restore.Open(ctx, place.Store, place.Layout, a.name, a.history)
	}
	h, err := restore.OpenForeign(ctx, place.Store, place.Layout)
	if errors.Is(err, restore.ErrNoHistory) {
		return nil, fmt.Errorf("%w; for an archive of litefs name the database with -name: litefs history lists them", err)
	}
	return h, err
}
