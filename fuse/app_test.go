package fuse

import (
	"bufio"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "github.com/mattn/go-sqlite3"
	"golang.org/x/sys/unix"
)

// An application of the mount is a child process: this test binary again, which obeys one JSON request a line. The
// process that serves the mount must not use it the way an application does.

const appEnv = "LITEFS_FUSE_TEST_APP"

func TestMain(m *testing.M) {
	switch os.Getenv(appEnv) {
	case "app":
		serveApp(os.Stdin, os.Stdout)
	case "daemon":
		runDaemon()
	default:
		os.Exit(m.Run())
	}
}

type appRequest struct {
	Op    string
	Path  string
	Path2 string
	FD    int
	Flags int
	Off   int64
	Len   int64
	Data  []byte
	SQL   string
}

type appReply struct {
	N     int64
	Data  []byte
	Names []string
	Stat  unix.Stat_t
	Errno syscall.Errno
	Err   string
}

// app is a running child.
type app struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	pid int
}

// startApp starts an application, as another user when uid is not 0.
func startApp(t testing.TB, uid uint32) *app {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), appEnv+"=app")
	cmd.Stderr = os.Stderr
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	a := &app{t: t, cmd: cmd, in: in, out: bufio.NewReaderSize(out, 1<<20), pid: cmd.Process.Pid}
	t.Cleanup(a.stop)
	return a
}

// stop ends the child and waits for it.
func (a *app) stop() {
	if a.cmd == nil {
		return
	}
	a.in.Close()
	ended := make(chan error, 1)
	go func(cmd *exec.Cmd) { ended <- cmd.Wait() }(a.cmd)
	a.cmd = nil
	select {
	case err := <-ended:
		if err != nil {
			a.t.Errorf("application: %v", err)
		}
	case <-time.After(patience):
		a.t.Error("application hangs") // the end of the mount sets it free
	}
}

// send starts a request; receive waits for its reply.
func (a *app) send(r appRequest) {
	b, err := json.Marshal(r)
	if err != nil {
		a.t.Fatal(err)
	}
	if _, err := a.in.Write(append(b, '\n')); err != nil {
		a.t.Fatalf("%s: %v", r.Op, err)
	}
}

func (a *app) receive() appReply {
	a.t.Helper()
	line, err := a.out.ReadBytes('\n')
	if err != nil {
		a.t.Fatalf("application has ended: %v", err)
	}
	var p appReply
	if err := json.Unmarshal(line, &p); err != nil {
		a.t.Fatalf("%v: %s", err, line)
	}
	return p
}

func (a *app) try(r appRequest) appReply {
	a.t.Helper()
	a.send(r)
	return a.receive()
}

func (a *app) do(r appRequest) appReply {
	a.t.Helper()
	p := a.try(r)
	if p.Errno != 0 || p.Err != "" {
		a.t.Fatalf("%s %s %s: %v %s", r.Op, r.Path, r.SQL, p.Errno, p.Err)
	}
	return p
}

func (a *app) fails(want syscall.Errno, r appRequest) {
	a.t.Helper()
	if p := a.try(r); p.Errno != want {
		a.t.Errorf("%s %s: got %v (%d) %s, want %v", r.Op, r.Path, p.Errno, p.Errno, p.Err, want)
	}
}

func (a *app) open(path string, flags int) int {
	a.t.Helper()
	return int(a.do(appRequest{Op: "open", Path: path, Flags: flags, Len: 0o644}).N)
}

func (a *app) close(fd int) { a.t.Helper(); a.do(appRequest{Op: "close", FD: fd}) }

func (a *app) pread(fd int, off, n int64) []byte {
	a.t.Helper()
	return a.do(appRequest{Op: "pread", FD: fd, Off: off, Len: n}).Data
}

func (a *app) pwrite(fd int, off int64, data string) {
	a.t.Helper()
	if n := a.do(appRequest{Op: "pwrite", FD: fd, Off: off, Data: []byte(data)}).N; n != int64(len(data)) {
		a.t.Fatalf("wrote %d bytes, want %d", n, len(data))
	}
}

func (a *app) stat(path string) unix.Stat_t {
	a.t.Helper()
	return a.do(appRequest{Op: "stat", Path: path}).Stat
}

