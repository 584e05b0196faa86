package sealstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/litefs/litefs/internal/catalog"
	"github.com/litefs/litefs/internal/objstore"
)

// KeyState is what is known of the data key of a database.
type KeyState struct {
	WrappedBy string // id of the operator's key; "": there is no data key
	Rotated   bool   // by Rotate
}

// KeyOf returns with which key the data key of a database is wrapped; the zero value when there is none.
func (s *Store) KeyOf(ctx context.Context, database string) (KeyState, error) {
	return s.rotate(ctx, database, false)
}

// Rotate wraps the data key of a database with the first of the operator's keys. The others can be thrown
// away when that was done for all. No object is written anew.
func (s *Store) Rotate(ctx context.Context, database string) (KeyState, error) {
	return s.rotate(ctx, database, true)
}

func (s *Store) rotate(ctx context.Context, database string, change bool) (state KeyState, err error) {
	if s.keys == nil {
		return state, ErrNoKey
	}
	folder := catalog.Of(database)
	key := catalog.KeyOf(folder)
	b, etag, err := objstore.ReadAll(ctx, s.Store, key, maxRecord)
	if errors.Is(err, objstore.ErrNotFound) {
		return state, nil
	}
	if err != nil {
		return state, err
	}
	d, by, err := s.keys.Unwrap(b, folder)
	if err != nil {
		return state, fmt.Errorf("%s of %s: %w", key, s.Store, err)
	}
	if state.WrappedBy = by; !change || by == s.keys.Current() {
		return state, nil
	}
	if b, err = s.keys.Wrap(d, folder); err != nil {
		return state, err
	}
	if _, err := s.Store.PutIfMatch(ctx, key, etag, bytes.NewReader(b), objstore.Attrs{}); err != nil {
		return state, err
	}
	return KeyState{WrappedBy: s.keys.Current(), Rotated: true}, nil
}

// Shred destroys the data key of a database: what was written of it until now can never be read again, by
// nobody. false: there was none.
func (s *Store) Shred(ctx context.Context, database string) (bool, error) {
	key := catalog.KeyOf(catalog.Of(database))
	_, _, err := objstore.ReadAll(ctx, s.Store, key, maxRecord)
	if errors.Is(err, objstore.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, s.Store.Delete(ctx, key)
}
