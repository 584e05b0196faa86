package fuse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Options are the parameters of Mount.
type Options struct {
	Dir           string // mount point: an empty directory
	Root          string // directory shown; one file system, without mounts below it
	AllowOther    bool   // other users may enter; modes are always checked by the kernel
	Debug         bool   // every request to Logger
	NoPassthrough bool   // Passthrough is served as Cached
	Backend       Backend
	Logger        *slog.Logger

	// Locker, if there is one, has the kernel ask for every lock of fcntl(2): see forwarded. Those of flock(2) stay in the
	// kernel. A mount with it cannot be taken over by another session, which would not know who has which lock.
	Locker Locker

	// Shared: a session Beside this one will show the same files. Beside: the Shared session whose files this one shows.
	// See beside.go.
	Shared bool
	Beside *Session

	// Keeper, if there is one, gets what another session needs to go on with the mount when this process dies.
	Keeper Keeper
	// Inherited is the mount of a session before this one: Mount serves it and mounts nothing. Mount owns it.
	Inherited *Inherited
}

// closeTimeout is how long Close waits for the mount to become idle when its context has no deadline.
const closeTimeout = 10 * time.Second

// Session is a live mount.
type Session struct {
	opt    Options
	logger *slog.Logger
	dev    *device
	fs     *loopback
	estate *estate // nil: nobody takes this session's mount over
	server *gofuse.ProtocolServer

	passthrough bool
	why         string // why passthrough is off; "" when it is on

	buffers *bufferPools
	polling atomic.Bool // settlePoll uses the reserved name
	reading atomic.Int32
	workers sync.WaitGroup // goroutines of serve, and relieve
	relief  *relief
	counts  [maxOpcode]atomic.Uint64

	notify struct {
		sync.RWMutex      // read-held while a notification is written
		closed       bool // the descriptor is closed
	}

	ended chan struct{} // closed when everything of the session is gone
}

// Mount shows Options.Root at Options.Dir, and serves it until Close or until it is unmounted from outside.
// CheckMountPoint and Unstale are the caller's business, before. When Mount returns, the file system is usable; one log
// line says which I/O mode is live and why.
func Mount(ctx context.Context, opt Options) (*Session, error) {
	if opt.Backend == nil || opt.Logger == nil {
		return nil, errors.New("mount: Backend and Logger are required")
	}
	if opt.Locker != nil && (opt.Keeper != nil || opt.Inherited != nil) {
		return nil, errors.New("mount: a mount with forwarded locks cannot be taken over: Locker and Keeper exclude each other")
	}
	if err := opt.checkShared(); err != nil {
		return nil, err
	}
	dir, err := resolve(opt.Dir)
	if err != nil {
		return nil, err
	}
	opt.Dir = dir
	root, err := resolve(opt.Root)
	if err != nil {
		return nil, err
	}
	if within(dir, root) {
		return nil, fmt.Errorf("mount point %s is in the directory it would show, %s: every look at it would ask the mount about itself; choose another directory", dir, root)
	}
	s := &Session{opt: opt, logger: opt.Logger.With("mount", dir), buffers: newBufferPools(), relief: newRelief(), ended: make(chan struct{})}
	if err := raiseFileLimit(); err != nil {
		s.logger.Warn("the limit of open files stays low: every file the kernel knows takes one", "err", err)
	}
	if opt.Inherited != nil {
		if err := s.inherit(opt.Inherited); err != nil {
			return nil, errors.Join(fmt.Errorf("take over the mount %s: %w", dir, err), opt.Inherited.Close())
		}
	} else if err := s.mount(ctx); err != nil {
		return nil, err
	}
	if err := s.settlePoll(); err != nil {
		return nil, errors.Join(fmt.Errorf("mount %s: %w", dir, err), s.Close(ctx))
	}
	return s, nil
}

