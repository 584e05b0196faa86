package faultnet

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// dialWait bounds the connection to the target.
const dialWait = 5 * time.Second

// Proxy passes TCP connections on to one address. Its methods may be called from any goroutine.
type Proxy struct {
	seed   uint64
	ln     net.Listener
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // the listener and both halves of every connection

	mu      sync.Mutex // guards everything below
	target  string     // host and port
	faults  Faults
	changed chan struct{} // closed, and made anew, when faults change
	links   map[*link]struct{}
	counts  Counts
}

// Counts are what a proxy has done since it began.
type Counts struct {
	Connections, Cut, Corrupted, Duplicated int
	Bytes                                   int64
}

// Listen starts a proxy in front of target, a host and port, at a loopback address of its own. seed
// decides which bytes suffer.
func Listen(target string, seed uint64) (*Proxy, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("faulty proxy: %w", err)
	}
	p := &Proxy{target: target, seed: seed, ln: ln, changed: make(chan struct{}), links: make(map[*link]struct{})}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.wg.Go(p.accept)
	return p, nil
}

// Addr returns the host and port to connect to.
func (p *Proxy) Addr() string { return p.ln.Addr().String() }

// Close ends every connection and waits for all that the proxy does.
func (p *Proxy) Close() error {
	p.cancel()
	err := p.ln.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	p.Cut()
	p.wg.Wait()
	return err
}

// Set changes what happens to bytes from here on. The zero Faults is a good network.
func (p *Proxy) Set(f Faults) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = f
	close(p.changed)
	p.changed = make(chan struct{})
}

// Redirect sends the connections to come to another target.
func (p *Proxy) Redirect(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// Counts returns what was done so far.
func (p *Proxy) Counts() Counts {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts
}

// Cut ends the connections that there are, in both directions at once and with what is on its way.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.cut()
		p.counts.Cut++
	}
}

// current returns the faults in force and the channel that tells when they are others.
func (p *Proxy) current() (Faults, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.faults, p.changed
}

func (p *Proxy) count(f func(c *Counts)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.counts)
}

// accept takes connections until the listener is closed.
func (p *Proxy) accept() {
	for n := uint64(0); ; n++ {
		client, err := p.ln.Accept()
		if err != nil {
			return
		}
		if f, _ := p.current(); f.Refuse {
			abort(client)
			continue
		}
		p.wg.Go(func() { p.connect(client, n) })
	}
}

// connect joins the nth client with the target and passes both directions until one ends.
func (p *Proxy) connect(client net.Conn, n uint64) {
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	dialer := net.Dialer{Timeout: dialWait}
	server, err := dialer.DialContext(p.ctx, "tcp", target)
	if err != nil {
		abort(client) // nobody is there: as it is without a proxy
		return
	}
	l := &link{client: client, server: server}
	l.ctx, l.end = context.WithCancel(p.ctx)
	defer l.cut()
	p.mu.Lock()
	p.links[l] = struct{}{}
	p.counts.Connections++
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.links, l)
		p.mu.Unlock()
	}()
	var wg sync.WaitGroup
	wg.Go(func() { p.pass(l, up, rand.New(rand.NewPCG(p.seed, 2*n))) })
	wg.Go(func() { p.pass(l, down, rand.New(rand.NewPCG(p.seed, 2*n+1))) })
	wg.Wait()
}

// link is one connection through the proxy.
type link struct {
	client, server net.Conn
	ctx            context.Context
	end            context.CancelFunc
}

// cut ends both halves. It may be called again.
func (l *link) cut() {
	l.end()
	abort(l.client)
	abort(l.server)
}

// abort closes a connection as the death of a machine's kernel shows to the other: by a reset.
func abort(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // it may be closed already
	}
	_ = c.Close()
}
