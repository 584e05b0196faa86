// Package lostfound keeps transactions that a node has and its cluster does not: the tail of a history
// that forked. Before the node takes over the cluster's history, its own goes here, durably, and stays
// until somebody removes it.
//
//	<dir>/<name>-<epoch>-<last TXID>/
//	    about.json   what it is, and why it was kept
//	    log-key      of both logs, when they are encrypted (package logkey)
//	    ltx/         the log entries of the tail, a log of its own (package ltxlog)
//	    copy/        the whole database at the end of the tail, a log of one snapshot
//
// The name is escaped as in a URL, the TXID has 16 hexadecimal digits. What is kept is complete when it
// is there: it is made under a name that begins with a dot, synced, and renamed.
package lostfound

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/litefs/litefs/internal/durable"
	"github.com/litefs/litefs/internal/logkey"
	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/vfs"
)

// ErrNotFound is returned for something that was not kept.
var ErrNotFound = errors.New("nothing is kept under this name")

// Tail is what is to be kept.
type Tail struct {
	Name   string // of the database
	ID     uint32
	NodeID string
	Common uint64 // the last transaction that both histories have; 0 when none is known
	Reason string // one line

	// Log has the tail: all of it after Common. Record is the directory in which the key of the log lies, when it is
	// encrypted, and Keys are the node's: what is kept is encrypted as the log is.
	Log    *ltxlog.Log
	Record string
	Keys   *logkey.Keys

	// Copy returns the database at the head of Log as an LTX file that holds every page, and its size in
	// bytes. nil: nobody has it.
	Copy func(context.Context) (io.ReadCloser, int64, error)
}

// Kept is something that was kept.
type Kept struct {
	Key  string `json:"-"` // its name in the directory
	Path string `json:"-"`

	Name     string    `json:"name"`
	ID       uint32    `json:"id"`
	NodeID   string    `json:"nodeID"`
	Epoch    uint64    `json:"epoch"` // of the newest transaction
	Common   uint64    `json:"common"`
	First    uint64    `json:"first"` // transaction in the tail
	Last     uint64    `json:"last"`
	Checksum uint64    `json:"checksum,string"` // of the database after Last
	PageSize uint32    `json:"pageSize"`        // bytes
	Pages    uint32    `json:"pages"`           // of the database after Last
	Entries  int       `json:"entries"`
	Bytes    int64     `json:"bytes"` // of the entries
	At       time.Time `json:"at"`    // when it was kept
	Newest   time.Time `json:"newest"`
	Reason   string    `json:"reason"`

	// NoCopy is why the whole database was not kept; empty when it was.
	NoCopy string `json:"noCopy,omitempty"`
}

const (
	aboutName = "about.json"
	ltxName   = "ltx"
	copyName  = "copy"
	tempMark  = ".new-"
	maxAbout  = 64 << 10 // bytes of about.json that are believed
)

// Keep keeps the tail of a log in dir, durably, and says where. A tail that is there already is not kept
// twice: after a crash between keeping and giving up, the same comes again. When the copy of the database
// cannot be made the tail is kept without it, and NoCopy tells why.
func Keep(ctx context.Context, dir string, t Tail) (Kept, error) {
	k, entries, err := describe(dir, t)
	if err != nil {
		return Kept{}, fmt.Errorf("keep the tail of %s: %w", t.Name, err)
	}
	if old, err := read(dir, k.Key); err == nil {
		return old, nil
	} else if !errors.Is(err, ErrNotFound) {
		return Kept{}, fmt.Errorf("keep the tail of %s: %w", t.Name, err)
	}
	if err := k.write(ctx, dir, t, entries); err != nil {
		return Kept{}, fmt.Errorf("keep the tail of %s: %w", t.Name, err)
	}
	return k, nil
}

// describe says what will be kept.
func describe(dir string, t Tail) (Kept, []ltxlog.Entry, error) {
	entries := t.Log.Entries()
	i := slices.IndexFunc(entries, func(e ltxlog.Entry) bool { return e.Max > t.Common })
	if i < 0 {
		return Kept{}, nil, fmt.Errorf("nothing comes after transaction %016x", t.Common)
	}
	entries = entries[i:]
	head := entries[len(entries)-1]
	k := Kept{
		Name: t.Name, ID: t.ID, NodeID: t.NodeID, Epoch: head.Epoch, Common: t.Common,
		First: entries[0].Min, Last: head.Max, Checksum: head.Post, PageSize: head.PageSize, Pages: head.Commit,
		Entries: len(entries), At: time.Now().UTC().Truncate(time.Second), Newest: head.Timestamp, Reason: t.Reason,
	}
	for _, e := range entries {
		k.Bytes += e.Size
	}
	k.Key = key(t.Name, head)
	// Two histories may have the same epoch and TXID. The checksum tells them apart.
	if old, err := read(dir, k.Key); err == nil && (old.Checksum != k.Checksum || old.ID != k.ID) {
		k.Key = fmt.Sprintf("%s-%016x", k.Key, head.Post)
	}
	k.Path = filepath.Join(dir, k.Key)
	return k, entries, nil
}

// maxEscaped bounds the part of a key that is the database's name; about.json has all of it.
const maxEscaped = 128

func key(name string, head ltxlog.Entry) string {
	escaped := url.PathEscape(name)
	if strings.HasPrefix(escaped, ".") {
		escaped = "%2E" + escaped[1:]
	}
	if len(escaped) > maxEscaped {
		escaped = escaped[len(escaped)-maxEscaped:]
	}
	return fmt.Sprintf("%s-%d-%016x", escaped, head.Epoch, head.Max)
}

