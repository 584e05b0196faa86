package restore_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/litefs/litefs/internal/archive"
	"github.com/litefs/litefs/internal/objstore"
	"github.com/litefs/litefs/internal/restore"
)

// BenchmarkRestore restores a snapshot of text, which compresses to about a half; BenchmarkCopy copies the
// bytes of the same database, and syncs them too.
func BenchmarkRestore(b *testing.B) {
	_, h, m := largeArchive(b)
	b.SetBytes(int64(m.Commit) * int64(m.PageSize))
	for i := 0; b.Loop(); i++ {
		file := filepath.Join(b.TempDir(), fmt.Sprint(i))
		if _, err := h.Restore(b.Context(), m, file, nil); err != nil {
			b.Fatal(err)
		}
		if err := os.Remove(file); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCopy(b *testing.B) {
	dir, h, m := largeArchive(b)
	source := filepath.Join(dir, "source")
	if _, err := h.Restore(b.Context(), m, source, nil); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(m.Commit) * int64(m.PageSize))
	for i := 0; b.Loop(); i++ {
		if err := copyFile(filepath.Join(b.TempDir(), fmt.Sprint(i)), source); err != nil {
			b.Fatal(err)
		}
	}
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer os.Remove(to)
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	if err := out.Sync(); err != nil {
		return err
	}
	return out.Close()
}

func largeArchive(b *testing.B) (string, *restore.History, restore.Moment) {
	const pages, size = 32 << 10, 4096
	dir := b.TempDir()
	store, err := objstore.OpenDir(dir)
	if err != nil {
		b.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	h := archive.Header{Min: 1, Max: 1, PageSize: size, Commit: pages, Time: at(1), State: archive.State{TXID: 1, Count: 1, DB: 1, Sum: 1 << 63, Epoch: 1}}
	var out bytes.Buffer
	w, err := archive.NewWriter(&out, h, 0)
	if err != nil {
		b.Fatal(err)
	}
	page := make([]byte, 0, size+64)
	for pgno := uint32(1); pgno <= pages; pgno++ {
		for page = page[:0]; len(page) < size; {
			page = fmt.Appendf(page, "%x some words ", r.Uint64())
		}
		if err := w.Page(pgno, page[:size]); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := w.Close(); err != nil {
		b.Fatal(err)
	}
	// Without a database checksum it is as one of Litestream's.
	o := archive.Object{Level: 0, Min: 1, Max: 1}
	if _, err := store.PutIfAbsent(b.Context(), archive.LayoutDir.Key(o), bytes.NewReader(out.Bytes()), objstore.Attrs{}); err != nil {
		b.Fatal(err)
	}
	history, err := restore.OpenForeign(b.Context(), store, archive.LayoutDir)
	if err != nil {
		b.Fatal(err)
	}
	m, err := history.Newest(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return dir, history, m
}