// mount makes the mount and serves it.
func (s *Session) mount(ctx context.Context) error {
	dir := s.opt.Dir
	nodes, err := s.openTable()
	if err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	s.dev, err = openDevice(ctx, dir, s.opt.AllowOther, s.logger)
	if err != nil {
		s.closeTable(nodes)
		return err
	}
	s.fs = newLoopback(s, nodes)
	s.server = gofuse.NewProtocolServer(s.fs, s.protocolOptions())
	if s.opt.Beside != nil {
		err = s.fs.locks.lockThrough(s.opt.Beside.opt.Dir)
	}
	if err == nil {
		err = s.start()
	}
	if err != nil {
		err = errors.Join(err, s.dev.unmount(unix.MNT_DETACH), unix.Close(s.dev.fd), s.estate.close())
		if s.fs.locks != nil {
			s.fs.locks.closeAll()
		}
		s.closeTable(nodes)
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	return nil
}

// inherit serves the mount of a session before this one.
func (s *Session) inherit(in *Inherited) error {
	s.dev, s.estate = in.dev, in.estate
	s.estate.begun()
	s.fs = newLoopback(s, in.nodes)
	s.server = gofuse.NewProtocolServer(s.fs, s.protocolOptions())
	return s.takeOver(in)
}

func (s *Session) protocolOptions() *gofuse.MountOptions {
	off := uint64(gofuse.CAP_NO_OPEN_SUPPORT | gofuse.CAP_FLOCK_LOCKS)
	if s.opt.NoPassthrough {
		off |= gofuse.CAP_PASSTHROUGH
	}
	mmapped := uint64(gofuse.CAP_DIRECT_IO_ALLOW_MMAP)
	if s.opt.Shared { // a mapping of such a file is the page cache of one mount
		mmapped = 0
	}
	level := slog.LevelWarn // requests the ProtocolServer does not understand
	if s.opt.Debug {
		level = slog.LevelDebug // it has one logger for everything
	}
	return &gofuse.MountOptions{
		Name:          fsName,
		MaxWrite:      maxWrite,
		MaxBackground: 64,
		// Every write and every range notification would drop the whole file from the page cache otherwise.
		ExplicitDataCacheControl: true,
		// ENOSYS once; else each write asks for security.capability.
		DisableXAttrs:        true,
		DisableReadDirPlus:   true,
		MaxStackDepth:        2, // 2: the files may be on overlayfs
		DisabledCapabilities: off,
		ExtraCapabilities:    mmapped,
		EnableLocks:          s.opt.Locker != nil,
		Debug:                s.opt.Debug,
		Logger:               slog.NewLogLogger(s.logger.Handler(), level),
		PanicHandler:         s.panicked,
	}
}

// start answers INIT, finds out whether passthrough works, and starts the loop.
func (s *Session) start() error {
	flags, err := s.initialize()
	if err != nil {
		return err
	}
	s.passthrough, s.why = s.probePassthrough(flags)
	if s.opt.Shared && !s.passthrough {
		return fmt.Errorf("two mounts of the same files need passthrough, or the kernel would keep pages of a file twice: %s", s.why)
	}
	if err := s.leave(); err != nil {
		return err
	}
	s.logger.Info("mounted", "root", s.opt.Root, "io", s.ioMode().String(), "why", s.why, "helper", s.dev.helper)
	s.serveAll()
	return nil
}

func (s *Session) ioMode() Mode {
	if s.passthrough {
		return Passthrough
	}
	return Cached
}

func (s *Session) serveAll() {
	for range maxReading {
		s.workers.Add(1)
		go s.serve()
	}
	s.workers.Add(1)
	go s.relieve()
	unpinned := make(chan struct{})
	go func() {
		defer close(unpinned)
		if s.opt.Beside == nil {
			s.fs.nodes.closeUnpinned()
		}
	}()
	go s.finish(unpinned)
}

// settlePoll has the kernel ask once whether files can be polled, and learn that they cannot (ENOSYS).
//
// Otherwise it would ask when this process first opens a file of its own mount with os.Open, which adds the descriptor to
// the runtime's epoll: a system call that the Go scheduler is not told of, waiting for an answer that needs the scheduler.
// A garbage collection at that moment stops the process for good. poll(2) is a call that the scheduler knows.
func (s *Session) settlePoll() error {
	s.polling.Store(true)
	defer s.polling.Store(false)
	fd, err := unix.Open(filepath.Join(s.opt.Dir, epollHack), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("try poll(2) on the mount: %w", err)
	}
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("try poll(2) on the mount: %w", err)
	}
	return nil
}

// probePassthrough tries what the first open would do: kernels differ, privileges and file systems too.
func (s *Session) probePassthrough(flags uint64) (bool, string) {
	if s.opt.NoPassthrough {
		return false, "passthrough is switched off"
	}
	if flags&gofuse.CAP_PASSTHROUGH == 0 {
		return false, "this kernel does not offer passthrough (6.9 or newer is needed)"
	}
	fd, err := s.probeFile()
	if err != nil {
		return false, fmt.Sprintf("no temporary file in %s to try passthrough with: %v", s.opt.Root, err)
	}
	defer unix.Close(fd)
	id, err := s.dev.openBacking(fd)
	switch {
	case errors.Is(err, syscall.EPERM):
		return false, "passthrough needs CAP_SYS_ADMIN in the initial user namespace"
	case errors.Is(err, syscall.ELOOP):
		return false, fmt.Sprintf("the file system of %s is stacked too deep for passthrough: keep the data on a volume", s.opt.Root)
	case err != nil:
		return false, fmt.Sprintf("the kernel refused a file of %s for passthrough: %v", s.opt.Root, err)
	}
	if err := s.dev.closeBacking(id); err != nil {
		return false, fmt.Sprintf("the kernel did not release a file from passthrough: %v", err)
	}
	return true, ""
}

