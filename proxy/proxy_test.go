package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// fakeNode is a node whose state the test sets.
type fakeNode struct {
	mu       sync.Mutex
	primary  bool
	epoch    uint64
	url      string
	hostname string
	lag      time.Duration
	unsynced bool
	pos      map[uint32]uint64
	posErr   error
	settled  int // calls of Positions with settle
	hurried  []uint32
	watchers map[chan struct{}]struct{}
}

func (n *fakeNode) set(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
	for ch := range n.watchers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

func (n *fakeNode) get(f func()) { n.mu.Lock(); defer n.mu.Unlock(); f() }

func (n *fakeNode) IsPrimary() (v bool)         { n.get(func() { v = n.primary }); return }
func (n *fakeNode) Epoch() (v uint64)           { n.get(func() { v = n.epoch }); return }
func (n *fakeNode) PrimaryURL() (v string)      { n.get(func() { v = n.url }); return }
func (n *fakeNode) PrimaryHostname() (v string) { n.get(func() { v = n.hostname }); return }
func (n *fakeNode) Lag() (v time.Duration, ok bool) {
	n.get(func() { v, ok = n.lag, !n.unsynced })
	return
}
func (n *fakeNode) watching() (v int) { n.get(func() { v = len(n.watchers) }); return }
func (n *fakeNode) Watch() (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	n.get(func() {
		if n.watchers == nil {
			n.watchers = make(map[chan struct{}]struct{})
		}
		n.watchers[ch] = struct{}{}
	})
	return ch, func() { n.get(func() { delete(n.watchers, ch) }) }
}

func (n *fakeNode) TXID(id uint32) (v uint64) { n.get(func() { v = n.pos[id] }); return }

func (n *fakeNode) Hurry(id uint32) { n.get(func() { n.hurried = append(n.hurried, id) }) }

func (n *fakeNode) Positions(_ []string, settle bool) (map[uint32]uint64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.posErr != nil {
		return nil, n.posErr
	}
	if settle {
		n.settled++
	}
	m := make(map[uint32]uint64)
	for id, txid := range n.pos {
		m[id] = txid
	}
	return m, nil
}

// side is one node: its proxy, its API port and its application.
type side struct {
	node  *fakeNode
	proxy *Proxy
	api   *httptest.Server
	front *httptest.Server
	app   *httptest.Server
	hits  atomic.Int64 // requests that the application has seen
}

var testKey = CookieKey("secret", "LFSC")

func newSide(t *testing.T, name string, change func(o *Options), app http.HandlerFunc) *side {
	t.Helper()
	s := &side{node: &fakeNode{epoch: 1}}
	if app == nil {
		app = func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %s %s %s", name, r.Method, r.URL, b)
		}
	}
	s.app = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.hits.Add(1)
		app(w, r)
	}))
	t.Cleanup(s.app.Close)
	opt := Options{
		Target: strings.TrimPrefix(s.app.URL, "http://"), Databases: []string{"db"}, MaxLag: 10 * time.Second,
		Passthrough: []string{"/pass*"}, AlwaysForward: []string{"/always*"},
		Write: Forward, PrimaryTimeout: 30 * time.Second, WaitTimeout: 30 * time.Second, TargetTimeout: 30 * time.Second,
		Token: "secret", CookieKey: testKey, Logger: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&opt)
	}
	s.proxy = New(s.node, opt)
	s.front = httptest.NewServer(s.proxy)
	s.api = httptest.NewServer(s.proxy.Intercept(http.NotFoundHandler()))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.proxy.Close(ctx); err != nil {
			t.Error(err)
		}
		s.front.Close()
		s.api.Close()
		if n := s.node.watching(); n != 0 {
			t.Errorf("%s: %d watchers left", name, n)
		}
	})
	return s
}

// pair returns a primary and a replica that knows it.
func pair(t *testing.T, change func(o *Options)) (primary, replica *side) {
	t.Helper()
	primary, replica = newSide(t, "primary", change, nil), newSide(t, "replica", change, nil)
	primary.node.set(func() { primary.node.primary = true })
	replica.node.set(func() { replica.node.url, replica.node.hostname = primary.api.URL, "one" })
	return primary, replica
}

