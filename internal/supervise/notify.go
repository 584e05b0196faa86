package supervise

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// NotifySocket is the environment variable in which systemd names the socket
// that a service with Type=notify tells its state (sd_notify(3)).
const NotifySocket = "NOTIFY_SOCKET"

// States that systemd knows.
const (
	NotifyReady    = "READY=1"
	NotifyStopping = "STOPPING=1"
)

// Notify tells the state to the socket at path. "" is nobody: nothing happens.
// A path that begins with @ is an abstract one.
func Notify(path, state string) (err error) {
	if path == "" {
		return nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("tell %s %s=%q: %w", state, NotifySocket, path, err)
		}
	}()
	if path[0] != '/' && path[0] != '@' {
		return fmt.Errorf("not a path of a socket: %w", os.ErrInvalid)
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	_, err = conn.Write([]byte(state))
	return errors.Join(err, conn.Close())
}
