package objstore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/internal/durable"
	"github.com/litefs/litefs/internal/vfs"
)

// tmpPrefix begins the names of files that are being written. What a crash leaves of them is not an
// object; Dir removes it when it is old.
const tmpPrefix = ".tmp-"

// tmpAge is when a file that is being written counts as left over: no put takes so long.
const tmpAge = 24 * time.Hour

// Dir is a directory as a store: an object is a file, its key the path below. It may be on a network
// file system that has atomic link(2) and flock(2) between machines, as NFS 4 has.
//
// An object comes to its name by link(2), which fails where the name exists: that is the condition of
// PutIfAbsent. PutIfMatch compares and renames under a lock on the directory.
type Dir struct{ root string }

// OpenDir returns the store in a directory, which is made when it is absent.
func OpenDir(root string) (*Dir, error) {
	root = filepath.Clean(root)
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("open the directory of objects: %w", err)
	}
	return &Dir{root: root}, nil
}

func (d *Dir) String() string { return d.root }

func (d *Dir) path(key string) string { return filepath.Join(d.root, filepath.FromSlash(key)) }

// PutIfAbsent is Store's.
func (d *Dir) PutIfAbsent(ctx context.Context, key string, body io.ReadSeeker, a Attrs) (string, error) {
	name, err := d.begin(key)
	if err != nil {
		return "", err
	}
	if _, err := os.Lstat(name); err == nil { // spares the writing
		return "", fmt.Errorf("put %s: %w", key, ErrExists)
	}
	return d.put(ctx, key, body, a, func(tmp, name string) error {
		err := durable.Link(tmp, name)
		if errors.Is(err, fs.ErrExist) {
			err = ErrExists
		}
		return err
	})
}

// PutIfMatch is Store's.
func (d *Dir) PutIfMatch(ctx context.Context, key, etag string, body io.ReadSeeker, a Attrs) (string, error) {
	if _, err := d.begin(key); err != nil {
		return "", err
	}
	return d.put(ctx, key, body, a, func(tmp, name string) (err error) {
		unlock, err := d.lock()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unlock()) }()
		have, err := etagOf(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			err = ErrChanged
		case err == nil && (have == "" || have != etag):
			err = ErrChanged
		}
		if err != nil {
			return err
		}
		return os.Rename(tmp, name)
	})
}

// begin checks a key and makes the directory that its file is in, durably.
func (d *Dir) begin(key string) (name string, err error) {
	if err := CheckKey(key); err != nil {
		return "", err
	}
	name = d.path(key)
	if err := d.mkdir(filepath.Dir(name)); err != nil {
		return "", fmt.Errorf("put %s: %w", key, err)
	}
	return name, nil
}

// mkdir makes dir and those above it. The name of one that it makes is durable when it returns.
func (d *Dir) mkdir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil
	case errors.Is(err, fs.ErrNotExist) && len(dir) > len(d.root):
		if err := d.mkdir(filepath.Dir(dir)); err != nil {
			return err
		}
		if err = os.Mkdir(dir, 0o700); errors.Is(err, fs.ErrExist) {
			err = nil
		}
	}
	if err != nil {
		return err
	}
	return vfs.OS().SyncDir(filepath.Dir(dir))
}

// put writes body to a temporary file, durably, and gives its name and the object's to publish, after which it is gone.
// Between the last look at the context and the link there is no wait: whoever was stopped for long in
// the middle of a put finds out before it publishes.
func (d *Dir) put(ctx context.Context, key string, body io.ReadSeeker, a Attrs, publish func(tmp, name string) error) (etag string, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("put %s: %w", key, err)
		}
	}()
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	hash := sha256.New()
	write := func(f *os.File) error {
		n, err := io.Copy(io.MultiWriter(f, hash), &contextReader{ctx, body})
		if err == nil && n <= MaxMatch {
			etag = hex.EncodeToString(hash.Sum(nil))
		}
		if err == nil && !a.Time.IsZero() {
			err = os.Chtimes(f.Name(), a.Time, a.Time)
		}
		return err
	}
	err = durable.Put(d.path(key), tmpPrefix, write, func(tmp, name string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return publish(tmp, name)
	})
	if err != nil {
		return "", err
	}
	return etag, nil
}

