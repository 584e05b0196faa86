package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/logkey"
	"github.com/litefs/litefs/internal/verify"
)

// logKeysCommand is litefs keys -log: the keys of a node's own logs.
type logKeysCommand struct {
	node            nodeFlags
	name            string // of a database, or its id; "": all
	rotate, destroy bool
	asJSON          bool
}

func (c *logKeysCommand) run(ctx context.Context, w io.Writer) error {
	dir, err := c.node.dataDir(ctx)
	if err != nil {
		return err
	}
	if err := verify.CheckDataDir(dir); err != nil {
		return c.node.blame(err)
	}
	logs, err := logkey.Logs(dir)
	if err != nil {
		return err
	}
	if c.destroy {
		lock, running, err := verify.LockDataDir(dir)
		if err != nil {
			return err
		}
		if running {
			return fmt.Errorf("a node runs on %s and has the key in memory: stop it first", dir)
		}
		if lock != nil {
			defer lock.Close() //nolint:errcheck // it was only read
		}
		return c.shred(logs, dir, w)
	}
	keys, err := c.node.logKeys(ctx)
	if err != nil {
		return err
	}
	for _, l := range logs {
		if !c.means(l) {
			continue
		}
		line := keyLine{Database: l.Name, ID: l.ID, Path: l.Dir}
		if l.Key && c.rotate {
			if keys == nil {
				return config.Invalid(logkey.ErrNoKey)
			}
			if line.Rotated, err = keys.Rotate(l.Dir); err != nil {
				return c.node.blame(err)
			}
		}
		if l.Key {
			if line.WrappedBy, err = keys.WrappedBy(l.Dir); err != nil {
				return c.node.blame(err)
			}
		}
		if err := printKey(w, line, c.asJSON); err != nil {
			return err
		}
	}
	return nil
}

// means says whether a log is one of those that were asked for.
func (c *logKeysCommand) means(l logkey.Log) bool {
	return c.name == "" || c.name == l.Name || c.name == l.ID
}

func (c *logKeysCommand) shred(logs []logkey.Log, dir string, w io.Writer) error {
	found := false
	for _, l := range logs {
		if !l.Key || !c.means(l) {
			continue
		}
		found = true
		if err := logkey.Shred(l); err != nil {
			return err
		}
		if err := printKey(w, keyLine{Database: l.Name, ID: l.ID, Path: l.Dir, Destroyed: true}, c.asJSON); err != nil {
			return err
		}
	}
	if !found {
		return config.Invalid(errors.New(c.name + " has no encrypted log in " + dir))
	}
	return nil
}
