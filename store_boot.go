package litefs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/litefs/litefs/internal/durable"
	"github.com/litefs/litefs/internal/vfs"
)

// The file run holds the boot of the machine in which the store is open. A stop
// that leaves every database clean removes it, so a start that finds another
// boot's knows that the power was cut: what was not synced may be lost here, and
// not on other nodes.

func (s *Store) runPath() string { return filepath.Join(s.path, "run") }

// powerCut reports whether the last run ended with the machine.
func (s *Store) powerCut() (bool, error) {
	b, err := os.ReadFile(s.runPath())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("boot of the last run: %w", err)
	}
	return strings.TrimSpace(string(b)) != s.bootID, nil
}

// noteRunning says, durably, that the store is open in this boot.
func (s *Store) noteRunning() error {
	if err := durable.Replace(vfs.OS(), s.runPath(), []byte(s.bootID+"\n")); err != nil {
		return fmt.Errorf("note the boot: %w", err)
	}
	s.noted = true
	return nil
}

// noteStopped takes that back, after a stop that lost nothing.
func (s *Store) noteStopped() error {
	if !s.noted {
		return nil // it was never open: what the last run left still holds
	}
	s.noted = false
	if err := os.Remove(s.runPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("note the stop: %w", err)
	}
	return nil
}

// afterPowerCut readies a primary whose machine lost its power, before any
// database is recovered: what is written from here on is of a new epoch, and
// what followers have and the disk lost is fetched.
func (s *Store) afterPowerCut() error {
	cut, err := s.powerCut()
	s.cut = cut
	if err != nil || !cut || s.lastRole != RolePrimary {
		return err
	}
	if _, elected := s.Leaser.(Registry); elected {
		return nil // the lease says which epoch is next, and who is the fullest
	}
	epoch, err := s.readEpoch()
	if err != nil {
		return err
	}
	if err := s.writeEpoch(epoch + 1); err != nil {
		return err
	}
	s.epoch.Store(epoch + 1)
	s.reign.Store(epoch + 1)
	s.Logger.Warn("the power was cut: a new epoch begins", "epoch", epoch+1)
	return s.rollForwardFromReplicas(s.ctx)
}
