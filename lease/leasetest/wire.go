package leasetest

import (
	"errors"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"
)

// Wire is what a proxy must know of a protocol that is not HTTP: connections that stay, with one request
// after the other on them.
type Wire struct {
	// IsRequest and IsAnswer tell bytes that hold (a part of) a request, or an answer to one, from what
	// keeps the connection.
	IsRequest, IsAnswer func([]byte) bool

	Complaint []byte // what a server that fails says before it ends a connection
}

// wireProxy is a proxy for connections of any protocol.
type wireProxy struct {
	faults
	Wire
	base     string
	target   string // host:port
	listener net.Listener
	wg       sync.WaitGroup

	mu    sync.Mutex // guards what is below
	conns map[net.Conn]struct{}
	ended chan struct{} // closed at the end of the test
}

func newWireProxy(t *testing.T, target string, w Wire) *wireProxy {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &wireProxy{
		Wire: w, target: u.Host, listener: l, base: u.Scheme + "://" + l.Addr().String(),
		faults: newFaults(), conns: make(map[net.Conn]struct{}), ended: make(chan struct{}),
	}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		close(p.ended)
		p.cutAll()
		p.wg.Wait()
	})
	return p
}

func (p *wireProxy) url() string { return p.base }

// set ends connections that the fault before has silenced: what was lost on them does not come again.
func (p *wireProxy) set(f fault) {
	if p.now() == hang {
		p.cutAll()
	}
	p.faults.set(f)
}

func (p *wireProxy) cutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close() // cut is what it is for
	}
	clear(p.conns)
}

// keep notes a connection that the proxy ends with itself.
func (p *wireProxy) keep(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[c] = struct{}{}
	select {
	case <-p.ended:
		_ = c.Close()
	default:
	}
}

func (p *wireProxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // closed
		}
		p.wg.Go(func() { p.serve(client) })
	}
}

// serve stands between one client and the server until one of them ends the connection.
func (p *wireProxy) serve(client net.Conn) {
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		_ = client.Close()
		return
	}
	p.keep(client)
	p.keep(server)
	var both sync.WaitGroup
	both.Go(func() { p.pump(server, client, p.fromClient(client)) })
	both.Go(func() { p.pump(client, server, p.fromServer) })
	both.Wait()
}

// errCut ends a connection.
var errCut = errors.New("cut")

// pump copies from one end to the other what look lets pass.
func (p *wireProxy) pump(to, from net.Conn, look func([]byte) (bool, error)) {
	defer to.Close()   //nolint:errcheck // the other direction ends with it
	defer from.Close() //nolint:errcheck
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			pass, lookErr := look(buf[:n])
			if lookErr != nil {
				return
			}
			if pass {
				if _, err := to.Write(buf[:n]); err != nil {
					return
				}
			}
		}
		if err != nil {
			return
		}
	}
}

func (p *wireProxy) fromClient(client io.Writer) func([]byte) (bool, error) {
	return func(b []byte) (bool, error) {
		f := p.now()
		request := p.IsRequest(b)
		if request {
			f = p.request()
		}
		switch {
		case f == hang:
			return false, nil
		case f == refuse:
			return false, errCut
		case f == fail && request:
			_, err := client.Write(p.Complaint)
			return false, errors.Join(err, errCut)
		case f == hold && request:
			p.arrived <- struct{}{}
			p.wait(nil)
		case f == late && request:
			p.wait(time.After(lateness))
		}
		return true, nil
	}
}

// wait waits for a time, a release, or the end.
func (p *wireProxy) wait(d <-chan time.Time) {
	select {
	case <-d:
	case <-p.released:
	case <-p.ended:
	}
}

func (p *wireProxy) fromServer(b []byte) (bool, error) {
	switch f := p.now(); {
	case f == hang:
		return false, nil
	case f == refuse, f == loseAnswer && p.IsAnswer(b):
		return false, errCut
	}
	return true, nil
}
