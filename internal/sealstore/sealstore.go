// Package sealstore encrypts archives: it is an object store whose objects lie sealed in another one.
//
// What is sealed are the objects of histories, with the data key of their database. It is made when the first
// object is written, and kept, wrapped with the operator's key, as an object beside the histories. Where it is
// gone, nobody can read the objects any more. What is no object of a history passes as it is.
// docs/encryption.md tells what that is good for and what not.
package sealstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"sync"
	"time"

	"github.com/litefs/litefs/internal/archive"
	"github.com/litefs/litefs/internal/catalog"
	"github.com/litefs/litefs/internal/objstore"
	"github.com/litefs/litefs/internal/seal"
)

// ErrNoKey: an object is encrypted, and no keys were given.
var ErrNoKey = errors.New("the archive is encrypted: give its key in backup.key-file, backup.key-command or LITEFS_BACKUP_KEY")

// Store is a store with encryption.
type Store struct {
	objstore.Store
	keys *seal.Keys // nil: nothing is encrypted, and what is cannot be read

	mu    sync.Mutex
	known map[string]known // by folder of a database
}

// known is a data key, as it was found in the store.
type known struct {
	key seal.DataKey
	at  time.Time
}

// New returns a store that seals with keys; nil: one that writes in the clear, and says what it cannot read.
func New(s objstore.Store, keys *seal.Keys) *Store {
	return &Store{Store: s, keys: keys, known: map[string]known{}}
}

// recheck is when a data key that is used for writing is looked for again: what is written under one that was
// destroyed is lost.
const recheck = time.Hour

// PutIfAbsent is objstore.Store's.
func (s *Store) PutIfAbsent(ctx context.Context, key string, body io.ReadSeeker, a objstore.Attrs) (string, error) {
	folder, name, ok := catalog.Split(key)
	if s.keys == nil || !ok {
		return s.Store.PutIfAbsent(ctx, key, body, a)
	}
	d, err := s.keyToWrite(ctx, folder)
	if err != nil {
		return "", fmt.Errorf("put %s: %w", key, err)
	}
	sealed, err := seal.NewBody(d, name, body)
	if err != nil {
		return "", fmt.Errorf("put %s: %w", key, err)
	}
	a.Meta = nil // positions and checksums
	return s.Store.PutIfAbsent(ctx, key, sealed, a)
}

// keyToWrite returns the data key of a database, which it makes if there is none.
func (s *Store) keyToWrite(ctx context.Context, folder string) (seal.DataKey, error) {
	s.mu.Lock()
	have, ok := s.known[folder]
	s.mu.Unlock()
	if ok && time.Since(have.at) < recheck {
		return have.key, nil
	}
	d, err := s.readKey(ctx, folder)
	switch {
	case errors.Is(err, objstore.ErrNotFound) && !ok:
		return s.makeKey(ctx, folder)
	case errors.Is(err, objstore.ErrNotFound) || err == nil && ok && d.ID != have.key.ID:
		s.mu.Lock()
		delete(s.known, folder)
		s.mu.Unlock()
		// A history under two keys could not be read. Whoever writes begins anew, and another history.
		return d, fmt.Errorf("%w: the key of %s has been destroyed since it was read", archive.ErrCorrupt, strings.TrimSuffix(folder, "/"))
	}
	return d, err
}

// makeKey makes the data key of a database, unless somebody else has just done it.
func (s *Store) makeKey(ctx context.Context, folder string) (seal.DataKey, error) {
	d, err := seal.NewDataKey()
	if err != nil {
		return d, err
	}
	record, err := s.keys.Wrap(d, folder)
	if err != nil {
		return d, err
	}
	_, err = s.Store.PutIfAbsent(ctx, catalog.KeyOf(folder), bytes.NewReader(record), objstore.Attrs{})
	if errors.Is(err, objstore.ErrExists) {
		return s.readKey(ctx, folder)
	}
	if err != nil {
		return d, err
	}
	s.remember(folder, d)
	return d, nil
}

// maxRecord bounds the record of a key.
const maxRecord = 4 << 10

// readKey reads the data key of a database from the store.
func (s *Store) readKey(ctx context.Context, folder string) (d seal.DataKey, err error) {
	record, _, err := objstore.ReadAll(ctx, s.Store, catalog.KeyOf(folder), maxRecord)
	if err != nil {
		return d, err
	}
	if d, _, err = s.keys.Unwrap(record, folder); err != nil {
		return d, fmt.Errorf("%s of %s: %w", catalog.KeyOf(folder), s.Store, damaged(err))
	}
	s.remember(folder, d)
	return d, nil
}