// lock waits for the lock of the whole directory. It is held for a rename of a small file only.
func (d *Dir) lock() (unlock func() error, err error) {
	f, err := os.OpenFile(filepath.Join(d.root, tmpPrefix+"lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
	}
	return f.Close, nil
}

// etagOf returns the hash of a small file's content; "" of a large one.
func etagOf(name string) (etag string, err error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return etagOfFile(f)
}

func etagOfFile(f *os.File) (string, error) {
	info, err := f.Stat()
	if err != nil || info.Size() > MaxMatch {
		return "", err
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, io.NewSectionReader(f, 0, MaxMatch)); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// Get is Store's.
func (d *Dir) Get(ctx context.Context, key string, r Range) (*Object, error) {
	if err := CheckKey(key); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := os.Open(d.path(key))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, fmt.Errorf("get %s: %w", key, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", key, err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = ErrNotFound
	}
	var etag string
	if err == nil {
		etag, err = etagOfFile(f)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("get %s: %w", key, err), f.Close())
	}
	size := info.Size() - r.Off
	if r.Len > 0 {
		size = min(size, r.Len)
	}
	body := io.NewSectionReader(f, r.Off, max(size, 0))
	return &Object{
		Info: Info{Key: key, Size: info.Size(), Modified: info.ModTime()},
		ETag: etag,
		Body: struct {
			io.Reader
			io.Closer
		}{&contextReader{ctx, body}, f},
	}, nil
}

// List is Store's.
func (d *Dir) List(ctx context.Context, prefix, after string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		found, err := d.walk(ctx, prefix, after)
		slices.SortFunc(found, func(a, b Info) int { return strings.Compare(a.Key, b.Key) })
		for _, info := range found {
			if !yield(info, nil) {
				return
			}
		}
		if err != nil {
			yield(Info{}, fmt.Errorf("list %s: %w", prefix, err))
		}
	}
}

func (d *Dir) walk(ctx context.Context, prefix, after string) (found []Info, err error) {
	top := d.path(path.Dir(prefix + "x")) // the directory that all keys with the prefix are in
	err = filepath.WalkDir(top, func(name string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // no such directory, or one that went meanwhile
		}
		if err := errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		rel, err := filepath.Rel(d.root, name)
		if err != nil {
			return err
		}
		key := filepath.ToSlash(rel)
		if e.IsDir() {
			if outside := key + "/"; key != "." && !strings.HasPrefix(outside, prefix) && !strings.HasPrefix(prefix, outside) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasPrefix(key, prefix) || !e.Type().IsRegular() || strings.HasPrefix(e.Name(), tmpPrefix) {
			if strings.HasPrefix(e.Name(), tmpPrefix) {
				removeOld(name, e)
			}
			return nil
		}
		if key <= after {
			return nil
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		found = append(found, Info{Key: key, Size: info.Size(), Modified: info.ModTime()})
		return nil
	})
	return found, err
}

// removeOld removes what a crash left of a put. Failing is no harm: it is tried at the next listing.
func removeOld(name string, e fs.DirEntry) {
	var st unix.Stat_t // the time of change is a caller's; that of the inode is not
	if e.Name() == tmpPrefix+"lock" || unix.Lstat(name, &st) != nil {
		return
	}
	if time.Since(time.Unix(st.Ctim.Unix())) > tmpAge {
		_ = os.Remove(name)
	}
}

// Folders is Store's.
func (d *Dir) Folders(ctx context.Context, prefix string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if prefix != "" {
		if err := CheckKey(strings.TrimSuffix(prefix, "/")); err != nil {
			return nil, err
		}
	}
	entries, err := os.ReadDir(d.path(prefix))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the folders of %q: %w", prefix, err)
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// Delete is Store's. A directory that it leaves empty stays: another put may be about to use it.
func (d *Dir) Delete(ctx context.Context, key string) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	name := d.path(key)
	if err := os.Remove(name); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return vfs.OS().SyncDir(filepath.Dir(name))
}

// DeleteAll is Store's.
func (d *Dir) DeleteAll(ctx context.Context, keys []string) error {
	dirs := map[string]bool{}
	var errs []error
	for _, key := range keys {
		if err := errors.Join(CheckKey(key), ctx.Err()); err != nil {
			errs = append(errs, err)
			break
		}
		name := d.path(key)
		switch err := os.Remove(name); {
		case err == nil:
			dirs[filepath.Dir(name)] = true
		case !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, fmt.Errorf("delete %s: %w", key, err))
		}
	}
	for dir := range dirs {
		errs = append(errs, vfs.OS().SyncDir(dir))
	}
	return errors.Join(errs...)
}

// contextReader ends a copy with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}