type answer struct {
	code   int
	body   string
	header http.Header
	cookie string
}

func do(t *testing.T, method, url, body, cookie string) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if cookie != "" {
		r.AddCookie(&http.Cookie{Name: cookieName, Value: cookie})
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	defer client.CloseIdleConnections()
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := answer{code: resp.StatusCode, body: strings.TrimSpace(string(b)), header: resp.Header}
	for _, c := range resp.Cookies() {
		if c.Name == cookieName {
			a.cookie = c.Value
		}
	}
	return a
}

func (a answer) want(t *testing.T, code int, body string) {
	t.Helper()
	if a.code != code || !strings.Contains(a.body, body) {
		t.Errorf("got %d %q, want %d %q", a.code, a.body, code, body)
	}
}

func TestReadsStayWritesGo(t *testing.T) {
	_, replica := pair(t, nil)
	do(t, "GET", replica.front.URL+"/x?a=1", "", "").want(t, 200, "replica GET /x?a=1")
	do(t, "POST", replica.front.URL+"/x?a=%2F", "data", "").want(t, 200, "primary POST /x?a=%2F data")
	do(t, "GET", replica.front.URL+"/always/1", "", "").want(t, 200, "primary GET /always/1")
	do(t, "POST", replica.front.URL+"/pass", "", "").want(t, 200, "replica POST /pass")
	do(t, "PUT", replica.front.URL+"/long", strings.Repeat("x", 3*keepBody), "").want(t, 200, "primary PUT /long xxx")
}

// Who writes sees it in the next read, on any node.
func TestReadYourWrites(t *testing.T) {
	primary := newSide(t, "primary", nil, nil)
	replica := newSide(t, "replica", nil, nil)
	primary.node.set(func() { primary.node.primary = true; primary.node.pos = map[uint32]uint64{7: 41} })
	replica.node.set(func() { replica.node.url = primary.api.URL; replica.node.pos = map[uint32]uint64{7: 41} })

	if a := do(t, "POST", replica.front.URL+"/", "", ""); a.cookie != "" {
		t.Errorf("a write that has changed nothing sets the cookie %q", a.cookie)
	}
	primary.app.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		primary.node.set(func() { primary.node.pos[7]++ })
	})
	a := do(t, "POST", replica.front.URL+"/", "", "")
	s, ok := decodeSeen(testKey, a.cookie)
	if !ok || s.epoch != 1 || s.txids[7] != 42 || len(s.txids) != 1 {
		t.Fatalf("cookie %q says %+v", a.cookie, s)
	}
	if c := a.header.Get("Set-Cookie"); !strings.Contains(c, "HttpOnly") || !strings.Contains(c, "Path=/") || !strings.Contains(c, "SameSite=Lax") || strings.Contains(c, "Secure") {
		t.Errorf("cookie %q", c)
	}
	if primary.node.settled == 0 {
		t.Error("the position was read before what the application had committed was captured")
	}

	got := make(chan answer)
	go func() { got <- do(t, "GET", replica.front.URL+"/", "", a.cookie) }()
	await(t, "the read waits", func() bool { return replica.node.watching() == 1 })
	replica.node.set(func() { replica.node.pos[9] = 1 })
	select {
	case a := <-got:
		t.Fatalf("answered before the position was there: %+v", a)
	case <-time.After(20 * time.Millisecond):
	}
	replica.node.set(func() { replica.node.pos[7] = 42 })
	(<-got).want(t, 200, "replica GET /")
	if h := replica.node.hurried; len(h) == 0 || slices.ContainsFunc(h, func(id uint32) bool { return id != 7 }) {
		t.Errorf("the node was told of those that wait for databases %v, want 7", h)
	}
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// A read never waits in vain and never fails for want of a position.
func TestReadThatCannotBeServedHere(t *testing.T) {
	primary, replica := pair(t, func(o *Options) { o.WaitTimeout = 10 * time.Millisecond })
	late := seen{epoch: 1, txids: map[uint32]uint64{7: 42}}.encode(testKey)
	do(t, "GET", replica.front.URL+"/late", "", late).want(t, 200, "primary GET /late")
	if a := do(t, "GET", primary.front.URL+"/p", "", late); a.code != 200 || !strings.HasPrefix(a.body, "primary") {
		t.Errorf("a read waits on the primary: %+v", a)
	}

	_, patient := pair(t, func(o *Options) { o.WaitTimeout = time.Hour })
	patient.node.set(func() { patient.node.epoch = 2 })
	do(t, "GET", patient.front.URL+"/lost", "", late).want(t, 200, "primary GET /lost")
	everything := seen{epoch: 2, primary: true}.encode(testKey)
	do(t, "GET", patient.front.URL+"/all", "", everything).want(t, 200, "primary GET /all")
	do(t, "GET", patient.front.URL+"/forged", "", strings.Replace(late, "1.1", "1.9", 1)).want(t, 200, "replica GET /forged")
	do(t, "GET", patient.front.URL+"/old", "", "00000000000000ff").want(t, 200, "replica GET /old")
}

