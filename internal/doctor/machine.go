package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/fuse"
	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/daemon"
)

// version is that of a kernel.
type version struct{ major, minor int }

// release reads the kernel's version; the text is as the kernel gives it.
func release() (v version, text string) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return version{}, err.Error()
	}
	text = unix.ByteSliceToString(u.Release[:])
	return parseRelease(text), text
}

// parseRelease takes the first two numbers; zero when they are none.
func parseRelease(text string) (v version) {
	if n, err := fmt.Sscanf(text, "%d.%d", &v.major, &v.minor); err != nil || n != 2 {
		return version{}
	}
	return v
}

func (v version) atLeast(w version) bool {
	return v.major > w.major || v.major == w.major && v.minor >= w.minor
}

// passthroughSince is the first kernel in which files of FUSE pass to the files behind them.
var passthroughSince = version{6, 9}

func kernel(v version, text string) Finding {
	if !v.atLeast(passthroughSince) {
		return warn("kernel", "Linux "+text+" has no FUSE passthrough: files are cached instead, and slower",
			"run Linux 6.9 or later")
	}
	return ok("kernel", "Linux "+text)
}

func deviceFuse() Finding {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		do := "load the module: modprobe fuse; in a container give it the device: --device /dev/fuse"
		if errors.Is(err, os.ErrPermission) {
			do = "run as root, or give this user the device /dev/fuse"
		}
		return fail("fuse", err.Error(), do)
	}
	if err := f.Close(); err != nil {
		return fail("fuse", err.Error(), "")
	}
	return ok("fuse", "/dev/fuse opens")
}

// privileges looks for CAP_SYS_ADMIN, which mount(2) and the ioctls of passthrough ask for.
func privileges() Finding {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return fail("privileges", err.Error(), "mount /proc")
	}
	if capabilities(b)&(1<<unix.CAP_SYS_ADMIN) == 0 {
		return fail("privileges", "this process lacks CAP_SYS_ADMIN, which mounting needs",
			"run as root; in a container: --cap-add SYS_ADMIN")
	}
	return ok("privileges", "CAP_SYS_ADMIN is there")
}

// capabilities reads the effective ones out of /proc/PID/status.
func capabilities(status []byte) uint64 {
	for line := range bytes.Lines(status) {
		if rest, found := bytes.CutPrefix(line, []byte("CapEff:")); found {
			n, err := strconv.ParseUint(string(bytes.TrimSpace(rest)), 16, 64)
			if err != nil {
				return 0
			}
			return n
		}
	}
	return 0
}

// trialTimeout bounds the life of the trial node.
const trialTimeout = 30 * time.Second

// trial runs a node of its own beside the data directory, on the file system where the databases will be.
func trial(ctx context.Context, o Options) (f Finding) {
	const check = "trial mount"
	if !o.Config.Fuse.Passthrough {
		return ok(check, "not made: fuse.passthrough is off")
	}
	dir, err := os.MkdirTemp(existingParent(o.Config.Data.Dir), ".litefs-doctor-")
	if err != nil {
		return fail(check, err.Error(), "make the parent of data.dir writable")
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil && f.Level != Fail {
			f = fail(check, err.Error(), "remove "+dir)
		}
	}()
	cfg, err := config.Default(filepath.Join(dir, "mnt"), config.Source{Set: []string{"http.addr=127.0.0.1:0"}, LookupEnv: noEnv})
	if err != nil {
		return fail(check, err.Error(), "")
	}
	ctx, cancel := context.WithTimeout(ctx, trialTimeout)
	defer cancel()
	node, err := daemon.Start(ctx, cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return fail(check, err.Error(), "mend what the line says")
	}
	live, reason := node.Passthrough()
	if err := node.Close(ctx); err != nil {
		return fail(check, "the trial node does not stop: "+err.Error(), "umount "+cfg.Fuse.Dir)
	}
	if !live {
		return warn(check, "mounted without passthrough: "+reason, "see docs/ARCHITECTURE.md: everything works, and slower")
	}
	return ok(check, "mounted with passthrough, and unmounted")
}

func noEnv(string) (string, bool) { return "", false }

