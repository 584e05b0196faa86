package catalog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/litefs/litefs/internal/archive"
	"github.com/litefs/litefs/internal/objstore"
)

// Drop says that the database of a history was dropped. It lies in the folder of the history, under a name of its
// own.
type Drop struct {
	Time time.Time `json:"time"` // when a primary saw it
	TXID uint64    `json:"txid"` // the last one of the history then: one that goes on is of a database that is there
}

const dropName = "dropped"

// maxDrop bounds the object.
const maxDrop = 4 << 10

// PutDrop notes a drop in a history. One that is there already stays.
func PutDrop(ctx context.Context, s objstore.Store, folder string, d Drop) error {
	b, err := json.Marshal(d)
	if err != nil {
		return err
	}
	_, err = s.PutIfAbsent(ctx, folder+dropName, bytes.NewReader(b), objstore.Attrs{})
	if errors.Is(err, objstore.ErrExists) {
		return nil
	}
	return err
}

// Dropped returns what is noted in a history; false when nothing is, or nothing that can be read: that must keep
// nobody from the rest.
func Dropped(ctx context.Context, s objstore.Store, folder string) (d Drop, ok bool, err error) {
	b, _, err := objstore.ReadAll(ctx, s, folder+dropName, maxDrop)
	if errors.Is(err, objstore.ErrNotFound) || errors.Is(err, archive.ErrCorrupt) {
		return d, false, nil
	}
	if err != nil {
		return d, false, fmt.Errorf("%s%s: %w", folder, dropName, err)
	}
	return d, json.Unmarshal(b, &d) == nil, nil
}
