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
	"time"
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
	late             // pass after lateness
)

// lateness is what a slow server takes for a request: well within the time-out of a call, which is a third
// of the shortest TTL in use.
const lateness = 150 * time.Millisecond

// proxy stands between a leaser and its server.
type proxy interface {
	url() string
	set(fault)             // what is done to requests from now on
	setAfter(fault, int)   // what is done to them once some have passed
	held() <-chan struct{} // gets one for each request that is held
	release()              // lets them pass
}

func (s suite) proxy(t *testing.T) proxy {
	t.Helper()
	if s.Wire != nil {
		return newWireProxy(t, s.server.URL, *s.Wire)
	}
	return newHTTPProxy(t, s.server.URL)
}

// faults is what a proxy does, and to whom.
type faults struct {
	mu       sync.Mutex
	fault    fault
	after    int           // requests that pass before the fault
	released chan struct{} // closed by release
	arrived  chan struct{}
}

func newFaults() faults {
	return faults{released: make(chan struct{}), arrived: make(chan struct{}, 64)}
}

func (f *faults) set(next fault) { f.setAfter(next, 0) }

func (f *faults) setAfter(next fault, requests int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault, f.after = next, requests
}

// request counts a request, and is what is done to it.
func (f *faults) request() fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.after > 0 {
		f.after--
		return pass
	}
	return f.fault
}

// now is what is done to what is under way: nothing before the first request that meets the fault.
func (f *faults) now() fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.after > 0 {
		return pass
	}
	return f.fault
}

func (f *faults) held() <-chan struct{} { return f.arrived }
func (f *faults) release()              { close(f.released) }

// httpProxy is one for a service that speaks HTTP.
type httpProxy struct {
	faults
	base   string
	target *url.URL
}

const maxBody = 1 << 20

func newHTTPProxy(t *testing.T, target string) *httpProxy {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	p := &httpProxy{target: u, faults: newFaults()}
	s := httptest.NewServer(p)
	p.base = s.URL
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return p
}

func (p *httpProxy) url() string { return p.base }

func (p *httpProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// The server notices that the client is gone only once the body was read.
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		return
	}
	f := p.request()
	switch f {
	case late:
		select {
		case <-time.After(lateness):
		case <-r.Context().Done():
			return
		}
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
	out.Header, out.Host = r.Header, r.Host // which a signature may be of
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