// existingParent is the nearest directory on the way to path that is there.
func existingParent(path string) string {
	for {
		if fi, err := os.Stat(path); err == nil && fi.IsDir() || path == filepath.Dir(path) {
			return path
		}
		path = filepath.Dir(path)
	}
}

// unfit names file systems on which the databases should not lie, and why.
var unfit = map[int64]string{
	unix.NFS_SUPER_MAGIC:       "NFS: its sync and its locks are another machine's",
	unix.SMB_SUPER_MAGIC:       "SMB: its sync and its locks are another machine's",
	unix.SMB2_SUPER_MAGIC:      "SMB: its sync and its locks are another machine's",
	unix.V9FS_MAGIC:            "9p: its sync is another machine's",
	unix.TMPFS_MAGIC:           "tmpfs: it is gone with the power, and with the container",
	unix.RAMFS_MAGIC:           "ramfs: it is gone with the power",
	unix.OVERLAYFS_SUPER_MAGIC: "overlayfs: in a container it goes with the container",
}

// lowSpace is how many free bytes are few.
const lowSpace = 1 << 30

func dataDir(dir string) (a []Finding) {
	parent := existingParent(dir)
	if err := unix.Access(parent, unix.W_OK|unix.X_OK); err != nil {
		a = append(a, fail("data.dir", fmt.Sprintf("%s is not writable: %v", parent, err), "choose another data.dir, or change its owner"))
	}
	if fi, err := os.Stat(dir); err == nil && fi.Mode()&0o007 != 0 {
		a = append(a, warn("data.dir", fmt.Sprintf("%s has mode %04o: users of this machine reach the databases past the mount", dir, fi.Mode().Perm()), "chmod 700 "+dir))
	}
	var st unix.Statfs_t
	if err := unix.Statfs(parent, &st); err != nil {
		return append(a, fail("data.dir", fmt.Sprintf("statfs %s: %v", parent, err), ""))
	}
	if why, bad := unfit[int64(st.Type)]; bad {
		a = append(a, warn("data.dir", dir+" is on "+why, "choose a data.dir on a local disk or a volume"))
	}
	free := uint64(st.Bsize) * st.Bavail
	if free < lowSpace {
		a = append(a, warn("disk", fmt.Sprintf("%d MB are free at %s", free>>20, parent), "make room: databases and their log need it, and a full disk makes commits fail"))
	} else {
		a = append(a, ok("disk", fmt.Sprintf("%d MB are free at %s", free>>20, parent)))
	}
	return a
}

func mountPoint(dir string) Finding {
	const check = "fuse.dir"
	if config.IsMounted(dir) {
		return ok(check, dir+" is mounted: a node runs there, or has left it")
	}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return ok(check, dir+" is not there: it will be made")
	}
	if err := fuse.CheckMountPoint(dir); err != nil {
		return fail(check, err.Error(), "choose another fuse.dir, or empty it")
	}
	return ok(check, dir+" is an empty directory")
}

// limits looks at what the kernel grants a process.
func limits() (a []Finding) {
	const watches, files = 8192, 16384
	if n, err := readNumber("/proc/sys/fs/inotify/max_user_watches"); err != nil {
		a = append(a, warn("inotify", err.Error(), ""))
	} else if n < watches {
		a = append(a, warn("inotify", fmt.Sprintf("%d watches a user: each database needs one", n), fmt.Sprintf("sysctl -w fs.inotify.max_user_watches=%d", watches)))
	} else {
		a = append(a, ok("inotify", fmt.Sprintf("%d watches a user", n)))
	}
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return append(a, warn("open files", err.Error(), ""))
	}
	if r.Max < files {
		return append(a, warn("open files", fmt.Sprintf("at most %d: each database takes up to ten", r.Max), "raise it: ulimit -Hn, or LimitNOFILE in systemd"))
	}
	return append(a, ok("open files", fmt.Sprintf("at most %d", r.Max)))
}

func readNumber(path string) (uint64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
}

// clock asks whether somebody keeps the clock right. Leases do not depend on it; lag and timestamps do.
func clock() Finding {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	switch {
	case err != nil:
		return warn("clock", "adjtimex: "+err.Error(), "")
	case state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0:
		return warn("clock", "nobody says that the clock is right: the lag that replicas show may be off", "run chrony or systemd-timesyncd")
	}
	return ok("clock", "synchronized")
}
