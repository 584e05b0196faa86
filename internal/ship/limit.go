package ship

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"
	"sync/atomic"
	"time"

	"github.com/litefs/litefs/internal/archive"
	"github.com/litefs/litefs/internal/objstore"
)

// bucket lets rate units a second through, and burst at once.
type bucket struct {
	rate, burst float64

	mu   sync.Mutex
	left float64 // may be negative: what waits has taken it already
	at   time.Time
}

func newBucket(rate, burst float64) *bucket {
	return &bucket{rate: rate, burst: burst, left: burst, at: time.Now()}
}

// take waits for n units, first come, first served.
func (b *bucket) take(ctx context.Context, n float64) error {
	if b == nil {
		return ctx.Err()
	}
	b.mu.Lock()
	now := time.Now()
	b.left = min(b.burst, b.left+b.rate*now.Sub(b.at).Seconds()) - n
	b.at = now
	wait := time.Duration(-b.left / b.rate * float64(time.Second))
	b.mu.Unlock()
	if wait <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// limited bounds requests and bytes of a store, and counts them.
type limited struct {
	objstore.Store
	requests, bytes *bucket // bytes may be nil

	asked atomic.Uint64
}

func (l *limited) ask(ctx context.Context) error {
	l.asked.Add(1)
	if isUrgent(ctx) {
		return ctx.Err()
	}
	return l.requests.take(ctx, 1)
}

// storeError is an error of the store, and not of one database: others would fail as well.
type storeError struct{ error }

func (e *storeError) Unwrap() error { return e.error }

// ofStore marks an error as the store's. Answers about one object are not.
func ofStore(err error) error {
	for _, answer := range []error{nil, objstore.ErrExists, objstore.ErrNotFound, objstore.ErrKey, archive.ErrCorrupt} {
		if errors.Is(err, answer) {
			return err
		}
	}
	return &storeError{err}
}

func (l *limited) PutIfAbsent(ctx context.Context, key string, body io.ReadSeeker, a objstore.Attrs) (string, error) {
	if err := l.ask(ctx); err != nil {
		return "", err
	}
	etag, err := l.Store.PutIfAbsent(ctx, key, &slowReader{body, ctx, l.bytes}, a)
	return etag, ofStore(err)
}

func (l *limited) Get(ctx context.Context, key string, r objstore.Range) (*objstore.Object, error) {
	if err := l.ask(ctx); err != nil {
		return nil, err
	}
	o, err := l.Store.Get(ctx, key, r)
	return o, ofStore(err)
}

func (l *limited) List(ctx context.Context, prefix, after string) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		if err := l.ask(ctx); err != nil {
			yield(objstore.Info{}, err)
			return
		}
		for info, err := range l.Store.List(ctx, prefix, after) {
			if !yield(info, ofStore(err)) {
				return
			}
		}
	}
}

func (l *limited) Folders(ctx context.Context, prefix string) ([]string, error) {
	if err := l.ask(ctx); err != nil {
		return nil, err
	}
	names, err := l.Store.Folders(ctx, prefix)
	return names, ofStore(err)
}

func (l *limited) DeleteAll(ctx context.Context, keys []string) error {
	if err := l.ask(ctx); err != nil {
		return err
	}
	return ofStore(l.Store.DeleteAll(ctx, keys))
}

// slowReader reads no faster than its bucket lets it.
type slowReader struct {
	io.ReadSeeker
	ctx   context.Context
	bytes *bucket
}

func (r *slowReader) Read(b []byte) (int, error) {
	n, err := r.ReadSeeker.Read(b)
	if n > 0 && r.bytes != nil {
		if terr := r.bytes.take(r.ctx, float64(n)); terr != nil {
			return n, terr
		}
	}
	return n, err
}
