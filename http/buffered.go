package http

import (
	"bufio"
	"net"
)

// bufferedListener gives connections whose reads are buffered. net/http reads the frames of HTTP/2 with
// two system calls each, and a replica sends several small ones for each transaction that it gets. TLS
// has a buffer of its own.
type bufferedListener struct{ net.Listener }

func (l bufferedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &bufferedConn{Conn: c, r: bufio.NewReaderSize(c, 4<<10)}, nil
}

// bufferedConn is read by one goroutine at a time, as net/http does.
type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c *bufferedConn) Read(b []byte) (int, error) { return c.r.Read(b) }