func TestNoPrimary(t *testing.T) {
	for _, mode := range []Mode{Forward, FlyReplay, Redirect} {
		s := newSide(t, "replica", func(o *Options) {
			o.PrimaryTimeout = 10 * time.Millisecond
			o.Write = mode
			o.RedirectURL = "http://{hostname}"
		}, nil)
		a := do(t, "POST", s.front.URL+"/", "", "")
		a.want(t, 503, "nothing was done")
		if a.header.Get("Retry-After") == "" {
			t.Errorf("%s: no Retry-After", mode)
		}
		if s.hits.Load() != 0 {
			t.Errorf("%s: the application has seen the write", mode)
		}
	}
}

// A write that arrives while there is no primary is carried out by the next one.
func TestWriteWaitsForPrimary(t *testing.T) {
	primary, replica := pair(t, nil)
	replica.node.set(func() { replica.node.url = "" })
	got := make(chan answer)
	go func() { got <- do(t, "POST", replica.front.URL+"/", "a", "") }()
	await(t, "the write waits", func() bool { return replica.node.watching() == 1 })
	replica.node.set(func() { replica.node.url = primary.api.URL })
	(<-got).want(t, 200, "primary POST / a")

	// It may be this node.
	replica.node.set(func() { replica.node.url = "" })
	go func() { got <- do(t, "POST", replica.front.URL+"/", "b", "") }()
	await(t, "the write waits", func() bool { return replica.node.watching() == 1 })
	replica.node.set(func() { replica.node.primary = true })
	(<-got).want(t, 200, "replica POST / b")
}

// The node that was the primary a moment ago, and one that is dead, have not
// seen the request: it is sent to the next one, once.
func TestWriteToFormerPrimary(t *testing.T) {
	primary, replica := pair(t, nil)
	former := newSide(t, "former", nil, nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := "http://" + ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{former.api.URL, dead} {
		for _, body := range []string{"", "short"} {
			before := primary.hits.Load()
			replica.node.set(func() { replica.node.url = url })
			got := make(chan answer)
			go func() { got <- do(t, "POST", replica.front.URL+"/", body, "") }()
			await(t, "the write waits", func() bool { return replica.node.watching() == 1 })
			replica.node.set(func() { replica.node.url = primary.api.URL })
			(<-got).want(t, 200, strings.TrimSpace("primary POST / "+body))
			if n := primary.hits.Load() - before; n != 1 {
				t.Errorf("%s: the application has seen the write %d times", url, n)
			}
		}
	}
	if former.hits.Load() != 0 {
		t.Error("a former primary's application has seen a write")
	}
}

// A request that was sent and not answered is not sent again.
func TestBrokenConnectionIsNotRetried(t *testing.T) {
	primary, replica := pair(t, nil)
	primary.app.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		primary.hits.Add(1)
		panic(http.ErrAbortHandler)
	})
	a := do(t, "POST", replica.front.URL+"/", "x", "")
	a.want(t, 502, "may have been carried out")
	a = do(t, "POST", primary.front.URL+"/", "x", "")
	a.want(t, 502, "may have been carried out")
	if n := primary.hits.Load(); n != 2 {
		t.Errorf("two requests were seen %d times", n)
	}
}

