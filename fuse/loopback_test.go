package fuse

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReadWrite(t *testing.T) {
	inModes(t, func(t *testing.T, mode Mode) {
		m := newMount(t, mode)
		a := startApp(t, 0)
		fd := a.open(m.Path("f"), unix.O_CREAT|unix.O_RDWR)
		a.pwrite(fd, 0, "hello")
		if got := string(a.pread(fd, 0, 10)); got != "hello" {
			t.Errorf("read %q", got)
		}
		if got := m.backing("f"); got != "hello" {
			t.Errorf("backing file: %q", got)
		}
		a.do(appRequest{Op: "fill", FD: fd, Off: 100, Len: 300_000, Flags: 7})
		if st := a.stat(m.Path("f")); st.Size != 300_100 {
			t.Errorf("size %d", st.Size)
		}
		if got := a.pread(fd, 299_990, 1000); len(got) != 110 || got[0] != 7 {
			t.Errorf("read %d bytes at the end", len(got))
		}
		a.do(appRequest{Op: "ftruncate", FD: fd, Len: 3})
		if got := string(a.pread(fd, 0, 10)); got != "hel" {
			t.Errorf("after ftruncate: %q", got)
		}
		a.close(fd)
		fd = a.open(m.Path("f"), unix.O_WRONLY|unix.O_TRUNC)
		a.close(fd)
		if got := m.backing("f"); got != "" {
			t.Errorf("after O_TRUNC: %q", got)
		}
		a.stop()
	})
}

func TestAppendDirectSync(t *testing.T) {
	inModes(t, func(t *testing.T, mode Mode) {
		m := newMount(t, mode)
		a := startApp(t, 0)
		fd := a.open(m.Path("f"), unix.O_CREAT|unix.O_WRONLY|unix.O_APPEND)
		a.do(appRequest{Op: "write", FD: fd, Data: []byte("one ")})
		other := a.open(m.Path("f"), unix.O_WRONLY|unix.O_APPEND|unix.O_DSYNC)
		a.do(appRequest{Op: "write", FD: other, Data: []byte("two ")})
		a.do(appRequest{Op: "write", FD: fd, Data: []byte("three")})
		if got := m.backing("f"); got != "one two three" {
			t.Errorf("appended: %q", got)
		}
		for _, op := range []string{"fsync", "fdatasync"} {
			a.do(appRequest{Op: op, FD: fd})
		}
		a.close(a.open(m.Path("d"), unix.O_CREAT|unix.O_RDWR|unix.O_DIRECT))
		m.put("whole", strings.Repeat("x", 8192))
		reader := a.open(m.Path("whole"), unix.O_RDWR|unix.O_DIRECT)
		if mode == Cached { // passed through, it asks for an aligned buffer
			if got := string(a.pread(reader, 4096, 4096)); got != strings.Repeat("x", 4096) {
				t.Errorf("O_DIRECT read %d bytes", len(got))
			}
			a.pwrite(reader, 512, strings.Repeat("y", 512))
			if got := m.backing("whole")[500:524]; got != strings.Repeat("x", 12)+strings.Repeat("y", 12) {
				t.Errorf("after an O_DIRECT write: %q", got)
			}
		}
		a.close(reader)
		if n := m.Counts()["FSYNC"]; n < 2 {
			t.Errorf("%d FSYNC, want 2 at least", n)
		}
		a.stop()
	})
}

