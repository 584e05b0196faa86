// Package objtest checks that an object store keeps the promises of package objstore.
package objtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/objstore"
)

// Run checks a store that open makes, empty at each call.
func Run(t *testing.T, open func(t *testing.T) objstore.Store) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, ctx context.Context, s objstore.Store)
	}{
		{"PutOnce", putOnce},
		{"PutOnceRace", putOnceRace},
		{"PutMatch", putMatch},
		{"PutMatchRace", putMatchRace},
		{"GetRange", getRange},
		{"List", list},
		{"Delete", remove},
		{"BadKeys", badKeys},
		{"Context", ended},
		{"Large", large},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			c.run(t, ctx, open(t))
		})
	}
}

func put(t *testing.T, ctx context.Context, s objstore.Store, key, content string) string {
	t.Helper()
	etag, err := s.PutIfAbsent(ctx, key, strings.NewReader(content), objstore.Attrs{})
	if err != nil {
		t.Fatal(err)
	}
	return etag
}

func want(t *testing.T, ctx context.Context, s objstore.Store, key, content string) (etag string) {
	t.Helper()
	got, etag, err := objstore.ReadAll(ctx, s, key, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != content {
		t.Fatalf("%s holds %q, want %q", key, got, content)
	}
	return etag
}

func putOnce(t *testing.T, ctx context.Context, s objstore.Store) {
	at := time.Date(2024, 5, 6, 7, 8, 9, 123_000_000, time.UTC)
	etag, err := s.PutIfAbsent(ctx, "a/b/one", strings.NewReader("1"), objstore.Attrs{Time: at, Meta: map[string]string{"epoch": "7"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutIfAbsent(ctx, "a/b/one", strings.NewReader("2"), objstore.Attrs{}); !errors.Is(err, objstore.ErrExists) {
		t.Fatalf("second put: %v, want %v", err, objstore.ErrExists)
	}
	if got := want(t, ctx, s, "a/b/one", "1"); got != etag {
		t.Errorf("ETag %q, the put returned %q", got, etag)
	}
	o, err := s.Get(ctx, "a/b/one", objstore.Range{})
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Body.Close(); err != nil {
		t.Error(err)
	}
	if !o.Modified.Equal(at) || o.Size != 1 {
		t.Errorf("modified %s, %d bytes; want %s, 1", o.Modified, o.Size, at)
	}
	if _, err := s.Get(ctx, "a/b/two", objstore.Range{}); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("get of nothing: %v, want %v", err, objstore.ErrNotFound)
	}
	if _, err := s.Get(ctx, "a/b", objstore.Range{}); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("get of a folder: %v, want %v", err, objstore.ErrNotFound)
	}
}

// race lets n writers try at the same time and returns who won; the others must get the error lost.
func race(t *testing.T, n int, lost error, try func(i int) error) int {
	t.Helper()
	start, errs := make(chan struct{}), make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			<-start
			errs[i] = try(i)
		})
	}
	close(start)
	all.Wait()
	winner := -1
	for i, err := range errs {
		switch {
		case err == nil && winner >= 0:
			t.Fatalf("writers %d and %d both won", winner, i)
		case err == nil:
			winner = i
		case !errors.Is(err, lost):
			t.Fatalf("writer %d: %v, want %v", i, err, lost)
		}
	}
	if winner < 0 {
		t.Fatal("nobody won")
	}
	return winner
}

func putOnceRace(t *testing.T, ctx context.Context, s objstore.Store) {
	for round := range 10 {
		key := fmt.Sprintf("race/%d", round)
		winner := race(t, 8, objstore.ErrExists, func(i int) error {
			_, err := s.PutIfAbsent(ctx, key, strings.NewReader(fmt.Sprint("writer ", i)), objstore.Attrs{})
			return err
		})
		want(t, ctx, s, key, fmt.Sprint("writer ", winner))
	}
}

func putMatch(t *testing.T, ctx context.Context, s objstore.Store) {
	first := put(t, ctx, s, "lock", "1")
	second, err := s.PutIfMatch(ctx, "lock", first, strings.NewReader("2"), objstore.Attrs{})
	if err != nil {
		t.Fatal(err)
	}
	if got := want(t, ctx, s, "lock", "2"); got != second {
		t.Errorf("ETag %q, the put returned %q", got, second)
	}
	if _, err := s.PutIfMatch(ctx, "lock", first, strings.NewReader("3"), objstore.Attrs{}); !errors.Is(err, objstore.ErrChanged) {
		t.Errorf("put over another content: %v, want %v", err, objstore.ErrChanged)
	}
	if _, err := s.PutIfMatch(ctx, "none", first, strings.NewReader("3"), objstore.Attrs{}); !errors.Is(err, objstore.ErrChanged) {
		t.Errorf("put over nothing: %v, want %v", err, objstore.ErrChanged)
	}
	want(t, ctx, s, "lock", "2")
}

func putMatchRace(t *testing.T, ctx context.Context, s objstore.Store) {
	etag := put(t, ctx, s, "lock", "start")
	for round := range 10 {
		winner := race(t, 8, objstore.ErrChanged, func(i int) error {
			_, err := s.PutIfMatch(ctx, "lock", etag, strings.NewReader(fmt.Sprint(round, " writer ", i)), objstore.Attrs{})
			return err
		})
		etag = want(t, ctx, s, "lock", fmt.Sprint(round, " writer ", winner))
	}
}

