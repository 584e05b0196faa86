package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/internal/config"
)

// checkDirs refuses directories that cannot serve, before anything is made in
// them. It looks and touches nothing.
func checkDirs(cfg *config.Config) error {
	if err := checkMountDir(cfg.Fuse.Dir); err != nil {
		return config.Invalid(fmt.Errorf("fuse.dir %w", err))
	}
	if err := checkDataDir(cfg.Data.Dir); err != nil {
		return config.Invalid(fmt.Errorf("data.dir %w", err))
	}
	return nil
}

// checkMountDir wants a directory. It is not made when it is missing: a
// misspelled path would then be mounted somewhere else than the application
// looks.
func checkMountDir(dir string) error {
	if config.IsMounted(dir) {
		return nil // in use, or left by a killed daemon: the daemon knows what to do
	}
	switch _, err := os.Stat(dir); {
	case errors.Is(err, syscall.ENOTCONN):
		return nil // a mount that a killed daemon left: the daemon knows what to do
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s does not exist: make it with mkdir -p", dir)
	}
	return checkWritable(dir)
}

// checkDataDir wants a directory that is there, or a place where it can be made.
func checkDataDir(dir string) error {
	for p := dir; ; p = filepath.Dir(p) {
		_, err := os.Lstat(p)
		missing := errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
		if missing && p != filepath.Dir(p) {
			continue
		}
		if err := checkWritable(p); err != nil && p != dir {
			return fmt.Errorf("%s cannot be made: %w", dir, err)
		} else if err != nil {
			return err
		}
		return nil
	}
}

// checkWritable wants a directory in which this user may make files.
func checkWritable(dir string) error {
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("%s is not a directory", dir)
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return fmt.Errorf("%s is not writable by this user (uid %d): %w", dir, os.Getuid(), err)
	}
	return nil
}