func TestFlyReplayAndRedirect(t *testing.T) {
	_, replica := pair(t, func(o *Options) { o.Write = FlyReplay })
	a := do(t, "POST", replica.front.URL+"/x", "", "")
	if a.code != 200 || a.body != "" || a.header.Get("fly-replay") != "instance=one" {
		t.Errorf("fly-replay: %+v", a)
	}
	_, replica = pair(t, func(o *Options) { o.Write = Redirect; o.RedirectURL = "http://{hostname}:8080/" })
	a = do(t, "POST", replica.front.URL+"/x?y=1", "", "")
	if a.code != 307 || a.header.Get("Location") != "http://one:8080/x?y=1" {
		t.Errorf("redirect: %+v", a)
	}
	if replica.hits.Load() != 0 {
		t.Error("the application here has seen a write")
	}
}

func TestHealth(t *testing.T) {
	s := newSide(t, "replica", nil, nil)
	do(t, "GET", s.front.URL+"/litefs/health", "", "").want(t, 200, "OK")
	s.node.set(func() { s.node.lag = 11 * time.Second })
	do(t, "GET", s.front.URL+"/litefs/health", "", "").want(t, 503, "lag 11s")
	s.node.set(func() { s.node.unsynced = true })
	do(t, "GET", s.front.URL+"/litefs/health", "", "").want(t, 503, "never")
}

// Only another node's proxy reaches the application through the API port.
func TestForwardedNeedsTheToken(t *testing.T) {
	primary, _ := pair(t, nil)
	for _, auth := range []string{"", "Bearer wrong", "Basic secret", "secret"} {
		r, err := http.NewRequestWithContext(t.Context(), "POST", primary.api.URL+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set(headerForward, "1")
		if auth != "" {
			r.Header.Set(headerAuthorization, auth)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := resp.Body.Close(); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("token %q: %s", auth, resp.Status)
		}
	}
	do(t, "POST", primary.api.URL+"/", "", "").want(t, 404, "")
	if primary.hits.Load() != 0 {
		t.Error("the application was reached")
	}

	// A node with another token gets a 503 for its client, and says why.
	replica := newSide(t, "replica", func(o *Options) { o.Token = "other"; o.PrimaryTimeout = 10 * time.Millisecond }, nil)
	replica.node.set(func() { replica.node.url = primary.api.URL })
	do(t, "POST", replica.front.URL+"/", "", "").want(t, 503, "refuses the token")
}

// What the application sees is what the client has sent, and who that was.
func TestHeaders(t *testing.T) {
	var seen http.Header
	var host string
	primary := newSide(t, "primary", nil, func(w http.ResponseWriter, r *http.Request) { seen, host = r.Header, r.Host })
	primary.node.set(func() { primary.node.primary = true })
	replica := newSide(t, "replica", nil, nil)
	replica.node.set(func() { replica.node.url = primary.api.URL })
	for _, front := range []string{primary.front.URL, replica.front.URL} {
		r, err := http.NewRequestWithContext(t.Context(), "POST", front+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = "shop.example"
		r.Header.Set("Authorization", "Bearer application")
		r.Header.Set("X-Forwarded-For", "203.0.113.9")
		r.Header.Set("X-Forwarded-Proto", "https")
		r.Header.Set(headerForward, "1")
		r.Header.Set(headerAuthorization, "Bearer forged")
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := resp.Body.Close(); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != 200 || host != "shop.example" || seen.Get("Authorization") != "Bearer application" ||
			seen.Get("X-Forwarded-Proto") != "https" || seen.Get("X-Forwarded-For") != "203.0.113.9, 127.0.0.1" {
			t.Errorf("%s: host %q, headers %v", resp.Status, host, seen)
		}
		if seen.Get(headerForward) != "" || seen.Get(headerAuthorization) != "" {
			t.Errorf("the application sees the nodes' headers: %v", seen)
		}
	}
}

// An application that is still starting is waited for.
func TestApplicationNotThereYet(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	s := newSide(t, "x", func(o *Options) { o.Target = addr; o.TargetTimeout = 10 * time.Millisecond }, nil)
	do(t, "GET", s.front.URL+"/", "", "").want(t, 502, "nothing was done")

	s = newSide(t, "x", func(o *Options) { o.Target = addr }, nil)
	got := make(chan answer)
	go func() { got <- do(t, "GET", s.front.URL+"/", "", "") }()
	ln, err = net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	late := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "late") }), ReadHeaderTimeout: time.Minute}
	served := make(chan error)
	go func() { served <- late.Serve(ln) }()
	(<-got).want(t, 200, "late")
	if err := late.Close(); err != nil {
		t.Error(err)
	}
	<-served
}

