package guardian

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// variable tells a daemon which descriptor is its socket to the guardian.
const variable = "LITEFS_GUARDIAN_FD"

// Client is the daemon's end.
type Client struct {
	conn *net.UnixConn
	pid  int
	dead []int         // process ids of daemons that were killed and may still be there
	gone chan struct{} // closed when the guardian has ended

	until time.Duration // the deadline of the daemon before, by clock; 0: it had none

	mu   sync.Mutex
	kept map[string]int // of the daemon before, still to be taken
	held map[string]bool
}

// FromEnvironment returns the guardian that has started this process, nil if none has. What the daemon before has left
// is there when it returns.
func FromEnvironment() (*Client, error) {
	v, ok := os.LookupEnv(variable)
	if !ok {
		return nil, nil
	}
	// Programs that this process starts have no guardian.
	if err := os.Unsetenv(variable); err != nil {
		return nil, err
	}
	fd, err := strconv.Atoi(v)
	if err != nil {
		return nil, fmt.Errorf("environment variable %s: %w", variable, err)
	}
	unix.CloseOnExec(fd)
	// The name of /proc/self/exe, by which this process was started, is no name.
	if err := os.WriteFile("/proc/self/comm", []byte("litefs"), 0); err != nil {
		return nil, fmt.Errorf("name the process: %w", err)
	}
	conn, err := connOf(os.NewFile(uintptr(fd), "guardian"))
	if err != nil {
		return nil, err
	}
	c := &Client{conn: conn, pid: os.Getppid(), gone: make(chan struct{}), kept: make(map[string]int), held: make(map[string]bool)}
	if err := send(conn, message{kindHello, wireVersion, -1}); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	for {
		m, err := receive(conn)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("what the guardian has kept: %w", err), conn.Close())
		}
		if m.kind == kindStart {
			break
		}
		switch m.kind {
		case kindHave:
			c.kept[m.name], c.held[m.name] = m.fd, true
		case kindDying:
			pid, err := strconv.Atoi(m.name)
			if err != nil {
				return nil, errors.Join(fmt.Errorf("process id of the daemon before: %w", err), conn.Close())
			}
			c.dead = append(c.dead, pid)
		case kindUntil:
			ns, err := strconv.ParseInt(m.name, 10, 64)
			if err != nil {
				return nil, errors.Join(fmt.Errorf("deadline of the daemon before: %w", err), conn.Close())
			}
			c.until = time.Duration(ns)
		}
	}
	go c.watch()
	return c, nil
}

// watch ends with the guardian, or with Close.
func (c *Client) watch() {
	defer close(c.gone)
	for {
		m, err := receive(c.conn)
		if err != nil && !errors.Is(err, errMessage) {
			return
		}
		if m.fd >= 0 && err == nil {
			_ = unix.Close(m.fd) // nothing carries one now
		}
	}
}

// Gone is closed when the guardian has ended, which nobody but it could mend.
func (c *Client) Gone() <-chan struct{} { return c.gone }

// Dying lists daemons before this one that were killed while they waited for their own mount. Their writes to it may still
// come, until their wait is answered.
func (c *Client) Dying() []int { return c.dead }

// PID is the guardian's process.
func (c *Client) PID() int { return c.pid }

// Keep gives the guardian a copy of a descriptor, which replaces one of the same name. When it returns, the copy outlives
// this process.
func (c *Client) Keep(name string, fd int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := send(c.conn, message{kindKeep, name, fd}); err != nil {
		return err
	}
	c.held[name] = true
	return nil
}

// Drop makes the guardian let go of a copy, if it has one.
func (c *Client) Drop(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.held[name] {
		return nil
	}
	delete(c.held, name)
	return ignoreGone(send(c.conn, message{kindDrop, name, -1}))
}

// ignoreGone takes the end of the guardian for no error: what it held is gone with it.
func ignoreGone(err error) error {
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return nil
	}
	return err
}

// Kept returns what the daemon before has left under a name. It is the caller's from the first call on.
func (c *Client) Kept(name string) (fd int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fd, ok = c.kept[name]
	delete(c.kept, name)
	return fd, ok
}

// Names lists what the guardian holds.
func (c *Client) Names() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.held))
}

// Serving tells the guardian that the mount answers: from now on this process is worth another one.
func (c *Client) Serving() error { return send(c.conn, message{kindServe, "", -1}) }

// SetDeadline has the guardian kill this process, and start the next one, when d has passed and no other deadline was set
// meanwhile. A daemon that is stopped, or hangs, cannot see that its lease has run out; the one after it does. d <= 0:
// there is no deadline.
func (c *Client) SetDeadline(d time.Duration) error {
	name := ""
	if d > 0 {
		now, err := clock()
		if err != nil {
			return err
		}
		name = strconv.FormatInt(int64(now+d), 10)
	}
	return send(c.conn, message{kindUntil, name, -1})
}

// DeadlineBefore returns how much was left when it is called of the deadline of the daemon before this one, which has
// died: less than 0 when it has passed. ok is false if there was none.
func (c *Client) DeadlineBefore() (left time.Duration, ok bool) {
	now, err := clock()
	if err != nil || c.until == 0 {
		return 0, false
	}
	return c.until - now, true
}

// Ready tells the guardian that applications may start.
func (c *Client) Ready() error { return send(c.conn, message{kindReady, "", -1}) }

// Bye tells the guardian that the end of this process is meant: nothing is to be started again.
func (c *Client) Bye() error { return ignoreGone(send(c.conn, message{kindBye, "", -1})) }