func getRange(t *testing.T, ctx context.Context, s objstore.Store) {
	put(t, ctx, s, "digits", "0123456789")
	for _, c := range []struct {
		r    objstore.Range
		want string
	}{
		{objstore.Range{}, "0123456789"},
		{objstore.Range{Len: 3}, "012"},
		{objstore.Range{Off: 4}, "456789"},
		{objstore.Range{Off: 4, Len: 2}, "45"},
		{objstore.Range{Off: 8, Len: 100}, "89"},
	} {
		o, err := s.Get(ctx, "digits", c.r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(o.Body)
		if err = errors.Join(err, o.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if string(got) != c.want || o.Size != 10 {
			t.Errorf("%+v: %q of %d bytes, want %q of 10", c.r, got, o.Size, c.want)
		}
	}
}

func list(t *testing.T, ctx context.Context, s objstore.Store) {
	keys := []string{"a/ltx/0/1", "a/ltx/0/2", "a/ltx/9/1", "a-b/ltx/0/1", "a.db/ltx/0/1", "b", "ab/c"}
	for _, key := range keys {
		put(t, ctx, s, key, key)
	}
	slices.Sort(keys)
	listed := func(prefix, after string) (got []string) {
		for info, err := range s.List(ctx, prefix, after) {
			if err != nil {
				t.Fatal(err)
			}
			if info.Size != int64(len(info.Key)) || time.Since(info.Modified) > time.Hour {
				t.Errorf("%+v", info)
			}
			got = append(got, info.Key)
		}
		return got
	}
	for _, prefix := range []string{"", "a", "a/", "a/ltx/", "a/ltx/0/1", "b", "none/", "a-"} {
		var wanted []string
		for _, key := range keys {
			if strings.HasPrefix(key, prefix) {
				wanted = append(wanted, key)
			}
		}
		if got := listed(prefix, ""); !slices.Equal(got, wanted) {
			t.Errorf("list of %q: %q, want %q", prefix, got, wanted)
		}
		for i, after := range wanted {
			if got := listed(prefix, after); !slices.Equal(got, wanted[i+1:]) {
				t.Errorf("list of %q after %q: %q, want %q", prefix, after, got, wanted[i+1:])
			}
		}
	}
	for prefix, wanted := range map[string][]string{"": {"a", "a-b", "a.db", "ab"}, "a/": {"ltx"}, "a/ltx/": {"0", "9"}, "a/ltx/0/": nil, "none/": nil} {
		got, err := s.Folders(ctx, prefix)
		if err != nil || !slices.Equal(got, wanted) {
			t.Errorf("folders of %q: %q, %v; want %q", prefix, got, err, wanted)
		}
	}
}

func remove(t *testing.T, ctx context.Context, s objstore.Store) {
	put(t, ctx, s, "a/b", "1")
	for range 2 {
		if err := s.Delete(ctx, "a/b"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Get(ctx, "a/b", objstore.Range{}); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("get after delete: %v, want %v", err, objstore.ErrNotFound)
	}
	put(t, ctx, s, "a/b", "2")
	want(t, ctx, s, "a/b", "2")

	put(t, ctx, s, "a/c", "3")
	put(t, ctx, s, "d/e", "4")
	if err := s.DeleteAll(ctx, []string{"a/b", "a/none", "none/none", "d/e"}); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteAll(ctx, nil); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"a/b", "d/e"} {
		if _, err := s.Get(ctx, key, objstore.Range{}); !errors.Is(err, objstore.ErrNotFound) {
			t.Errorf("get %s after delete: %v, want %v", key, err, objstore.ErrNotFound)
		}
	}
	want(t, ctx, s, "a/c", "3")
}

func badKeys(t *testing.T, ctx context.Context, s objstore.Store) {
	for _, key := range []string{"", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "a/./b", "a\nb", "a\xffb", ".tmp-1", "a/.tmp-1", strings.Repeat("x", 256), strings.Repeat("x/", 1000) + "x"} {
		if _, err := s.PutIfAbsent(ctx, key, strings.NewReader("1"), objstore.Attrs{}); !errors.Is(err, objstore.ErrKey) {
			t.Errorf("put %q: %v, want %v", key, err, objstore.ErrKey)
		}
		if _, err := s.Get(ctx, key, objstore.Range{}); !errors.Is(err, objstore.ErrKey) {
			t.Errorf("get %q: %v, want %v", key, err, objstore.ErrKey)
		}
		if err := s.Delete(ctx, key); !errors.Is(err, objstore.ErrKey) {
			t.Errorf("delete %q: %v, want %v", key, err, objstore.ErrKey)
		}
	}
	for i, key := range []string{"ümläut/データ.db", "with space+plus%25&?#=", "a'b\"c\\d"} {
		put(t, ctx, s, key, fmt.Sprint(i))
		want(t, ctx, s, key, fmt.Sprint(i))
	}
}

// ended: a put whose context is over before it began leaves nothing.
func ended(t *testing.T, ctx context.Context, s objstore.Store) {
	over, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.PutIfAbsent(over, "late", strings.NewReader("1"), objstore.Attrs{}); !errors.Is(err, context.Canceled) {
		t.Errorf("put: %v, want %v", err, context.Canceled)
	}
	if _, err := s.Get(ctx, "late", objstore.Range{}); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("get: %v, want %v", err, objstore.ErrNotFound)
	}
}

func large(t *testing.T, ctx context.Context, s objstore.Store) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	if _, err := s.PutIfAbsent(ctx, "large", bytes.NewReader(content), objstore.Attrs{}); err != nil {
		t.Fatal(err)
	}
	o, err := s.Get(ctx, "large", objstore.Range{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(o.Body)
	if err = errors.Join(err, o.Body.Close()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, content) {
		t.Errorf("%d bytes come back as %d others", len(content), len(got))
	}
	if _, err := s.PutIfMatch(ctx, "large", o.ETag, strings.NewReader("small"), objstore.Attrs{}); err != nil && !errors.Is(err, objstore.ErrChanged) {
		t.Errorf("put over a large object: %v", err)
	}
}