func TestNames(t *testing.T) {
	m := newMount(t, Cached)
	a := startApp(t, 0)
	p := m.Path
	a.do(appRequest{Op: "mkdir", Path: p("d"), Flags: 0o755})
	a.do(appRequest{Op: "mkdir", Path: p("d/e"), Flags: 0o755})
	a.fails(syscall.EEXIST, appRequest{Op: "mkdir", Path: p("d"), Flags: 0o755})
	a.close(a.open(p("d/e/f"), unix.O_CREAT|unix.O_RDWR))
	a.fails(syscall.EEXIST, appRequest{Op: "open", Path: p("d/e/f"), Flags: unix.O_CREAT | unix.O_EXCL | unix.O_RDWR, Len: 0o644})
	a.fails(syscall.ENOENT, appRequest{Op: "stat", Path: p("missing")})
	a.fails(syscall.ENOTEMPTY, appRequest{Op: "rmdir", Path: p("d/e")})

	// The path the Backend hears follows every rename, of the file and of what is above it.
	fd := a.open(p("d/e/f"), unix.O_RDWR)
	m.back.take()
	a.pwrite(fd, 0, "1")
	a.do(appRequest{Op: "rename", Path: p("d/e/f"), Path2: p("d/e/g")})
	a.pwrite(fd, 0, "2")
	a.do(appRequest{Op: "rename", Path: p("d"), Path2: p("top")})
	a.pwrite(fd, 0, "3")
	m.put("other", "other")
	a.do(appRequest{Op: "rename", Path: p("other"), Path2: p("top/e/g")}) // replaces it: fd has no name any more
	a.pwrite(fd, 0, "4")
	want := []string{
		"Writing d/e/f 0 1", "Wrote d/e/f 0 1",
		"Renaming d/e/f d/e/g", "Renamed d/e/f d/e/g <nil>",
		"Writing d/e/g 0 1", "Wrote d/e/g 0 1",
		"Renaming d top", "Renamed d top <nil>",
		"Writing top/e/g 0 1", "Wrote top/e/g 0 1",
		"Renaming other top/e/g", "Renamed other top/e/g <nil>",
	}
	if got := m.back.take(); !slices.Equal(got, want) {
		t.Errorf("calls:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	a.close(fd)
	m.back.await(t, "Released  true true")

	a.fails(syscall.EEXIST, appRequest{Op: "rename", Path: p("top"), Path2: p("top/e/g"), Flags: unix.RENAME_NOREPLACE})
	a.fails(syscall.EINVAL, appRequest{Op: "rename", Path: p("top/e"), Path2: p("top/e/g"), Flags: unix.RENAME_EXCHANGE})
	a.fails(syscall.EPERM, appRequest{Op: "link", Path: p("top/e/g"), Path2: p("hard")})
	a.fails(syscall.EPERM, appRequest{Op: "mknod", Path: p("pipe"), Flags: unix.S_IFIFO | 0o644})
	a.do(appRequest{Op: "mknod", Path: p("plain"), Flags: unix.S_IFREG | 0o640})
	a.do(appRequest{Op: "unlink", Path: p("plain")})
	a.fails(syscall.ENOENT, appRequest{Op: "unlink", Path: p("plain")})
	a.do(appRequest{Op: "unlink", Path: p("top/e/g")})
	a.do(appRequest{Op: "rmdir", Path: p("top/e")})
	a.do(appRequest{Op: "rmdir", Path: p("top")})
	if left, err := os.ReadDir(m.root); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	a.stop()
}

func TestDeletedSuffixIsAName(t *testing.T) {
	m := newMount(t, Cached)
	a := startApp(t, 0)
	fd := a.open(m.Path("f (deleted)"), unix.O_CREAT|unix.O_RDWR)
	m.back.take()
	a.pwrite(fd, 0, "x")
	a.do(appRequest{Op: "unlink", Path: m.Path("f (deleted)")})
	a.pwrite(fd, 0, "y")
	want := []string{"Writing f (deleted) 0 1", "Wrote f (deleted) 0 1", "Unlinking f (deleted)", "Unlinked f (deleted) <nil>"}
	if got := m.back.take(); !slices.Equal(got, want) {
		t.Errorf("calls: %q", got)
	}
	a.close(fd)
	a.stop()
}

func TestManyFiles(t *testing.T) {
	m := newMount(t, Cached)
	a := startApp(t, 0)
	want := make(map[string]bool)
	for i := range 2000 {
		name := fmt.Sprintf("file-with-a-long-name-%04d", i)
		m.put(name, "x")
		want[name] = true
	}
	names := a.do(appRequest{Op: "readdir", Path: m.Dir()}).Names
	for _, n := range names {
		if !want[n] {
			t.Errorf("unexpected or twice: %q", n)
		}
		delete(want, n)
	}
	if len(want) > 0 {
		t.Errorf("%d names are missing", len(want))
	}
	a.stop()
}

func TestSymlinks(t *testing.T) {
	m := newMount(t, Cached)
	a := startApp(t, 0)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.do(appRequest{Op: "symlink", Path: m.Path("l"), Path2: outside})
	if got := a.do(appRequest{Op: "readlink", Path: m.Path("l")}).Names[0]; got != outside {
		t.Errorf("target %q", got)
	}
	if st := a.stat(m.Path("l")); st.Mode&unix.S_IFMT != unix.S_IFLNK {
		t.Errorf("mode %o", st.Mode)
	}
	// What is done to the link is done to the link: the daemon does not follow it.
	a.do(appRequest{Op: "chown", Path: m.Path("l"), Flags: 1234, Len: 1234})
	a.do(appRequest{Op: "utimes", Path: m.Path("l"), Off: 1000, Len: 2000})
	if st := a.stat(m.Path("l")); st.Uid != 1234 || st.Mtim.Sec != 2000 || st.Atim.Sec != 1000 {
		t.Errorf("link: uid %d, times %d %d", st.Uid, st.Atim.Sec, st.Mtim.Sec)
	}
	if st := a.stat(outside); st.Uid != 0 || st.Mtim.Sec == 2000 {
		t.Errorf("the target was changed: uid %d, mtime %d", st.Uid, st.Mtim.Sec)
	}
	a.do(appRequest{Op: "unlink", Path: m.Path("l")})
	a.stop()
}

func TestAttributes(t *testing.T) {
	inModes(t, func(t *testing.T, mode Mode) {
		m := newMount(t, mode)
		a := startApp(t, 0)
		f := m.Path("f")
		fd := a.open(f, unix.O_CREAT|unix.O_RDWR)
		a.do(appRequest{Op: "chown", Path: f, Flags: 1001, Len: 1002})
		a.do(appRequest{Op: "chmod", Path: f, Flags: 0o4751})
		a.do(appRequest{Op: "utimes", Path: f, Off: 1_000_000_000, Len: 1_100_000_000})
		st := a.stat(f)
		if st.Uid != 1001 || st.Gid != 1002 || st.Mode&0o7777 != 0o4751 {
			t.Errorf("uid %d, gid %d, mode %o", st.Uid, st.Gid, st.Mode)
		}
		if st.Atim.Sec != 1_000_000_000 || st.Mtim.Sec != 1_100_000_000 {
			t.Errorf("times %d %d", st.Atim.Sec, st.Mtim.Sec)
		}
		var real unix.Stat_t
		if err := unix.Stat(filepath.Join(m.root, "f"), &real); err != nil {
			t.Fatal(err)
		}
		if st.Ino != real.Ino {
			t.Errorf("inode number %d, want that of the file, %d", st.Ino, real.Ino)
		}
		a.do(appRequest{Op: "fallocate", FD: fd, Off: 0, Len: 1 << 20})
		if st := a.stat(f); st.Size != 1<<20 {
			t.Errorf("size after fallocate: %d", st.Size)
		}
		a.do(appRequest{Op: "fill", FD: fd, Off: 512 << 10, Len: 4096, Flags: 1})
		a.do(appRequest{Op: "fallocate", FD: fd, Off: 0, Len: 64 << 10, Flags: unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE})
		m.back.await(t, "Truncating f 0")
		if off := a.do(appRequest{Op: "lseek", FD: fd, Off: 0, Flags: unix.SEEK_DATA}).N; off == 0 || off > 512<<10 {
			t.Errorf("first data at %d", off)
		}
		if end := a.do(appRequest{Op: "lseek", FD: fd, Off: 0, Flags: unix.SEEK_END}).N; end != 1<<20 {
			t.Errorf("end at %d", end)
		}
		if n := a.do(appRequest{Op: "statfs", Path: f}).N; n == 0 {
			t.Error("statfs: no blocks")
		}
		a.fails(syscall.EOPNOTSUPP, appRequest{Op: "getxattr", Path: f})
		a.stop()
	})
}

func TestOtherUser(t *testing.T) {
	const uid = 12345
	m := newMount(t, Cached)
	m.put("secret", "x")
	if err := os.Chmod(filepath.Join(m.root, "secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"theirs": 0o755, "ours": 0o777, "group": 0o777 | os.ModeSetgid} {
		if err := os.Mkdir(filepath.Join(m.root, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(m.root, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(filepath.Join(m.root, "group"), 0, 777); err != nil {
		t.Fatal(err)
	}
	a := startApp(t, uid)
	a.do(appRequest{Op: "umask", Flags: 0o027})
	a.fails(syscall.EACCES, appRequest{Op: "open", Path: m.Path("secret")})
	a.fails(syscall.EACCES, appRequest{Op: "access", Path: m.Path("secret"), Flags: unix.R_OK})
	a.fails(syscall.EACCES, appRequest{Op: "open", Path: m.Path("theirs/f"), Flags: unix.O_CREAT | unix.O_RDWR, Len: 0o644})
	a.fails(syscall.EACCES, appRequest{Op: "mkdir", Path: m.Path("theirs/d"), Flags: 0o755})
	a.fails(syscall.EACCES, appRequest{Op: "unlink", Path: m.Path("secret")})

	a.close(int(a.do(appRequest{Op: "open", Path: m.Path("ours/f"), Flags: unix.O_CREAT | unix.O_RDWR, Len: 0o666}).N))
	a.do(appRequest{Op: "mkdir", Path: m.Path("ours/d"), Flags: 0o777})
	a.do(appRequest{Op: "symlink", Path: m.Path("ours/l"), Path2: "f"})
	for name, mode := range map[string]uint32{"f": unix.S_IFREG | 0o640, "d": unix.S_IFDIR | 0o750, "l": unix.S_IFLNK | 0o777} {
		if st := a.stat(m.Path("ours/" + name)); st.Uid != uid || st.Gid != uid || st.Mode != mode {
			t.Errorf("%s: uid %d, gid %d, mode %o, want mode %o", name, st.Uid, st.Gid, st.Mode, mode)
		}
	}
	a.do(appRequest{Op: "mkdir", Path: m.Path("group/d"), Flags: 0o777})
	a.close(int(a.do(appRequest{Op: "open", Path: m.Path("group/f"), Flags: unix.O_CREAT | unix.O_RDWR, Len: 0o666}).N))
	if st := a.stat(m.Path("group/d")); st.Gid != 777 || st.Mode&unix.S_ISGID == 0 {
		t.Errorf("directory in a set-group-id directory: gid %d, mode %o", st.Gid, st.Mode)
	}
	if st := a.stat(m.Path("group/f")); st.Gid != 777 || st.Uid != uid {
		t.Errorf("file in a set-group-id directory: uid %d, gid %d", st.Uid, st.Gid)
	}
	a.stop()
}

// TestCopy: copy_file_range(2) becomes reads and writes that the Backend sees.
func TestCopy(t *testing.T) {
	inModes(t, func(t *testing.T, mode Mode) {
		m := newMount(t, mode)
		m.put("from", strings.Repeat("abc", 100_000))
		a := startApp(t, 0)
		from, to := a.open(m.Path("from"), unix.O_RDONLY), a.open(m.Path("to"), unix.O_CREAT|unix.O_RDWR)
		for off := int64(0); off < 300_000; {
			n := a.do(appRequest{Op: "copy", FD: from, Flags: to, Off: off, Len: 300_000 - off}).N
			if n == 0 {
				t.Fatalf("nothing is copied at %d", off)
			}
			off += n
		}
		if m.backing("to") != m.backing("from") {
			t.Error("the copy differs")
		}
		a.fails(syscall.EOPNOTSUPP, appRequest{Op: "open", Path: m.Dir(), Flags: unix.O_TMPFILE | unix.O_RDWR, Len: 0o600})
		a.stop()
	})
}

// TestChurn: applications fight over a few names; nothing is refused, nothing is logged, and nothing is left.
func TestChurn(t *testing.T) {
	m := newMount(t, Cached)
	m.back.set(func() {
		m.back.modeOf = func(path string) (Mode, bool) { return Mode(path[len(path)-1] % 3), true }
	})
	var apps []*app
	for i := range 6 {
		a := startApp(t, 0)
		a.send(appRequest{Op: "churn", Path: m.Dir(), Off: int64(i), Len: 1000})
		apps = append(apps, a)
	}
	for _, a := range apps {
		if p := a.receive(); p.Errno != 0 || p.Err != "" {
			t.Errorf("%v %s", p.Errno, p.Err)
		}
		a.stop()
	}
	if n := strings.Count(m.log.String(), "\n"); n != 1 {
		t.Errorf("log:\n%s", m.log.String())
	}
	open := make(map[string]int)
	m.end()
	for _, c := range m.back.take() {
		switch f := strings.Fields(c); f[0] {
		case "Opened":
			open["handles"]++
		case "Released":
			open["handles"]--
		}
	}
	if open["handles"] != 0 {
		t.Errorf("%d handles more opened than released", open["handles"])
	}
}

func TestMapShared(t *testing.T) {
	inModes(t, func(t *testing.T, mode Mode) {
		m := newMount(t, mode)
		a, b := startApp(t, 0), startApp(t, 0)
		m.put("f", strings.Repeat("-", 8192))
		fa, fb := a.open(m.Path("f"), unix.O_RDWR), b.open(m.Path("f"), unix.O_RDWR)
		ma := int(a.do(appRequest{Op: "mmap", FD: fa, Len: 8192}).N)
		mb := int(b.do(appRequest{Op: "mmap", FD: fb, Len: 8192}).N)
		a.do(appRequest{Op: "mwrite", FD: ma, Off: 5000, Data: []byte("shared")})
		if got := string(b.do(appRequest{Op: "mread", FD: mb, Off: 5000, Len: 6}).Data); got != "shared" {
			t.Errorf("the other mapping shows %q", got)
		}
		if got := string(b.pread(fb, 5000, 6)); got != "shared" {
			t.Errorf("read(2) shows %q", got)
		}
		a.do(appRequest{Op: "msync", FD: ma})
		if got := m.backing("f")[5000:5006]; got != "shared" {
			t.Errorf("the file itself has %q", got)
		}
		// Without msync, and with the descriptor closed before the mapping.
		a.do(appRequest{Op: "mwrite", FD: ma, Off: 10, Data: []byte("late")})
		a.close(fa)
		a.do(appRequest{Op: "munmap", FD: ma})
		if got := m.backing("f")[10:14]; got != "late" {
			t.Errorf("after munmap the file itself has %q", got)
		}
		b.do(appRequest{Op: "munmap", FD: mb})
		a.stop()
		b.stop()
	})
}

func TestReservedName(t *testing.T) {
	m := newMount(t, Cached)
	a := startApp(t, 0)
	f := m.Path(epollHack)
	a.fails(syscall.ENOENT, appRequest{Op: "stat", Path: f})
	a.fails(syscall.EPERM, appRequest{Op: "open", Path: f, Flags: unix.O_CREAT | unix.O_RDWR, Len: 0o644})
	a.fails(syscall.EPERM, appRequest{Op: "mkdir", Path: f, Flags: 0o755})
	a.close(a.open(f+"2", unix.O_CREAT|unix.O_RDWR))
	a.do(appRequest{Op: "mkdir", Path: m.Path("d"), Flags: 0o755})
	a.close(a.open(m.Path("d/"+epollHack), unix.O_CREAT|unix.O_RDWR))
	a.stop()
}