// probeFile makes a file without a name on the file system that is shown.
func (s *Session) probeFile() (int, error) {
	const flags = unix.O_RDWR | unix.O_CLOEXEC
	root := s.fs.nodes.root.fd
	fd, err := unix.Openat(root, ".", unix.O_TMPFILE|flags, 0o600)
	if !errors.Is(err, syscall.EOPNOTSUPP) && !errors.Is(err, syscall.EISDIR) {
		return fd, err
	}
	name := fmt.Sprintf(".%s-probe-%d", fsName, os.Getpid()) // this file system wants a name
	fd, err = unix.Openat(root, name, unix.O_CREAT|unix.O_EXCL|flags, 0o600)
	if err != nil {
		return -1, err
	}
	if err := unix.Unlinkat(root, name, 0); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// finish owns the end: when the loop is over, everything is closed. unpinned is closed at the end of closeUnpinned.
func (s *Session) finish(unpinned <-chan struct{}) {
	s.workers.Wait()
	s.notify.Lock()
	s.notify.closed = true
	s.notify.Unlock()
	s.fs.closeAll()
	<-unpinned
	if err := errors.Join(unix.Close(s.dev.fd), s.estate.close()); err != nil {
		s.logger.Error("close of the FUSE device", "err", err)
	}
	if s.estate != nil {
		if err := dropKept(s.opt.Keeper); err != nil {
			s.logger.Error("the end of the mount is not told", "err", err)
		}
	}
	close(s.ended)
}

// Done is closed when the session is over: the kernel has ended it and every goroutine and descriptor of it is gone.
func (s *Session) Done() <-chan struct{} { return s.ended }

// Wait waits for the end of the session, by Close or by an unmount from outside.
func (s *Session) Wait(ctx context.Context) error {
	select {
	case <-s.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the unmount of %s: %w", s.opt.Dir, ctx.Err())
	}
}

// Close unmounts and waits for the end of the session. While files are open in the mount it waits for them, until ctx
// is done (10 s when it has no deadline); then it detaches the mount, fails their requests, and returns an error that
// wraps syscall.EBUSY: descriptors in Passthrough mode go on to read and write without the daemon.
func (s *Session) Close(ctx context.Context) error {
	idle := ctx
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		idle, cancel = context.WithTimeout(ctx, closeTimeout)
		defer cancel()
	}
	err := s.dev.unmountIdle(idle, s.fs.awaitReleases)
	if err == nil {
		// Unmounted here or from outside, perhaps lazily: then the connection lives as long as its open files.
		if err = s.Wait(idle); err == nil {
			return nil
		}
	}
	users, uerr := usersOf(s.dev.mount, s.opt.Dir)
	s.logger.Warn("the mount is still in use and is taken away by force", "users", users, "err", errors.Join(err, uerr))
	err = fmt.Errorf("%w: still used by %v", err, users)
	if aerr := s.dev.abort(); aerr != nil {
		return errors.Join(err, aerr)
	}
	if ok, merr := s.dev.mounted(); merr != nil {
		err = errors.Join(err, merr)
	} else if ok {
		if derr := s.dev.unmount(unix.MNT_DETACH); derr != nil {
			err = errors.Join(err, fmt.Errorf("detach %s: %w", s.opt.Dir, derr))
		}
	}
	// The abort has failed every read(2) of the loop; what remains are calls of the Backend.
	rest, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	return errors.Join(err, s.Wait(rest))
}

// Passthrough reports whether Passthrough is live on this mount, and why not.
func (s *Session) Passthrough() (live bool, why string) { return s.passthrough, s.why }

// Dir is the mount point, absolute and without symbolic links.
func (s *Session) Dir() string { return s.opt.Dir }

// Path returns where the mount shows a path of the tree.
func (s *Session) Path(path string) string { return filepath.Join(s.opt.Dir, path) }

func (s *Session) panicked(v any) gofuse.Status {
	s.logger.Error("panic while serving a request", "panic", v, "stack", string(stack()))
	return gofuse.EIO
}

// wantFiles is the limit of open files that is asked for: one for each inode the kernel remembers and for each handle.
const wantFiles = 1 << 20

func raiseFileLimit() error {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return os.NewSyscallError("getrlimit", err)
	}
	if lim.Cur >= wantFiles {
		return nil
	}
	want := unix.Rlimit{Cur: wantFiles, Max: max(lim.Max, wantFiles)}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &want) == nil {
		return nil
	}
	want = unix.Rlimit{Cur: lim.Max, Max: lim.Max} // only root may raise the hard limit
	return os.NewSyscallError("setrlimit", unix.Setrlimit(unix.RLIMIT_NOFILE, &want))
}
