package durable

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/litefs/litefs/internal/vfs"
)

const path = "/dir/file"

// Contents of several blocks, of which a cut may leave some.
var (
	before = bytes.Repeat([]byte("before"), 500)
	after  = bytes.Repeat([]byte("AFTER"), 700)
)

// diskWith returns a disk on which path has a content, durably; nil: there is no file.
func diskWith(t *testing.T, content []byte) *vfs.Mem {
	t.Helper()
	disk := vfs.NewMem()
	err := disk.Mkdir(filepath.Dir(path), 0o700)
	if err == nil && content != nil {
		err = Replace(disk, path, content)
	}
	if err == nil {
		err = disk.SyncDir(filepath.Dir(path))
	}
	if err != nil {
		t.Fatal(err)
	}
	return disk
}

// contentOf returns nil when there is no file.
func contentOf(t *testing.T, disk vfs.FS) []byte {
	t.Helper()
	f, err := disk.OpenFile(path, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(f)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return append([]byte{}, b...)
}

func names(t *testing.T, disk vfs.FS) (names []string) {
	t.Helper()
	entries, err := disk.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestReplaceFailsAtEachStep(t *testing.T) {
	for name, fault := range map[string]error{"fails": syscall.EIO, "is cut short": &vfs.ShortWrite{N: 700, Err: syscall.EIO}} {
		for _, old := range [][]byte{nil, before} {
			var steps []string
			for i := 0; ; i++ {
				disk := diskWith(t, old)
				var at vfs.Kind
				err := Replace(vfs.NewFaulty(disk, func(op vfs.Op) error {
					if op.N != i {
						return nil
					}
					at = op.Kind
					return fault
				}), path, after)
				got := contentOf(t, disk)
				if at == "" { // there is no such step
					if err != nil || !bytes.Equal(got, after) {
						t.Fatalf("nothing failed: %v, %d bytes, want %d", err, len(got), len(after))
					}
					break
				}
				steps = append(steps, string(at))
				if !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), filepath.Dir(path)) {
					t.Errorf("%s %s: error %v, want EIO and the place", at, name, err)
				}
				want, wantNames := old, []string{"file"}
				if at == vfs.OpSyncDir { // the file has its name
					want = after
				} else if old == nil {
					wantNames = nil
				}
				if !bytes.Equal(got, want) || !slices.Equal(names(t, disk), wantNames) {
					t.Errorf("%s %s: %d bytes in %q, want %d in %q", at, name, len(got), names(t, disk), len(want), wantNames)
				}
			}
			if got := strings.Join(steps, " "); got != "open write sync close rename syncdir" {
				t.Errorf("the steps are %s", got)
			}
		}
	}
}

// cuts gives what power cuts during do, before each of its operations and after the last one, leave of a disk that prepare makes.
func cuts(t *testing.T, prepare func() *vfs.Mem, do func(vfs.FS) error, check func(done bool, left *vfs.Mem) error) {
	t.Helper()
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		disk := prepare()
		cut := func(at string, done bool) {
			if err := check(done, disk.Cut(rnd)); err != nil {
				t.Errorf("seed %d, a cut %s: %v", seed, at, err)
			}
		}
		if err := do(vfs.NewFaulty(disk, func(op vfs.Op) error {
			cut("before "+string(op.Kind), false)
			return nil
		})); err != nil {
			t.Fatal(err)
		}
		cut("after it", true)
	}
}

func TestReplaceAndPowerCuts(t *testing.T) {
	for _, old := range [][]byte{nil, before} {
		prepare := func() *vfs.Mem { return diskWith(t, old) }
		replace := func(disk vfs.FS) error { return Replace(disk, path, after) }
		cuts(t, prepare, replace, func(done bool, left *vfs.Mem) error {
			switch got := contentOf(t, left); {
			case bytes.Equal(got, after):
			case done:
				return fmt.Errorf("%d bytes, want the %d that were reported durable", len(got), len(after))
			case !bytes.Equal(got, old):
				return fmt.Errorf("%d bytes that are neither the old nor the new content", len(got))
			}
			// What it has left under the other name is in nobody's way.
			if err := Replace(left, path, before[:1]); err != nil {
				return err
			}
			if got := names(t, left); !slices.Equal(got, []string{"file"}) || string(contentOf(t, left)) != "b" {
				return fmt.Errorf("the next one leaves %q, %.10q", got, contentOf(t, left))
			}
			return nil
		})
	}
}

func TestWriteAndPowerCuts(t *testing.T) {
	for _, old := range [][]byte{nil, before} {
		prepare := func() *vfs.Mem { return diskWith(t, old) }
		write := func(disk vfs.FS) error { return Write(disk, path, after) }
		cuts(t, prepare, write, func(done bool, left *vfs.Mem) error {
			if got := contentOf(t, left); done && !bytes.Equal(got, after) {
				return fmt.Errorf("%d bytes, want the %d that were reported durable", len(got), len(after))
			}
			return nil
		})
	}
}

func TestWriteFailsAtEachStep(t *testing.T) {
	const steps = 5 // open, write, sync, close, syncdir
	for i := range steps {
		err := Write(vfs.NewFaulty(diskWith(t, nil), func(op vfs.Op) error {
			if op.N == i {
				return syscall.EIO
			}
			return nil
		}), path, after)
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("step %d fails: %v, want EIO", i, err)
		}
	}
}

func TestPut(t *testing.T) {
	failed := errors.New("failed")
	never := func(_, _ string) error { return failed }
	whole := func(f *os.File) error { _, err := f.WriteString("new"); return err }
	half := func(f *os.File) error { return errors.Join(whole(f), failed) }
	for name, tt := range map[string]struct {
		old     string // "": no file
		write   func(*os.File) error
		publish func(tmp, path string) error
		want    string
		err     error
	}{
		"renamed":            {old: "old", write: whole, publish: os.Rename, want: "new"},
		"renamed, the first": {write: whole, publish: os.Rename, want: "new"},
		"linked":             {write: whole, publish: Link, want: "new"},
		"linked, the second": {old: "old", write: whole, publish: Link, want: "old", err: fs.ErrExist},
		"written by half":    {old: "old", write: half, publish: os.Rename, want: "old", err: failed},
		"not published":      {old: "old", write: whole, publish: never, want: "old", err: failed},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "file")
			if tt.old != "" {
				if err := os.WriteFile(file, []byte(tt.old), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := Put(file, ".new-*", tt.write, tt.publish); !errors.Is(err, tt.err) {
				t.Errorf("error %v, want %v", err, tt.err)
			}
			if got, err := os.ReadFile(file); err != nil || string(got) != tt.want {
				t.Errorf("the file holds %q (%v), want %q", got, err, tt.want)
			}
			if left, err := filepath.Glob(filepath.Join(dir, ".new-*")); err != nil || len(left) > 0 {
				t.Errorf("left: %q (%v)", left, err)
			}
			if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("the file is %v (%v), want one for its owner alone", info, err)
			}
		})
	}
}

// What is closed cannot be synced, nor can a directory that is gone: that is how a sync is seen here.
func TestPutSyncs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "dir", "file")
	if err := os.Mkdir(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	var failed *fs.PathError
	err := Put(file, ".new-*", (*os.File).Close, os.Rename)
	if !errors.As(err, &failed) || failed.Op != "sync" {
		t.Errorf("a file that cannot be synced: %v, want the error of the sync", err)
	}
	err = Put(file, ".new-*", func(*os.File) error { return nil }, func(_, path string) error { return os.RemoveAll(filepath.Dir(path)) })
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that cannot be synced: %v, want the error of the sync", err)
	}
}
