package lostfound_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/superfly/ltx"

	"github.com/litefs/litefs/internal/logkey"
	"github.com/litefs/litefs/internal/lostfound"
	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/seal"
)

const pageSize = 512

// history is a database under construction, and its log.
type history struct {
	t     *testing.T
	dir   string // of the log and its key
	keys  *logkey.Keys
	log   *ltxlog.Log
	pages [][]byte
	epoch uint64
}

func newHistory(t *testing.T, pages int, keys *logkey.Keys) *history {
	t.Helper()
	dir := t.TempDir()
	log, err := keys.Open(dir, "ltx", "0000000000000007", ltxlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	h := &history{t: t, dir: dir, keys: keys, log: log, epoch: 3}
	all := make([]uint32, pages)
	for i := range all {
		all[i] = uint32(i + 1)
		h.pages = append(h.pages, make([]byte, pageSize))
	}
	h.write(all...)
	return h
}

func (h *history) sum() uint64 {
	sum := uint64(ltx.ChecksumFlag)
	for i, p := range h.pages {
		sum ^= uint64(ltx.ChecksumPage(uint32(i+1), p)) &^ uint64(ltx.ChecksumFlag)
	}
	return sum
}

// write is a transaction that changes the pages.
func (h *history) write(pgnos ...uint32) {
	h.t.Helper()
	for _, pgno := range pgnos {
		for i := range h.pages[pgno-1] {
			h.pages[pgno-1][i] = byte(rand.Uint32())
		}
	}
	head, _ := h.log.Head()
	hdr := ltxlog.Header{Min: head.Max + 1, Max: head.Max + 1, Pre: head.Post, Commit: uint32(len(h.pages)), PageSize: pageSize, Epoch: h.epoch, Timestamp: time.Now()}
	_, err := h.log.Append(hdr, func(emit func(uint32, []byte) error) error {
		for _, pgno := range pgnos {
			if err := emit(pgno, h.pages[pgno-1]); err != nil {
				return err
			}
		}
		return nil
	}, h.sum(), false)
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *history) image() []byte { return bytes.Join(h.pages, nil) }

// snapshot is the database as an LTX file.
func (h *history) snapshot(context.Context) (io.ReadCloser, int64, error) {
	var b bytes.Buffer
	enc, err := ltx.NewEncoder(&b)
	if err != nil {
		return nil, 0, err
	}
	head, _ := h.log.Head()
	if err := enc.EncodeHeader(ltx.Header{Version: ltx.Version, PageSize: pageSize, Commit: head.Commit, MinTXID: 1, MaxTXID: ltx.TXID(head.Max), Timestamp: 1, NodeID: head.Epoch}); err != nil {
		return nil, 0, err
	}
	for i, p := range h.pages {
		if err := enc.EncodePage(ltx.PageHeader{Pgno: uint32(i + 1)}, p); err != nil {
			return nil, 0, err
		}
	}
	enc.SetPostApplyChecksum(ltx.Checksum(head.Post))
	if err := enc.Close(); err != nil {
		return nil, 0, err
	}
	return io.NopCloser(&b), int64(b.Len()), nil
}

func keep(t *testing.T, dir string, tail lostfound.Tail) lostfound.Kept {
	t.Helper()
	k, err := lostfound.Keep(t.Context(), dir, tail)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func export(t *testing.T, k lostfound.Kept, keys *logkey.Keys) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "copy.db")
	if err := k.Export(path, keys); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestKeepListExport(t *testing.T) {
	operator, err := seal.ParseKeys(strings.Repeat("5a", 32))
	if err != nil {
		t.Fatal(err)
	}
	t.Run("in the clear", func(t *testing.T) { keepListExport(t, nil) })
	t.Run("encrypted", func(t *testing.T) { keepListExport(t, &logkey.Keys{Operator: operator}) })
}

func keepListExport(t *testing.T, keys *logkey.Keys) {
	h := newHistory(t, 9, keys)
	h.write(2)
	h.write(3, 4)
	h.write(4, 9)
	if _, _, err := h.log.Retain(time.Now(), ltxlog.Retention{MaxBytes: 1, KeepFrom: 3}); err != nil {
		t.Fatal(err) // the log does not reach back to its beginning any more
	}
	dir := filepath.Join(t.TempDir(), "lost+found")
	tail := lostfound.Tail{Name: "sub/../odd name.db", ID: 7, NodeID: "n1", Common: 2, Reason: "forked", Log: h.log, Record: h.dir, Keys: keys, Copy: h.snapshot}
	k := keep(t, dir, tail)
	if k.First != 3 || k.Last != 4 || k.Epoch != 3 || k.Entries != 2 || k.NoCopy != "" || k.Name != tail.Name {
		t.Errorf("kept %+v", k)
	}
	if base := filepath.Base(k.Path); filepath.Dir(k.Path) != dir || !strings.HasSuffix(base, "-3-0000000000000004") {
		t.Errorf("kept at %s", k.Path)
	}
	list, err := lostfound.List(dir)
	if err != nil || len(list) != 1 {
		t.Fatalf("list: %d, %v", len(list), err)
	}
	got := list[0]
	if !got.Newest.Equal(k.Newest) {
		t.Errorf("newest %v, want %v", got.Newest, k.Newest)
	}
	got.Newest = k.Newest
	if got != k {
		t.Errorf("listed %+v, want %+v", got, k)
	}
	if !bytes.Equal(export(t, got, keys), h.image()) {
		t.Error("the export is not the database")
	}
	if pgnos, err := got.Changed(keys); err != nil || !slices.Equal(pgnos, []uint32{3, 4, 9}) {
		t.Errorf("changed %v, %v", pgnos, err)
	}

	found := 0
	for _, name := range []string{"ltx", "copy"} {
		files, err := filepath.Glob(filepath.Join(k.Path, name, "*.ltx"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v, %v", name, files, err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			found += bytes.Count(b, h.pages[3][:40])
		}
	}
	if want := map[bool]int{true: 2}[keys == nil]; found != want {
		t.Errorf("the content of a page is found in %d files, want %d", found, want)
	}

	// The same tail, kept again after a crash, is there once; another one of the same epoch and
	// transaction beside it.
	if again := keep(t, dir, tail); again.Path != k.Path {
		t.Errorf("kept again at %s", again.Path)
	}
	other := newHistory(t, 9, keys)
	other.write(1)
	other.write(1)
	other.write(1)
	tail.Log, tail.Record, tail.Copy = other.log, other.dir, other.snapshot
	k2 := keep(t, dir, tail)
	if k2.Path == k.Path || !bytes.Equal(export(t, k2, keys), other.image()) || !bytes.Equal(export(t, k, keys), h.image()) {
		t.Errorf("two tails of one name: %s and %s", k.Path, k2.Path)
	}
	if found, err := lostfound.Find(dir, k2.Key); err != nil || found.Checksum != k2.Checksum {
		t.Errorf("find: %+v, %v", found, err)
	}
}

func TestKeepWithoutACopy(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lost+found")
	h := newHistory(t, 4, nil)
	h.write(2)
	noRoom := func(context.Context) (io.ReadCloser, int64, error) { return nil, 0, errors.New("no room") }
	k := keep(t, dir, lostfound.Tail{Name: "a.db", ID: 1, Log: h.log, Copy: noRoom})
	if k.NoCopy != "no room" {
		t.Errorf("no copy: %q", k.NoCopy)
	}
	if !bytes.Equal(export(t, k, nil), h.image()) {
		t.Error("a tail from transaction 1 on is the database")
	}
	k = keep(t, dir, lostfound.Tail{Name: "b.db", ID: 2, Common: 1, Log: h.log, Copy: noRoom})
	path := filepath.Join(t.TempDir(), "copy.db")
	if err := k.Export(path, nil); !errors.Is(err, ltxlog.ErrNoSnapshot) || !strings.Contains(err.Error(), "no room") {
		t.Errorf("export of a tail alone: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a failed export leaves its file: %v", err)
	}

	// A keeper that has no time left keeps nothing, and can be asked again.
	ctx, cancel := context.WithCancel(t.Context())
	late := func(context.Context) (io.ReadCloser, int64, error) { cancel(); return nil, 0, ctx.Err() }
	tail := lostfound.Tail{Name: "c.db", ID: 3, Common: 1, Log: h.log, Copy: late}
	if _, err := lostfound.Keep(ctx, dir, tail); !errors.Is(err, context.Canceled) {
		t.Errorf("keep, too late: %v", err)
	}
	tail.Copy = h.snapshot
	if k := keep(t, dir, tail); k.NoCopy != "" {
		t.Errorf("kept later: %+v", k)
	}
}

func TestKeepLeavesNothingHalf(t *testing.T) {
	h := newHistory(t, 4, nil)
	h.write(2)
	dir := filepath.Join(t.TempDir(), "lost+found")
	tail := lostfound.Tail{Name: ".hidden.db", ID: 1, Common: 1, Log: h.log, Copy: h.snapshot}
	k := keep(t, dir, tail)
	// As a crash before the rename leaves it.
	if err := os.Rename(k.Path, filepath.Join(dir, ".new-"+k.Key)); err != nil {
		t.Fatal(err)
	}
	if list, err := lostfound.List(dir); err != nil || len(list) != 0 {
		t.Errorf("list after a crash: %v, %v", list, err)
	}
	again := keep(t, dir, tail)
	if !bytes.Equal(export(t, again, nil), h.image()) {
		t.Error("the export is not the database")
	}
	if list, err := lostfound.List(dir); err != nil || len(list) != 1 {
		t.Errorf("list: %v, %v", list, err)
	}
}

func TestFindTakesNoPath(t *testing.T) {
	dir := t.TempDir()
	for _, key := range []string{"", ".", "..", "../x", "a/b", ".new-a", "absent"} {
		if _, err := lostfound.Find(dir, key); !errors.Is(err, lostfound.ErrNotFound) {
			t.Errorf("find %q: %v", key, err)
		}
	}
	if _, err := lostfound.Keep(t.Context(), dir, lostfound.Tail{Name: "x", Common: 1, Log: newHistory(t, 2, nil).log}); err == nil {
		t.Error("nothing comes after the common transaction, and it is kept")
	}
	if list, err := lostfound.List(filepath.Join(dir, "absent")); err != nil || list != nil {
		t.Errorf("list of no directory: %v, %v", list, err)
	}
}
