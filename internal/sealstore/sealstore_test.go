package sealstore_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/archive"
	"github.com/litefs/litefs/internal/objstore"
	"github.com/litefs/litefs/internal/objstore/objtest"
	"github.com/litefs/litefs/internal/seal"
	"github.com/litefs/litefs/internal/sealstore"
)

const (
	key1 = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	key2 = "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100"
)

func keys(t *testing.T, text string) *seal.Keys {
	t.Helper()
	k, err := seal.ParseKeys(text)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func open(t *testing.T, dir string, k *seal.Keys) *sealstore.Store {
	t.Helper()
	inner, err := objstore.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return sealstore.New(inner, k)
}

// TestOtherObjects: what is no object of a history is stored as by any store.
func TestOtherObjects(t *testing.T) {
	objtest.Run(t, func(t *testing.T) objstore.Store { return open(t, t.TempDir(), keys(t, key1)) })
}

const object = "app.db/history-00000001/ltx/0/0000000000000001-0000000000000001.ltx"

func put(t *testing.T, s *sealstore.Store, key, content string) {
	t.Helper()
	if _, err := s.PutIfAbsent(t.Context(), key, strings.NewReader(content), objstore.Attrs{Meta: map[string]string{"litefs-checksum": "1"}}); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, s *sealstore.Store, key string) (string, error) {
	t.Helper()
	b, _, err := objstore.ReadAll(t.Context(), s, key, 1<<20)
	return string(b), err
}

// TestSealed: an object of a history cannot be read in the store, and comes back with the keys: whole, by its
// beginning, and with its size; another process with the same keys writes on.
func TestSealed(t *testing.T) {
	dir := t.TempDir()
	text := strings.Repeat("some secret text ", 10_000)
	put(t, open(t, dir, keys(t, key1)), object, text)
	raw, err := os.ReadFile(filepath.Join(dir, object))
	if err != nil || bytes.Contains(raw, []byte("secret")) {
		t.Fatalf("%v: the content is in the file", err)
	}
	s := open(t, dir, keys(t, key1))
	if got, err := get(t, s, object); err != nil || got != text {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	for _, r := range []objstore.Range{{Len: 100}, {Len: 5000}, {Off: 3, Len: 70_000}, {Off: 100_000}, {Off: 1 << 30}} {
		o, err := s.Get(t.Context(), object, r)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		_, err = b.ReadFrom(o.Body)
		want := text[min(r.Off, int64(len(text))):]
		if r.Len > 0 {
			want = want[:r.Len]
		}
		if err = errors.Join(err, o.Body.Close()); err != nil || b.String() != want || o.Size != int64(len(text)) {
			t.Errorf("%+v: %d bytes of %d, %v", r, b.Len(), o.Size, err)
		}
	}
	for info, err := range s.List(t.Context(), "app.db/history-00000001/", "") {
		if err != nil || info.Size != int64(len(text)) {
			t.Errorf("%+v, %v", info, err)
		}
	}
	second := strings.ReplaceAll(object, "0000000000000001.", "0000000000000002.")
	put(t, s, second, "more")
	if got, err := get(t, open(t, dir, keys(t, key1)), second); err != nil || got != "more" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := s.PutIfAbsent(t.Context(), object, strings.NewReader("x"), objstore.Attrs{}); !errors.Is(err, objstore.ErrExists) {
		t.Errorf("a second put: %v", err)
	}
}

// TestWrongKeys: without a key, with another one, under another name and in another database nothing is read,
// and nothing that was not encrypted is taken for authentic.
func TestWrongKeys(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, keys(t, key1))
	put(t, s, object, "text")
	put(t, s, "other.db/history-00000001/ltx/0/0000000000000001-0000000000000001.ltx", "other")
	if _, err := get(t, open(t, dir, nil), object); !errors.Is(err, sealstore.ErrNoKey) || errors.Is(err, archive.ErrCorrupt) {
		t.Errorf("without keys: %v", err)
	}
	other := open(t, dir, keys(t, key2))
	if _, err := get(t, other, object); !errors.Is(err, seal.ErrWrongKey) || errors.Is(err, archive.ErrCorrupt) {
		t.Errorf("with another key: %v", err)
	}
	if _, err := other.PutIfAbsent(t.Context(), object+"2", strings.NewReader("x"), objstore.Attrs{}); !errors.Is(err, seal.ErrWrongKey) {
		t.Errorf("a put with another key: %v", err)
	}
	move := func(from, to string) {
		b, err := os.ReadFile(filepath.Join(dir, from))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, to), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	moved := strings.ReplaceAll(object, "0000000000000001", "0000000000000002")
	move(object, moved)
	if _, err := get(t, s, moved); !errors.Is(err, archive.ErrCorrupt) {
		t.Errorf("under another name: %v", err)
	}
	move("other.db/history-00000001/ltx/0/0000000000000001-0000000000000001.ltx", object)
	if _, err := get(t, s, object); !errors.Is(err, archive.ErrCorrupt) {
		t.Errorf("another database's: %v", err)
	}
	move("other.db/history-00000000/key", "app.db/history-00000000/key")
	if _, err := get(t, open(t, dir, keys(t, key1)), object); !errors.Is(err, archive.ErrCorrupt) {
		t.Errorf("another database's, with its key: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, moved), []byte("LTX1 in the clear"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := get(t, s, moved); !errors.Is(err, archive.ErrCorrupt) || !strings.Contains(err.Error(), "not encrypted at all") {
		t.Errorf("in the clear: %v", err)
	}
}

// TestRotateAndShred: a rotated key is unwrapped with the new key alone, objects stay as they are; a destroyed
// one leaves nothing to be read, and a new one begins anew.
func TestRotateAndShred(t *testing.T) {
	dir := t.TempDir()
	put(t, open(t, dir, keys(t, key1)), object, "text")
	both := open(t, dir, keys(t, key2+"\n"+key1))
	before, err := both.KeyOf(t.Context(), "app.db")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		got, err := both.Rotate(t.Context(), "app.db")
		if err != nil || got.WrappedBy != keys(t, key2).Current() || got.WrappedBy == before.WrappedBy || got.Rotated != (i == 0) {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	if got, err := get(t, open(t, dir, keys(t, key2)), object); err != nil || got != "text" {
		t.Errorf("with the new key: %q, %v", got, err)
	}
	if _, err := get(t, open(t, dir, keys(t, key1)), object); !errors.Is(err, seal.ErrWrongKey) {
		t.Errorf("with the old key: %v", err)
	}
	s := open(t, dir, keys(t, key2))
	for _, want := range []bool{true, false} {
		if was, err := s.Shred(t.Context(), "app.db"); err != nil || was != want {
			t.Fatalf("%v, %v", was, err)
		}
	}
	if _, err := get(t, s, object); !errors.Is(err, archive.ErrCorrupt) || !strings.Contains(err.Error(), "destroyed") {
		t.Errorf("destroyed: %v", err)
	}
	put(t, s, object+"2", "new")
	if _, err := get(t, s, object); !errors.Is(err, archive.ErrCorrupt) || !strings.Contains(err.Error(), "destroyed") {
		t.Errorf("destroyed, and another one made: %v", err)
	}
	if state, err := s.KeyOf(t.Context(), "none.db"); err != nil || state.WrappedBy != "" {
		t.Errorf("%+v, %v", state, err)
	}
}
