package vfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestAlike runs the same steps on the disk and in memory and compares what is seen.
func TestAlike(t *testing.T) {
	mem := NewMem()
	if err := mem.MkdirAll("/a/b", 0o700); err != nil {
		t.Fatal(err)
	}
	disk := steps(t, OS(), t.TempDir())
	memory := steps(t, mem, "/a/b")
	through := steps(t, NewFaulty(OS(), func(Op) error { return nil }), t.TempDir())
	for i := range disk {
		if disk[i] != memory[i] || disk[i] != through[i] {
			t.Errorf("step %d: disk %q, memory %q, through Faulty %q", i, disk[i], memory[i], through[i])
		}
	}
}

func steps(t *testing.T, fsys FS, dir string) (seen []string) {
	t.Helper()
	note := func(args ...any) {
		for i, a := range args {
			if err, ok := a.(error); ok {
				var errno syscall.Errno
				switch {
				case errors.As(err, &errno):
					args[i] = errno
				case errors.Is(err, io.EOF):
					args[i] = io.EOF
				}
			}
		}
		seen = append(seen, fmt.Sprintln(args...))
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	_, err := fsys.OpenFile(in("f"), os.O_RDWR, 0)
	note(err)
	f, err := fsys.OpenFile(in("f"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	_, err = fsys.OpenFile(in("f"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	note(err)
	n, err := f.Write([]byte("hello"))
	note(n, err)
	n, err = f.WriteAt([]byte("world"), 8)
	note(n, err)
	n, err = f.Write([]byte("!"))
	note(n, err)
	b := make([]byte, 20)
	n, err = f.ReadAt(b, 3)
	note(n, err, b)
	n, err = f.Read(b)
	note(n, err, b)
	n, err = f.Read(b)
	note(n, err)
	note(f.Truncate(4), f.Truncate(7), f.StartSync(), f.Sync())
	n, err = f.ReadAt(b, 0)
	note(n, err, b)
	info, err := f.Stat()
	note(info.Size(), info.Name(), info.IsDir(), err, f.Name() == in("f"))
	note(f.Close())
	note(fsys.Mkdir(in("d"), 0o700), fsys.Mkdir(in("d"), 0o700), fsys.Mkdir(in("x/y"), 0o700), fsys.MkdirAll(in("d/e/f"), 0o700), fsys.MkdirAll(in("d"), 0o700))
	note(fsys.Rename(in("f"), in("g")), fsys.Rename(in("f"), in("h")))
	entries, err := fsys.ReadDir(dir)
	note(len(entries), entries[0].Name(), entries[0].IsDir(), entries[1].Name(), err)
	_, err = fsys.ReadDir(in("none"))
	note(err)
	info, err = fsys.Stat(in("g"))
	note(info.Size(), info.Mode().IsRegular(), err)
	_, err = fsys.Stat(in("none"))
	note(err, errors.Is(err, fs.ErrNotExist))
	note(fsys.Remove(in("none")), fsys.Remove(in("d")), fsys.Remove(in("d/e/f")), fsys.Remove(in("g")))
	note(fsys.SyncDir(dir), fsys.SyncDir(in("none")))
	f, err = fsys.OpenFile(in("r"), os.O_RDONLY|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("x"), 0)
	note(err)
	note(f.Close())
	return seen
}

func TestFaulty(t *testing.T) {
	var ops []Op
	f := NewFaulty(NewMem(), func(op Op) error {
		ops = append(ops, op)
		switch op.N {
		case 2:
			return &ShortWrite{N: 3, Err: syscall.ENOSPC}
		case 3:
			return syscall.EIO
		}
		return nil
	})
	if err := f.Mkdir("/d", 0o700); err != nil {
		t.Fatal(err)
	}
	file, err := f.OpenFile("/d/f", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := file.Write([]byte("hello")); n != 3 || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("short write: %d, %v", n, err)
	}
	if err := file.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("sync: %v, want EIO", err)
	}
	b := make([]byte, 5)
	if n, err := file.ReadAt(b, 0); n != 3 || !errors.Is(err, io.EOF) {
		t.Fatalf("read: %d, %v", n, err)
	}
	kinds := []Kind{OpMkdir, OpOpen, OpWrite, OpSync, OpRead}
	for i, op := range ops {
		if op.N != i || op.Kind != kinds[i] {
			t.Fatalf("operation %d is %+v, want %s", i, op, kinds[i])
		}
	}
	if f.Count() != len(kinds) {
		t.Fatalf("%d operations, want %d", f.Count(), len(kinds))
	}
}

// TestCut: what was synced is there in every outcome, and what was not has more than one.
func TestCut(t *testing.T) {
	m := NewMem()
	if err := m.Mkdir("/d", 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(name string, b []byte, sync bool) {
		f, err := m.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
		if err == nil {
			_, err = f.WriteAt(b, 0)
		}
		if err == nil && sync {
			err = f.Sync()
		}
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	content := func(m *Mem, name string) []byte {
		f, err := m.OpenFile(name, os.O_RDONLY, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	old, changed := bytes.Repeat([]byte{1}, 3*memBlock), bytes.Repeat([]byte{2}, 5*memBlock)
	write("/d/synced", old, true)
	write("/d/changed", old, true)
	if err := m.SyncDir("/d"); err != nil {
		t.Fatal(err)
	}
	write("/d/changed", changed, false)
	write("/d/first", old, true)
	if err := m.Rename("/d/first", "/d/second"); err != nil {
		t.Fatal(err)
	}
	outcomes := map[string]bool{}
	for seed := range uint64(200) {
		after := m.Cut(rand.New(rand.NewPCG(seed, 0)))
		if got := content(after, "/d/synced"); !bytes.Equal(got, old) {
			t.Fatalf("seed %d: synced content is lost", seed)
		}
		first, second := content(after, "/d/first"), content(after, "/d/second")
		if first != nil && second != nil {
			t.Fatalf("seed %d: a renamed file has both names", seed)
		}
		got := content(after, "/d/changed")
		outcomes[fmt.Sprint("names ", first != nil, second != nil)] = true
		outcomes[fmt.Sprint("content ", bytes.Equal(got, old), bytes.Equal(got, changed))] = true
	}
	if len(outcomes) != 6 {
		t.Fatalf("outcomes are %v, want 3 of the names and 3 of the content", outcomes)
	}
	if got := content(m.Clone(), "/d/changed"); !bytes.Equal(got, changed) {
		t.Fatal("a clone lost what a living machine keeps")
	}
	if got := content(m, "/d/second"); !bytes.Equal(got, old) {
		t.Fatal("a cut changed the original")
	}
}

// TestLoseSync: what a sync has lost is in the cache until that is emptied, and comes to the disk when it is written again.
func TestLoseSync(t *testing.T) {
	m := NewMem()
	f, err := m.OpenFile("/f", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	write := func(b byte, page, pages int) {
		t.Helper()
		if _, err := f.WriteAt(bytes.Repeat([]byte{b}, pages*memPage), int64(page*memPage)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when string, want ...byte) {
		t.Helper()
		got := make([]byte, len(want)*memPage)
		if _, err := f.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		for page, b := range want {
			if !bytes.Equal(got[page*memPage:(page+1)*memPage], bytes.Repeat([]byte{b}, memPage)) {
				t.Errorf("%s: page %d is %d, want %d", when, page, got[page*memPage], b)
			}
		}
	}
	write(1, 0, 2)
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	write(2, 0, 4)
	if err := m.LoseSync("/f"); err != nil {
		t.Fatal(err)
	}
	write(3, 1, 1)
	check("lost", 2, 3, 2, 2)
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	m.Evict()
	check("evicted", 1, 3, 0, 0)
	if err := m.LoseSync("/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
