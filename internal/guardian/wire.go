package guardian

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// kind is the first byte of a message; a name follows.
type kind byte

const (
	// From the daemon.
	kindHello kind = 'o' // the first one; the name is wireVersion
	kindKeep  kind = 'k' // hold this descriptor under the name
	kindDrop  kind = 'd' // let go of the one of that name
	kindServe kind = 'v' // the mount answers
	kindReady kind = 'r' // applications may start
	kindUntil kind = 'u' // the name is a time by clock; past it, this process is to be dead. "": no time
	kindBye   kind = 'b' // the end that comes now is meant

	// From the guardian.
	kindHave  kind = 'h' // this descriptor was kept under the name
	kindDying kind = 'y' // a daemon before, whose process id is the name, has been killed and is still there
	kindStart kind = 's' // that was all
)

// wireVersion is what a daemon of another version does not say.
const wireVersion = "1"

// maxName bounds the name in a message, in bytes.
const maxName = 255

// message is one packet on the socket between guardian and daemon.
type message struct {
	kind kind
	name string
	fd   int // with kindKeep and kindHave; else -1
}

// errMessage is a packet that is no message.
var errMessage = errors.New("not a message of a guardian or its daemon")

// send writes m. The descriptor stays the caller's. When it returns, the packet is with the kernel: the end of this
// process does not take it back.
func send(c *net.UnixConn, m message) error {
	if len(m.name) > maxName {
		return fmt.Errorf("name of %d bytes, want %d at most: %w", len(m.name), maxName, errMessage)
	}
	var rights []byte
	if m.fd >= 0 {
		rights = unix.UnixRights(m.fd)
	}
	if _, _, err := c.WriteMsgUnix(append([]byte{byte(m.kind)}, m.name...), rights, nil); err != nil {
		return fmt.Errorf("send %q: %w", m.kind, err)
	}
	return nil
}

// receive reads the next message; the caller owns its descriptor. io.EOF: the other end is gone.
func receive(c *net.UnixConn) (message, error) {
	buf, oob := make([]byte, 1+maxName+1), make([]byte, unix.CmsgSpace(4*4))
	n, oobn, flags, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return message{}, err
	}
	fds, err := rightsOf(oob[:oobn])
	if err != nil {
		return message{}, err
	}
	if n == 0 && len(fds) == 0 {
		return message{}, io.EOF
	}
	m := message{fd: -1}
	if n > 0 {
		m.kind, m.name = kind(buf[0]), string(buf[1:n])
	}
	carries := m.kind == kindKeep || m.kind == kindHave
	if n == 0 || n > 1+maxName || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || carries != (len(fds) == 1) || len(fds) > 1 {
		for _, fd := range fds {
			err = errors.Join(err, unix.Close(fd))
		}
		return message{}, errors.Join(fmt.Errorf("%d bytes, %d descriptors: %w", n, len(fds), errMessage), err)
	}
	if carries {
		m.fd = fds[0]
	}
	return m, nil
}

func rightsOf(oob []byte) (fds []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("descriptors of a message: %w", err)
	}
	for i := range msgs {
		got, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return nil, fmt.Errorf("descriptors of a message: %w", err)
		}
		for _, fd := range got {
			unix.CloseOnExec(fd)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

// connOf makes a connection of a socket's descriptor, and owns that.
func connOf(f *os.File) (*net.UnixConn, error) {
	c, err := net.FileConn(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("socket of guardian and daemon: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("socket of guardian and daemon: it is a %T", c), c.Close())
	}
	return u, nil
}

// pair makes a connected pair of sockets: ours, and a file for the daemon.
func pair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket of guardian and daemon: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "guardian")
	ours, err := connOf(os.NewFile(uintptr(fds[0]), "daemon"))
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return ours, theirs, nil
}

// clock is the time since the machine started, that it slept through included (CLOCK_BOOTTIME): the same for every
// process, and set by nobody.
func clock() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("time since the start of the machine: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}