func (a *app) exec(sql string) { a.t.Helper(); a.do(appRequest{Op: "exec", SQL: sql}) }

func (a *app) query(sql string) string {
	a.t.Helper()
	return strings.Join(a.do(appRequest{Op: "query", SQL: sql}).Names, "|")
}

// --- the child ---

type appState struct {
	db   *sql.DB
	maps map[int][]byte
}

func serveApp(in io.Reader, out io.Writer) {
	runtime.LockOSThread()
	s := &appState{maps: make(map[int][]byte)}
	r := bufio.NewReaderSize(in, 1<<20)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			if s.db != nil {
				s.db.Close()
			}
			return
		}
		var req appRequest
		var rep appReply
		if err := json.Unmarshal(line, &req); err != nil {
			rep.Err = err.Error()
		} else if err := s.run(req, &rep); err != nil {
			rep.Err = err.Error()
			errors.As(err, &rep.Errno)
		}
		b, err := json.Marshal(rep)
		if err != nil {
			fmt.Fprintln(os.Stderr, "application:", err)
			return
		}
		if _, err := out.Write(append(b, '\n')); err != nil {
			return
		}
	}
}

func (s *appState) run(r appRequest, p *appReply) error {
	var err error
	n := 0
	switch r.Op {
	case "open":
		n, err = unix.Open(r.Path, r.Flags|unix.O_CLOEXEC, uint32(r.Len))
		p.N = int64(n)
	case "close":
		err = unix.Close(r.FD)
	case "umask":
		p.N = int64(unix.Umask(r.Flags))
	case "pread":
		b := make([]byte, r.Len)
		n, err = unix.Pread(r.FD, b, r.Off)
		p.Data = b[:max(n, 0)]
	case "pwrite":
		n, err = unix.Pwrite(r.FD, r.Data, r.Off)
		p.N = int64(n)
	case "fill": // Len bytes of one value at Off
		b := make([]byte, r.Len)
		for i := range b {
			b[i] = byte(r.Flags)
		}
		n, err = unix.Pwrite(r.FD, b, r.Off)
		p.N = int64(n)
	case "write":
		n, err = unix.Write(r.FD, r.Data)
		p.N = int64(n)
	case "ftruncate":
		err = unix.Ftruncate(r.FD, r.Len)
	case "truncate":
		err = unix.Truncate(r.Path, r.Len)
	case "fsync":
		err = unix.Fsync(r.FD)
	case "fdatasync":
		err = unix.Fdatasync(r.FD)
	case "fallocate":
		err = unix.Fallocate(r.FD, uint32(r.Flags), r.Off, r.Len)
	case "lseek":
		p.N, err = unix.Seek(r.FD, r.Off, r.Flags)
	case "stat":
		err = unix.Lstat(r.Path, &p.Stat)
	case "fstat":
		err = unix.Fstat(r.FD, &p.Stat)
	case "access":
		err = unix.Access(r.Path, uint32(r.Flags))
	case "statfs":
		var st unix.Statfs_t
		err = unix.Statfs(r.Path, &st)
		p.N = int64(st.Blocks)
	case "mkdir":
		err = unix.Mkdir(r.Path, uint32(r.Flags))
	case "rmdir":
		err = unix.Rmdir(r.Path)
	case "unlink":
		err = unix.Unlink(r.Path)
	case "rename":
		err = unix.Renameat2(unix.AT_FDCWD, r.Path, unix.AT_FDCWD, r.Path2, uint(r.Flags))
	case "link":
		err = unix.Link(r.Path, r.Path2)
	case "symlink":
		err = unix.Symlink(r.Path2, r.Path)
	case "readlink":
		var target string
		target, err = os.Readlink(r.Path)
		p.Names = []string{target}
	case "mknod":
		err = unix.Mknod(r.Path, uint32(r.Flags), 0)
	case "chmod":
		err = unix.Chmod(r.Path, uint32(r.Flags))
	case "chown":
		err = unix.Lchown(r.Path, r.Flags, int(r.Len))
	case "utimes":
		err = unix.UtimesNanoAt(unix.AT_FDCWD, r.Path, []unix.Timespec{{Sec: r.Off}, {Sec: r.Len}}, unix.AT_SYMLINK_NOFOLLOW)
	case "getxattr":
		_, err = unix.Getxattr(r.Path, "user.x", make([]byte, 10))
	case "readdir":
		err = readNames(r.Path, p)
	case "mmap":
		var m []byte
		m, err = unix.Mmap(r.FD, 0, int(r.Len), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err == nil {
			p.N = int64(len(s.maps) + 1)
			s.maps[int(p.N)] = m
		}
	case "mread":
		p.Data = append([]byte(nil), s.maps[r.FD][r.Off:r.Off+r.Len]...)
	case "mwrite":
		copy(s.maps[r.FD][r.Off:], r.Data)
	case "msync":
		err = unix.Msync(s.maps[r.FD], unix.MS_SYNC)
	case "munmap":
		err = unix.Munmap(s.maps[r.FD])
		delete(s.maps, r.FD)
	case "copy": // copy_file_range of Len bytes from FD to Flags
		n, err = unix.CopyFileRange(r.FD, &r.Off, r.Flags, nil, int(r.Len), 0)
		p.N = int64(n)
	case "churn":
		err = churn(r.Path, r.Off, int(r.Len))
	case "time": // the Data operation, Len times; N = nanoseconds
		p.N, err = s.time(r)
	case "lock": // OFD write lock of one byte, without waiting
		err = unix.FcntlFlock(uintptr(r.FD), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: r.Off, Len: 1})
	case "fcntl": // command Flags for a lock of kind Data on Len bytes at Off; N = the kind found
		lk := unix.Flock_t{Type: int16(r.Data[0]), Start: r.Off, Len: r.Len}
		err = unix.FcntlFlock(uintptr(r.FD), r.Flags, &lk)
		p.N = int64(lk.Type)
	case "sqlite":
		err = s.openSQLite(r.Path)
	case "sqliteclose":
		err = s.db.Close()
		s.db = nil
	case "exec":
		_, err = s.db.Exec(r.SQL)
	case "execn": // the same statement many times
		for range r.Len {
			if _, err = s.db.Exec(r.SQL); err != nil {
				break
			}
		}
	case "query":
		p.Names, err = queryStrings(s.db, r.SQL)
	default:
		err = fmt.Errorf("unknown operation %q", r.Op)
	}
	return err
}