func (s *Store) remember(folder string, d seal.DataKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[folder] = known{d, time.Now()}
}

// find returns what looks up the data key of objects below a folder.
func (s *Store) find(ctx context.Context, folder string) func(id [16]byte) (seal.DataKey, error) {
	return func(id [16]byte) (seal.DataKey, error) {
		s.mu.Lock()
		have, ok := s.known[folder]
		s.mu.Unlock()
		if ok && have.key.ID == id {
			return have.key, nil
		}
		d, err := s.readKey(ctx, folder)
		if errors.Is(err, objstore.ErrNotFound) {
			return d, fmt.Errorf("%w: it is encrypted, and the key of the database has been destroyed", archive.ErrCorrupt)
		}
		if err == nil && d.ID != id {
			err = fmt.Errorf("%w: it is encrypted with a key of the database that has been destroyed", archive.ErrCorrupt)
		}
		return d, err
	}
}

// Get is objstore.Store's. Of a range it takes one from the start on.
func (s *Store) Get(ctx context.Context, key string, r objstore.Range) (*objstore.Object, error) {
	folder, name, ok := catalog.Split(key)
	if !ok {
		return s.Store.Get(ctx, key, r)
	}
	if s.keys == nil {
		return s.getPlain(ctx, key, r)
	}
	head := r.Off == 0 && r.Len > 0 && r.Len <= seal.FirstChunk
	inner := objstore.Range{}
	if head {
		inner.Len = int64(seal.HeadSize)
	}
	o, err := s.Store.Get(ctx, key, inner)
	if err != nil {
		return nil, err
	}
	total := o.Size
	o.Size, o.ETag = seal.PlainSize(total), ""
	if head {
		return openHead(o, total, r, func(b []byte) ([]byte, error) {
			return seal.OpenHead(b, total, name, s.find(ctx, folder))
		})
	}
	in, err := seal.NewReader(o.Body, name, s.find(ctx, folder))
	if err == nil && r.Off > 0 {
		if _, err = io.CopyN(io.Discard, in, r.Off); errors.Is(err, io.EOF) {
			err = nil
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("get %s: %w", key, damaged(err)), o.Body.Close())
	}
	var out io.Reader = reader{in}
	if r.Len > 0 {
		out = io.LimitReader(out, r.Len)
	}
	o.Body = struct {
		io.Reader
		io.Closer
	}{out, o.Body}
	return o, nil
}

// openHead makes o the first bytes of a sealed object.
func openHead(o *objstore.Object, total int64, r objstore.Range, open func(b []byte) ([]byte, error)) (*objstore.Object, error) {
	b, err := io.ReadAll(io.LimitReader(o.Body, min(total, int64(seal.HeadSize))))
	if err = errors.Join(err, o.Body.Close()); err != nil {
		return nil, fmt.Errorf("get %s: %w", o.Key, err)
	}
	plain, err := open(b)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", o.Key, damaged(err))
	}
	o.Body = io.NopCloser(bytes.NewReader(plain[:min(int64(len(plain)), r.Len)]))
	return o, nil
}

// getPlain gets an object without keys.
func (s *Store) getPlain(ctx context.Context, key string, r objstore.Range) (*objstore.Object, error) {
	o, err := s.Store.Get(ctx, key, r)
	if err != nil || r.Off > 0 {
		return o, err
	}
	begin := make([]byte, 8)
	n, err := io.ReadFull(o.Body, begin)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, errors.Join(fmt.Errorf("get %s: %w", key, err), o.Body.Close())
	}
	if seal.Sealed(begin[:n]) {
		return nil, errors.Join(fmt.Errorf("get %s: %w", key, ErrNoKey), o.Body.Close())
	}
	o.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(begin[:n]), o.Body), o.Body}
	return o, nil
}

// reader gives what is wrong with an object as archives' errors.
type reader struct{ *seal.Reader }

func (r reader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	return n, damaged(err)
}

func damaged(err error) error {
	if errors.Is(err, seal.ErrDamaged) {
		return fmt.Errorf("%w: %w", archive.ErrCorrupt, err)
	}
	return err
}

// List is objstore.Store's. Objects have the sizes that Get gives.
func (s *Store) List(ctx context.Context, prefix, after string) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		for info, err := range s.Store.List(ctx, prefix, after) {
			if _, _, ok := catalog.Split(info.Key); ok && s.keys != nil {
				info.Size = seal.PlainSize(info.Size)
			}
			if !yield(info, err) {
				return
			}
		}
	}
}