// A WebSocket is a read, unless its path is forwarded: then it reaches the primary.
func TestUpgrade(t *testing.T) {
	echo := func(name string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n%s\n", name)
			_ = rw.Flush()
			for {
				line, err := rw.ReadString('\n')
				if err != nil {
					return
				}
				_, _ = rw.WriteString(line)
				_ = rw.Flush()
			}
		}
	}
	primary, replica := newSide(t, "", nil, echo("primary")), newSide(t, "", nil, echo("replica"))
	primary.node.set(func() { primary.node.primary = true })
	replica.node.set(func() { replica.node.url = primary.api.URL })
	for path, want := range map[string]string{"/": "replica", "/always": "primary"} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(replica.front.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n", path)
		br := bufio.NewReader(conn)
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != 101 {
			t.Fatalf("%s: %s", path, resp.Status)
		}
		if line, err := br.ReadString('\n'); err != nil || line != want+"\n" {
			t.Errorf("%s: %q, %v; want %s", path, line, err, want)
		}
		fmt.Fprint(conn, "ping\n")
		if line, err := br.ReadString('\n'); err != nil || line != "ping\n" {
			t.Errorf("%s: %q, %v", path, line, err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A response is passed on as it comes.
func TestStreaming(t *testing.T) {
	more := make(chan struct{})
	primary := newSide(t, "", nil, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "first")
		_ = http.NewResponseController(w).Flush()
		<-more
		fmt.Fprintln(w, "second")
	})
	primary.node.set(func() { primary.node.primary = true })
	replica := newSide(t, "", nil, nil)
	replica.node.set(func() { replica.node.url = primary.api.URL })
	r, err := http.NewRequestWithContext(t.Context(), "POST", replica.front.URL+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	br := bufio.NewReader(resp.Body)
	if line, err := br.ReadString('\n'); err != nil || line != "first\n" {
		t.Errorf("%q, %v", line, err)
	}
	close(more)
	if line, err := br.ReadString('\n'); err != nil || line != "second\n" {
		t.Errorf("%q, %v", line, err)
	}
}

// What was written is not known: the client reads on the primary for a while.
func TestPositionsFail(t *testing.T) {
	primary, _ := pair(t, nil)
	primary.node.set(func() { primary.node.posErr = io.ErrUnexpectedEOF })
	a := do(t, "POST", primary.front.URL+"/", "", "")
	a.want(t, 200, "primary")
	if s, ok := decodeSeen(testKey, a.cookie); !ok || !s.primary {
		t.Errorf("cookie %q says %+v", a.cookie, s)
	}
}

// BenchmarkRead is what the proxy costs: a read through it beside one without.
func BenchmarkRead(b *testing.B) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello") }))
	defer app.Close()
	p := New(&fakeNode{epoch: 1, pos: map[uint32]uint64{7: 42}}, Options{
		Target: strings.TrimPrefix(app.URL, "http://"), Databases: []string{"db"}, TargetTimeout: time.Second,
		WaitTimeout: time.Second, CookieKey: testKey, Logger: slog.New(slog.DiscardHandler),
	})
	front := httptest.NewServer(p)
	defer front.Close()
	cookie := seen{epoch: 1, txids: map[uint32]uint64{7: 42}}.encode(testKey)
	for _, bb := range []struct{ name, url string }{{"direct", app.URL}, {"proxied", front.URL}} {
		b.Run(bb.name, func(b *testing.B) {
			for b.Loop() {
				r, err := http.NewRequestWithContext(b.Context(), "GET", bb.url+"/", nil)
				if err != nil {
					b.Fatal(err)
				}
				r.AddCookie(&http.Cookie{Name: cookieName, Value: cookie})
				resp, err := http.DefaultClient.Do(r)
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
		})
	}
}
