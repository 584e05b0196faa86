package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/config"
)

// newConfig is the configuration of a primary in a new directory.
func newConfig(t *testing.T) *config.Config {
	t.Helper()
	dir := t.TempDir()
	addr, err := childnode.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	c := childnode.Config{Mount: filepath.Join(dir, "mnt"), Data: filepath.Join(dir, "data"), Addr: addr, Passthrough: true}
	cfg, err := config.Parse([]byte(c.YAML()), config.Source{})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func logTo(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// start starts a node in this process, and stops it with the test.
func start(t *testing.T, cfg *config.Config) *Node {
	t.Helper()
	n, err := Start(t.Context(), cfg, logTo(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return n
}

func mustNotBeMounted(t *testing.T, dir string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), " "+dir+" ") {
		t.Errorf("%s is still mounted", dir)
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	}
}

// TestStartFails: whatever stops a start, it leaves nothing behind, and the
// next one succeeds once the cause is gone.
func TestStartFails(t *testing.T) {
	for _, c := range []struct {
		name    string
		invalid bool // the configuration's fault, and not the node's
		spoil   func(t *testing.T, cfg *config.Config) (mend func())
	}{
		{"mount point is a file", true, func(t *testing.T, cfg *config.Config) func() {
			return write(t, cfg.Fuse.Dir, "")
		}},
		{"mount point is not empty", true, func(t *testing.T, cfg *config.Config) func() {
			mkdir(t, cfg.Fuse.Dir)
			return write(t, filepath.Join(cfg.Fuse.Dir, "notes.txt"), "")
		}},
		{"data directory of another format", true, func(t *testing.T, cfg *config.Config) func() {
			mkdir(t, cfg.Data.Dir)
			return write(t, filepath.Join(cfg.Data.Dir, "FORMAT"), "litefs 9\n")
		}},
		{"data directory of something else", true, func(t *testing.T, cfg *config.Config) func() {
			mkdir(t, cfg.Data.Dir)
			return write(t, filepath.Join(cfg.Data.Dir, "holiday.jpg"), "")
		}},
		{"data directory is a file", true, func(t *testing.T, cfg *config.Config) func() {
			return write(t, cfg.Data.Dir, "")
		}},
		{"data directory in use", false, func(t *testing.T, cfg *config.Config) func() {
			mkdir(t, cfg.Data.Dir)
			f, err := os.Create(filepath.Join(cfg.Data.Dir, "LOCK"))
			if err == nil {
				err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
			}
			if err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := f.Close(); err != nil {
					t.Error(err)
				}
			}
		}},
		{"address in use", false, func(t *testing.T, cfg *config.Config) func() {
			l, err := net.Listen("tcp", cfg.HTTP.Addr)
			if err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := newConfig(t)
			mend := c.spoil(t, cfg)
			n, err := Start(t.Context(), cfg, logTo(t))
			if err == nil {
				t.Fatal(errors.Join(errors.New("it starts"), n.Close(t.Context())))
			}
			if got := errors.Is(err, config.ErrInvalid); got != c.invalid {
				t.Errorf("%v: the configuration's fault: %t, want %t", err, got, c.invalid)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
			mustNotBeMounted(t, cfg.Fuse.Dir)
			mend()
			start(t, cfg)
		})
	}
}

func mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
}

// write makes a file; what it returns removes it.
func write(t *testing.T, path, content string) (mend func()) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// TestStartCancelled: a start that is given up leaves nothing behind.
func TestStartCancelled(t *testing.T) {
	cfg := newConfig(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n, err := Start(ctx, cfg, logTo(t))
	if err == nil {
		t.Fatal(errors.Join(errors.New("it starts"), n.Close(t.Context())))
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	mustNotBeMounted(t, cfg.Fuse.Dir)
	start(t, cfg)
}

// TestMountTakenAway: a node whose mount is unmounted by somebody ends by
// itself, cleanly.
func TestMountTakenAway(t *testing.T) {
	cfg := newConfig(t)
	ready := make(chan *Node, 1)
	ended := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	go func() {
		ended <- Run(ctx, Options{Config: cfg, Logger: logTo(t), Ready: func(n *Node) { ready <- n }})
	}()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatalf("it ends at once: %v", err)
	}
	if err := unix.Unmount(cfg.Fuse.Dir, 0); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("end: %v", err)
	}
	if ctx.Err() != nil {
		t.Error("it did not notice")
	}
	start(t, cfg)
}