func (k *Kept) write(ctx context.Context, dir string, t Tail, entries []ltxlog.Entry) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp := filepath.Join(dir, tempMark+k.Key)
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	if err := logkey.Copy(t.Record, tmp); err != nil {
		return err
	}
	if err := t.Log.Copy(filepath.Join(tmp, ltxName), entries); err != nil {
		return err
	}
	if cerr := k.writeCopy(ctx, tmp, t); cerr != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx) // there may be time for it later
		}
		k.NoCopy = cerr.Error()
		if err := os.RemoveAll(filepath.Join(tmp, copyName)); err != nil {
			return err
		}
	}
	about, err := json.MarshalIndent(k, "", "  ")
	if err != nil {
		return err
	}
	if err := durable.Write(vfs.OS(), filepath.Join(tmp, aboutName), append(about, '\n')); err != nil { // with it all names in tmp
		return err
	}
	if err := os.Rename(tmp, k.Path); err != nil {
		return err
	}
	return errors.Join(vfs.OS().SyncDir(dir), vfs.OS().SyncDir(filepath.Dir(dir)))
}

// writeCopy imports the whole database, which verifies it.
func (k *Kept) writeCopy(ctx context.Context, dir string, t Tail) (err error) {
	if t.Copy == nil {
		return errors.New("the node's files are not at the end of the tail")
	}
	r, size, err := t.Copy(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	log, err := t.Keys.OpenAsIs(dir, copyName, "", ltxlog.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	e, err := log.Import(r, size, true)
	if err != nil {
		return err
	}
	if e.Max != k.Last || e.Post != k.Checksum {
		return fmt.Errorf("the copy is of %016x/%016x, want %016x/%016x", e.Max, e.Post, k.Last, k.Checksum)
	}
	return nil
}

// List returns what is kept in dir, oldest first. What cannot be read is reported and left out.
func List(dir string) ([]Kept, error) {
	ents, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list what is kept: %w", err)
	}
	var list []Kept
	var errs []error
	for _, ent := range ents {
		if !ent.IsDir() || strings.HasPrefix(ent.Name(), ".") {
			continue
		}
		k, err := read(dir, ent.Name())
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, k)
	}
	slices.SortStableFunc(list, func(a, b Kept) int { return a.At.Compare(b.At) })
	return list, errors.Join(errs...)
}

// Find returns what is kept in dir under a key. ErrNotFound: nothing.
func Find(dir, key string) (Kept, error) {
	if key == "" || key != filepath.Base(key) || strings.HasPrefix(key, ".") {
		return Kept{}, fmt.Errorf("%w: %q is no name of this directory", ErrNotFound, key)
	}
	return read(dir, key)
}

func read(dir, key string) (Kept, error) {
	f, err := os.Open(filepath.Join(dir, key, aboutName))
	if errors.Is(err, fs.ErrNotExist) {
		return Kept{}, fmt.Errorf("%w: %s", ErrNotFound, key)
	}
	if err != nil {
		return Kept{}, err
	}
	defer f.Close() //nolint:errcheck // read only
	var k Kept
	if err := json.NewDecoder(io.LimitReader(f, maxAbout)).Decode(&k); err != nil {
		return Kept{}, fmt.Errorf("read %s of %s: %w", aboutName, key, err)
	}
	k.Key, k.Path = key, filepath.Join(dir, key)
	return k, nil
}

// Export writes the database as it was at the end of the tail to path, which must not exist, durably.
// ErrNoSnapshot of package ltxlog: the whole database was not kept, and the tail does not begin with
// transaction 1.
func (k Kept) Export(path string, keys *logkey.Keys) (err error) {
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("export %s: %w", k.Key, err)
	}
	err = k.replay(out, keys)
	if err == nil {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err == nil {
		err = vfs.OS().SyncDir(filepath.Dir(path))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("export %s: %w", k.Key, err), os.Remove(path))
	}
	return nil
}

func (k Kept) replay(out *os.File, keys *logkey.Keys) (err error) {
	name := copyName
	if k.NoCopy != "" {
		name = ltxName
	}
	log, err := keys.OpenAsIs(k.Path, name, "", ltxlog.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	pages, sum, err := log.Replay(out, k.Last)
	if errors.Is(err, ltxlog.ErrNoSnapshot) {
		return fmt.Errorf("%w; a copy of the database was not kept: %s", err, k.NoCopy)
	}
	if err != nil {
		return err
	}
	if sum != k.Checksum {
		return fmt.Errorf("the database has checksum %016x, want %016x", sum, k.Checksum)
	}
	return out.Truncate(int64(pages) * int64(k.PageSize))
}

// Changed returns the pages that the tail changed, ascending.
func (k Kept) Changed(keys *logkey.Keys) (pgnos []uint32, err error) {
	log, err := keys.OpenAsIs(k.Path, ltxName, "", ltxlog.Options{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("pages of %s: %w", k.Key, err)
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	for _, e := range log.Entries() {
		err := log.Stream(e, func(pgno uint32, _ []byte) error {
			pgnos = append(pgnos, pgno)
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("pages of %s: %w", k.Key, err)
		}
	}
	slices.Sort(pgnos)
	return slices.Compact(pgnos), nil
}
