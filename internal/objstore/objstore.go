// Package objstore is the contract of the stores that litefs keeps objects in: an S3 bucket, or a
// directory (Dir). An object is bytes under a key and is written whole: nobody ever reads half of one.
//
// What a store promises, and package objtest checks of each:
//
//   - PutIfAbsent and PutIfMatch are decided by the store: of any number of writers, on any number of
//     machines, one wins and the others are told. There is no put without a condition: it would
//     overwrite another node's object unseen.
//   - When a put returns, the object is durable and every later Get and List sees it.
//   - A put that fails with another error than ErrExists, ErrChanged or ErrKey may have happened, or may
//     happen later. A retry of it then meets its own object: whoever gets ErrExists or ErrChanged after
//     a failure compares what is there with what it wanted to write.
//
// Methods may be called from several goroutines. Waiting ends with the context; there is no other bound
// for a whole object, so callers give a deadline.
package objstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"
)

var (
	// ErrNotFound: there is no such object.
	ErrNotFound = errors.New("no such object")
	// ErrExists: PutIfAbsent found an object under the key.
	ErrExists = errors.New("object exists")
	// ErrChanged: PutIfMatch found another object than the one that was read, or none.
	ErrChanged = errors.New("object has changed")
	// ErrKey: no store takes such a key.
	ErrKey = errors.New("bad object key")
	// ErrConditions: the store ignores conditions of writes, so it protects nothing.
	ErrConditions = errors.New("the store does not honour conditional writes")
)

// Info is what a listing tells of an object.
type Info struct {
	Key      string
	Size     int64     // bytes
	Modified time.Time // Dir: Attrs.Time when that was set; S3: when the store took it
}

// Attrs are facts that are written with an object.
type Attrs struct {
	// Time is when the content came to be. Dir keeps it as the file's time of change, S3 as the
	// metadata "litestream-timestamp". Zero: the time of the put.
	Time time.Time
	// Meta are short texts. S3 keeps them as the object's metadata; Dir drops them, so they are for
	// people and other programs: litefs itself never reads them.
	Meta map[string]string
}

// Object is an open object.
type Object struct {
	Info
	// ETag names this content for PutIfMatch. Dir has none for objects over MaxMatch bytes.
	ETag string
	Body io.ReadCloser
}

// MaxMatch bounds an object that PutIfMatch may write or replace: it is for small records.
const MaxMatch = 1 << 20

// MaxDelete is how many objects DeleteAll takes.
const MaxDelete = 1000

// Range is a part of an object. The zero value is all of it.
type Range struct {
	Off int64 // bytes from the start
	Len int64 // bytes; 0: to the end. May reach beyond the end.
}

// Store holds objects.
type Store interface {
	// PutIfAbsent writes size bytes of body under key and returns the ETag, or ErrExists. It may read
	// body from the start more than once.
	PutIfAbsent(ctx context.Context, key string, body io.ReadSeeker, a Attrs) (etag string, err error)
	// PutIfMatch replaces the object that has the ETag, or returns ErrChanged.
	PutIfMatch(ctx context.Context, key, etag string, body io.ReadSeeker, a Attrs) (newETag string, err error)
	// Get opens an object, or returns ErrNotFound. The caller closes the body.
	Get(ctx context.Context, key string, r Range) (*Object, error)
	// List yields the objects whose keys begin with prefix and come after the key after ("": all), in
	// the order of the keys' bytes. It ends after the first error.
	List(ctx context.Context, prefix, after string) iter.Seq2[Info, error]
	// Folders returns the parts of keys between prefix and the next slash, without it, sorted and each
	// once. prefix is empty or ends in a slash.
	Folders(ctx context.Context, prefix string) ([]string, error)
	// Delete removes an object; one that is not there is no error.
	Delete(ctx context.Context, key string) error
	// DeleteAll removes up to MaxDelete objects, in one request where the store can do that. After an
	// error some may be gone.
	DeleteAll(ctx context.Context, keys []string) error
	// String names the store for people, without secrets: "s3://bucket/prefix", "/srv/archive".
	String() string
}

// MaxKey bounds a key: S3's own bound, less room for a store's prefix.
const MaxKey = 900

// CheckKey returns ErrKey for a key that some store does not take: the parts between slashes must be
// names of files (neither empty, "." nor ".."), and none may begin as Dir's own files do.
func CheckKey(key string) error {
	if key == "" || len(key) > MaxKey {
		return fmt.Errorf("%w %.40q: %d bytes, want 1 to %d", ErrKey, key, len(key), MaxKey)
	}
	for part := range strings.SplitSeq(key, "/") {
		switch {
		case part == "" || part == "." || part == "..":
			return fmt.Errorf("%w %.100q: %q between slashes is no name", ErrKey, key, part)
		case len(part) > 255:
			return fmt.Errorf("%w %.100q: %d bytes between slashes, want at most 255", ErrKey, key, len(part))
		case strings.HasPrefix(part, tmpPrefix):
			return fmt.Errorf("%w %.100q: %s is for files that are being written", ErrKey, key, tmpPrefix)
		case strings.ContainsFunc(part, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd }):
			return fmt.Errorf("%w %.100q: a control character, or no UTF-8", ErrKey, key)
		}
	}
	return nil
}

// ReadAll returns a small object whole, and its ETag. One of more than max bytes is an error.
func ReadAll(ctx context.Context, s Store, key string, max int64) (data []byte, etag string, err error) {
	o, err := s.Get(ctx, key, Range{})
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, o.Body.Close()) }()
	if o.Size > max {
		return nil, "", fmt.Errorf("read %s of %s: %d bytes, want at most %d", key, s, o.Size, max)
	}
	if data, err = io.ReadAll(io.LimitReader(o.Body, max+1)); err != nil {
		return nil, "", fmt.Errorf("read %s of %s: %w", key, s, err)
	}
	if int64(len(data)) != o.Size {
		return nil, "", fmt.Errorf("read %s of %s: %w: got %d bytes of %d", key, s, io.ErrUnexpectedEOF, len(data), o.Size)
	}
	return data, o.ETag, nil
}
