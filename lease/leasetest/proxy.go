package leasetest

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
)

// fault is what a proxy does to each request.
type fault int

const (
	pass       fault = iota
	hang             // never answer
	fail             // answer 500
	refuse           // cut the connection
	loseAnswer       // let the server do it, and cut the connection
	hold             // wait for release, then pass
)

// proxy stands between a leaser and its server.
type proxy struct {
	URL    string
	target *url.URL

	mu       sync.Mutex
	fault    fault
	released chan struct{} // closed by release
	arrived  chan struct{} // gets one for each request that is held
}

const maxBody = 1 << 20

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{target: u, released: make(chan struct{}), arrived: make(chan struct{}, 64)}
	s := httptest.NewServer(p)
	p.URL = s.URL
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return p
}

// set changes what is done to requests from now on.
func (p *proxy) set(f fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
}

func (p *proxy) release() { close(p.released) }

func (p *proxy) now() fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fault
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// The server notices that the client is gone only once the body was read.
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		return
	}
	f := p.now()
	switch f {
	case hang:
		<-r.Context().Done()
		return
	case fail:
		http.Error(w, "no leader", http.StatusInternalServerError)
		return
	case refuse:
		cut(w)
		return
	case hold:
		p.arrived <- struct{}{}
		select {
		case <-p.released:
		case <-r.Context().Done():
			return
		}
	}
	out, err := http.NewRequestWithContext(r.Context(), r.Method, p.target.Scheme+"://"+p.target.Host+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		cut(w)
		return
	}
	out.Header = r.Header
	resp, err := http.DefaultTransport.RoundTrip(out)
	if err != nil {
		cut(w)
		return
	}
	defer resp.Body.Close() //nolint:errcheck // the client sees a short answer
	if f == loseAnswer {
		cut(w)
		return
	}
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	w.WriteHeader(resp.StatusCode)
	buf := make([]byte, 32<<10)
	for {
		n, err := resp.Body.Read(buf)
		if _, werr := w.Write(buf[:n]); err != nil || werr != nil {
			return
		}
		_ = http.NewResponseController(w).Flush() // the next write says so
	}
}

// cut ends the connection with a reset.
func cut(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // a close without a reset is as good
	}
	_ = conn.Close() // cut is what it is for
}