func (s *appState) openSQLite(path string) error {
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(1)
	s.db = db
	return db.Ping()
}

func queryStrings(db *sql.DB, q string) ([]string, error) {
	rows, err := db.Query(q)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, rows.Err()
}

func readNames(path string, p *appReply) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	p.Names, err = f.Readdirnames(-1)
	return err
}

// churn makes, opens, writes, reads, renames and removes a few files again and again, as the others do at the same
// time. What another one has just removed is no error.
func churn(dir string, seed int64, rounds int) error {
	rnd := rand.New(rand.NewSource(seed))
	name := func() string { return filepath.Join(dir, fmt.Sprint("f", rnd.Intn(4))) }
	for range rounds {
		var err error
		switch rnd.Intn(6) {
		case 0, 1, 2:
			var fd int
			fd, err = unix.Open(name(), unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC|rnd.Intn(2)*unix.O_TRUNC, 0o644)
			if err != nil {
				break
			}
			_, werr := unix.Pwrite(fd, []byte("0123456789"), rnd.Int63n(10000))
			_, rerr := unix.Pread(fd, make([]byte, 5000), 0)
			err = errors.Join(werr, rerr, unix.Close(fd))
		case 3:
			err = unix.Rename(name(), name())
		case 4:
			err = unix.Unlink(name())
		case 5:
			var st unix.Stat_t
			err = unix.Stat(name(), &st)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

func (s *appState) time(r appRequest) (int64, error) {
	op := appRequest{Op: string(r.Data), FD: r.FD, Off: r.Off, Path: r.Path, SQL: r.SQL}
	switch op.Op {
	case "pwrite":
		op.Data = make([]byte, 4096)
	case "pread":
		op.Len = 4096
	}
	start := time.Now()
	for range r.Len {
		if err := s.run(op, &appReply{}); err != nil {
			return 0, err
		}
	}
	return time.Since(start).Nanoseconds(), nil
}
