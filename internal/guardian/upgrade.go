package guardian

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// This file replaces a daemon by one of another binary. The new one is started beside the old one and has said hello
// before the old one is killed; when it does not serve, the old binary goes on.

// upgrade is one request.
type upgrade struct {
	binary string
	answer chan error // capacity 1
}

// standby is a daemon that waits for its turn, or, with err, that is not to get one. The zero value is none.
type standby struct {
	daemon  *daemon
	upgrade *upgrade
	err     error
}

// helloTimeout is how long a new binary may take to say hello.
const helloTimeout = 10 * time.Second

// prepare starts a daemon of another binary; prepared tells of it.
func (g *guardian) prepare(u *upgrade) {
	if g.preparing {
		u.answer <- errors.New("another upgrade is under way")
		return
	}
	d, err := g.start(u.binary)
	if err != nil {
		u.answer <- err
		return
	}
	d.upgrade = u
	g.preparing = true
	go func() {
		s := standby{daemon: d, upgrade: u}
		timer := time.NewTimer(helloTimeout)
		defer timer.Stop()
		select {
		case m, ok := <-d.messages:
			if !ok || m.kind != kindHello || m.name != wireVersion {
				s.err = fmt.Errorf("%s is no litefs that this guardian can start: stop the node and start it with the new binary", u.binary)
			}
		case <-timer.C:
			s.err = fmt.Errorf("%s says nothing within %v", u.binary, helloTimeout)
		}
		g.prepared <- s
	}()
}

// giveUp ends a daemon that does not get its turn.
func (s standby) giveUp(err error) {
	if s.daemon == nil {
		return
	}
	s.daemon.answer(err)
	s.daemon.signal(unix.SIGKILL)
	for m := range s.daemon.messages {
		if m.fd >= 0 {
			_ = unix.Close(m.fd)
		}
	}
	<-s.daemon.exited
	if err := s.daemon.conn.Close(); err != nil {
		s.daemon.g.opt.Logger.Warn("close of the daemon's socket", "error", err)
	}
}

// answer tells whoever asked for the upgrade how it went, once.
func (d *daemon) answer(err error) {
	if d.upgrade != nil {
		d.upgrade.answer <- err
		d.upgrade = nil
	}
}

// endUpgrades ends what waits for an upgrade.
func (g *guardian) endUpgrades() {
	if g.control != nil {
		g.control.close()
	}
	if g.preparing {
		(<-g.prepared).giveUp(errors.New("the node ends"))
	}
}

// socketName is the control socket, in a directory that only its owner can enter.
const socketName = "guardian.sock"

// control listens for upgrades.
type control struct {
	ln      *net.UnixListener
	ctx     context.Context // ends with the guardian
	cancel  context.CancelFunc
	serving sync.WaitGroup
}

// openControl makes the control socket, once.
func (g *guardian) openControl() {
	if g.control != nil || g.opt.Control == "" {
		return
	}
	ln, err := listenIn(g.opt.Control)
	if err != nil {
		g.opt.Logger.Warn("the daemon cannot be upgraded in place", "error", err)
		return
	}
	c := &control{ln: ln}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	g.control = c
	c.serving.Add(1)
	go func() {
		defer c.serving.Done()
		for {
			conn, err := ln.AcceptUnix()
			if err != nil {
				return
			}
			c.serving.Add(1)
			go func() {
				defer c.serving.Done()
				if err := c.serve(conn, g.upgrades); err != nil {
					g.opt.Logger.Warn("upgrade", "error", err)
				}
			}()
		}
	}()
}

func (c *control) close() {
	c.cancel()
	_ = c.ln.Close() // nobody can be told
	c.serving.Wait()
}

// Bounds of a conversation.
const (
	requestTimeout = 5 * time.Second
	upgradeTimeout = 2 * time.Minute
	maxRequest     = 8192
)

// serve answers one request: a line with the path of a binary; the answer is a line, "ok" or what is wrong.
func (c *control) serve(conn *net.UnixConn, upgrades chan<- *upgrade) (err error) {
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := conn.SetReadDeadline(time.Now().Add(requestTimeout)); err != nil {
		return err
	}
	line, err := bufio.NewReader(io.LimitReader(conn, maxRequest)).ReadString('\n')
	if err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	answer := "ok"
	if err := c.ask(strings.TrimSuffix(line, "\n"), upgrades); err != nil {
		answer = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	if err := conn.SetWriteDeadline(time.Now().Add(requestTimeout)); err != nil {
		return err
	}
	_, err = io.WriteString(conn, answer+"\n")
	return err
}

func (c *control) ask(path string, upgrades chan<- *upgrade) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("path %q is not absolute", path)
	}
	u := &upgrade{binary: path, answer: make(chan error, 1)}
	timer := time.NewTimer(upgradeTimeout)
	defer timer.Stop()
	select {
	case upgrades <- u:
	case <-c.ctx.Done():
		return errors.New("the node ends")
	case <-timer.C:
		return errors.New("the guardian is busy")
	}
	select {
	case err := <-u.answer:
		return err
	case <-c.ctx.Done():
		return errors.New("the node ends")
	case <-timer.C:
		return fmt.Errorf("the new daemon does not serve within %v: see the log", upgradeTimeout)
	}
}

// inDirectory calls f with a path of name in dir that fits into a socket's address, however long dir is.
func inDirectory(dir, name string, f func(path string) error) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	return errors.Join(f(fmt.Sprintf("/proc/self/fd/%d/%s", fd, name)), unix.Close(fd))
}

// listenIn makes the control socket, in place of one that a guardian before has left: whoever holds the data directory
// is the only one.
func listenIn(dir string) (ln *net.UnixListener, err error) {
	err = inDirectory(dir, socketName, func(path string) error {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if ln, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"}); err != nil {
			return fmt.Errorf("control socket in %s: %w", dir, err)
		}
		ln.SetUnlinkOnClose(false) // by a path that is closed then
		return nil
	})
	return ln, err
}

// ErrNoGuardian says that no guardian runs for a data directory.
var ErrNoGuardian = errors.New("no guardian runs there")

// Upgrade has the guardian that runs for a data directory replace its daemon by one of the binary at path, and returns
// when that serves. ErrNoGuardian: there is none.
func Upgrade(ctx context.Context, dir, path string) error {
	if !filepath.IsAbs(path) || strings.Contains(path, "\n") {
		return fmt.Errorf("path %q is not an absolute one", path)
	}
	var conn net.Conn
	err := inDirectory(dir, socketName, func(sock string) (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, "unix", sock)
		return err
	})
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("%s: %w", dir, ErrNoGuardian)
	}
	if err != nil {
		return fmt.Errorf("ask the guardian: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	defer conn.Close() //nolint:errcheck // the answer is all that counts
	if _, err := io.WriteString(conn, path+"\n"); err != nil {
		return fmt.Errorf("ask the guardian: %w", err)
	}
	answer, err := bufio.NewReader(io.LimitReader(conn, maxRequest)).ReadString('\n')
	if err != nil {
		return fmt.Errorf("answer of the guardian: %w", errors.Join(err, ctx.Err()))
	}
	if answer != "ok\n" {
		return errors.New(strings.TrimSpace(answer))
	}
	return nil
}
