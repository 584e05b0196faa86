package http

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	nodeToken     = "the-nodes-token"
	operatorToken = "the-operators-token"
)

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// asker sends requests to one server, each with what its caller changes in it.
type asker struct {
	t      *testing.T
	srv    *Server
	client *http.Client
}

func newAsker(t *testing.T, srv *Server) asker {
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return asker{t, srv, &http.Client{Transport: transport, Timeout: patience}}
}

func bearer(token string) func(*http.Request) {
	return func(r *http.Request) {
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
	}
}

func header(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

// ask returns the status and the beginning of the body.
func (a asker) ask(method, path string, body io.Reader, change ...func(*http.Request)) (int, string) {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.srv.URL()+path, body)
	if err != nil {
		a.t.Fatal(err)
	}
	for _, c := range change {
		c(req)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		a.t.Fatalf("%s %s: %v", method, path, err)
	}
	return a.read(resp)
}

func (a asker) read(resp *http.Response) (int, string) {
	defer resp.Body.Close()
	b := make([]byte, 4096)
	n, _ := resp.Body.Read(b) // an endless answer is read no further
	return resp.StatusCode, string(b[:n])
}

// Which credential opens which call, for every call that there is.
func TestAccess(t *testing.T) {
	who := []string{"", "wrong", nodeToken, operatorToken}
	apart := map[access]string{ // with a credential of the operator's own: y, or the digit of 40_
		accessOpen: "yyyy", accessRead: "11yy", accessNode: "11y1", accessOperate: "113y", accessHandOver: "113y",
	}
	one := map[access]string{ // without
		accessOpen: "yyyy", accessRead: "11y1", accessNode: "11y1", accessOperate: "11y1", accessHandOver: "11y1",
	}
	for name, tt := range map[string]struct {
		admin string
		want  map[access]string
	}{"apart": {operatorToken, apart}, "one": {"", one}} {
		t.Run(name, func(t *testing.T) {
			src := newFakeSource("a.db")
			srv := serveTest(t, src, Options{Token: nodeToken, AdminToken: tt.admin, Logger: discard}, fastLimits())
			a := newAsker(t, srv)
			for _, r := range srv.routes() {
				if strings.HasPrefix(r.path, "/debug/pprof/") && r.path != "/debug/pprof/" {
					continue // they take their time
				}
				path := strings.ReplaceAll(r.path, "{$}", "")
				for i, token := range who {
					status, line := a.ask(r.method, path, nil, bearer(token))
					want := tt.want[r.access][i]
					got := byte('y')
					if status == http.StatusUnauthorized || status == http.StatusForbidden {
						got = byte('0' + status - 400)
					}
					if got != want {
						t.Errorf("%s %s with %q: %d %s, want %c", r.method, r.path, token, status, line, want)
					}
				}
			}
		})
	}
}

// A node may ask the primary for its role, and for nobody's but one that it names.
func TestAccess_HandOver(t *testing.T) {
	srv := serveTest(t, newFakeSource(), Options{Token: nodeToken, AdminToken: operatorToken, Logger: discard}, fastLimits())
	a := newAsker(t, srv)
	if status, line := a.ask("POST", "/demote?to=n2", nil, bearer(nodeToken)); status != http.StatusConflict {
		t.Errorf("%d %s, want it refused by the state of the node", status, line)
	}
	if status, line := a.ask("POST", "/demote?to=", nil, bearer(nodeToken)); status != http.StatusForbidden {
		t.Errorf("%d %s, want 403", status, line)
	}
}

// Profiles are there for an operator with a credential of his own, and for nobody else.
func TestAccess_Profiles(t *testing.T) {
	for _, opt := range []Options{{}, {Token: nodeToken}} {
		opt.Logger = discard
		a := newAsker(t, serveTest(t, newFakeSource(), opt, fastLimits()))
		if status, _ := a.ask("GET", "/debug/pprof/", nil, bearer(nodeToken)); status != http.StatusNotFound {
			t.Errorf("%d, want 404", status)
		}
	}
}

func TestCrossSite(t *testing.T) {
	for _, token := range []string{"", nodeToken} {
		srv := serveTest(t, newFakeSource(), Options{Token: token, Logger: discard}, fastLimits())
		a := newAsker(t, srv)
		host := strings.TrimPrefix(srv.URL(), "http://")
		for name, tt := range map[string]struct {
			method, path string
			change       func(*http.Request)
			want         int
		}{
			"a command":              {"POST", "/promote", func(*http.Request) {}, 200},
			"the page itself":        {"POST", "/promote", header("Origin", "http://"+host), 200},
			"its fetch":              {"POST", "/promote", header("Sec-Fetch-Site", "same-origin"), 200},
			"another site":           {"POST", "/promote", header("Sec-Fetch-Site", "cross-site"), 403},
			"another port":           {"POST", "/promote", header("Sec-Fetch-Site", "same-site"), 403},
			"another origin":         {"POST", "/promote", header("Origin", "http://evil.example"), 403},
			"another origin, demote": {"POST", "/demote?to=x", header("Origin", "http://evil.example"), 403},
			"no origin":              {"POST", "/promote", header("Origin", "null"), 403},
		} {
			if status, line := a.ask(tt.method, tt.path, nil, bearer(token), tt.change); status != tt.want {
				t.Errorf("token %q, %s: %d %s, want %d", token, name, status, line, tt.want)
			}
		}
	}
}

// A page that has its own name resolve to a loopback address reads nothing of a node without a token.
func TestRebinding(t *testing.T) {
	a := newAsker(t, serveTest(t, newFakeSource("a.db"), Options{Logger: discard}, fastLimits()))
	for host, want := range map[string]int{
		"evil.example": 421, "evil.example:20202": 421, "localhost.evil.example": 421, "127.0.0.1.evil.example": 421,
		"localhost": 200, "LOCALHOST:1": 200, "127.0.0.1": 200, "[::1]:7": 200,
	} {
		if status, line := a.ask("GET", "/info", nil, func(r *http.Request) { r.Host = host }); status != want {
			t.Errorf("host %s: %d %s, want %d", host, status, line, want)
		}
	}
	withToken := newAsker(t, serveTest(t, newFakeSource(), Options{Token: nodeToken, Logger: discard}, fastLimits()))
	if status, line := withToken.ask("GET", "/info", nil, bearer(nodeToken), func(r *http.Request) { r.Host = "db1.internal" }); status != 200 {
		t.Errorf("with the token under another name: %d %s", status, line)
	}
}

// The page loads and reaches nothing but its node, is framed by nobody, and comes without a credential.
func TestPagePolicy(t *testing.T) {
	srv := serveTest(t, newFakeSource("secret-name.db"), Options{Token: nodeToken, Logger: discard}, fastLimits())
	a := newAsker(t, srv)
	for _, path := range []string{"/", "/page.js", "/page.css"} {
		resp, err := a.client.Get(srv.URL() + path)
		if err != nil {
			t.Fatal(err)
		}
		policy := resp.Header.Get("Content-Security-Policy")
		status, text := a.read(resp)
		if status != http.StatusOK || strings.Contains(text, "secret-name") {
			t.Errorf("%s: %d, or it has data", path, status)
		}
		for _, want := range []string{"default-src 'none'", "connect-src 'self'", "script-src 'self'", "frame-ancestors 'none'"} {
			if !strings.Contains(policy, want) {
				t.Errorf("%s: policy %q, want %s", path, policy, want)
			}
		}
	}
}

// Each call that changes something is one line, refused ones too, and no line has a credential.
func TestAudit(t *testing.T) {
	var logged lockedBuffer
	src := newFakeSource("a.db")
	srv := serveTest(t, src, Options{Token: nodeToken, AdminToken: operatorToken,
		Logger: slog.New(slog.NewTextHandler(&logged, nil))}, fastLimits())
	a := newAsker(t, srv)
	a.ask("POST", "/promote?force=primary1", nil, bearer(operatorToken))
	a.ask("POST", "/promote", nil, bearer(nodeToken))
	a.ask("POST", "/demote?to=n2%0aaudit&x="+strings.Repeat("y", 5000), nil, bearer(nodeToken))
	a.ask("POST", "/repair?db=a.db", nil)
	a.ask("GET", "/info", nil, bearer(nodeToken))

	var lines []string
	for line := range strings.Lines(logged.String()) {
		if strings.Contains(line, "msg=audit") {
			lines = append(lines, line)
		}
	}
	for i, want := range []string{
		`call="POST /promote" parameters="force=primary1" by=operator`, `call="POST /promote" parameters="" by=node`,
		`call="POST /demote"`, `call="POST /repair" parameters="db=a.db" by=nobody`,
	} {
		if i >= len(lines) || !strings.Contains(lines[i], want) {
			t.Fatalf("%d lines, want one with %s at %d:\n%s", len(lines), want, i, logged.String())
		}
		if len(lines[i]) > 1024 {
			t.Errorf("line of %d bytes", len(lines[i]))
		}
	}
	for i, status := range []int{200, 403, 409, 401} {
		if want := fmt.Sprintf("status=%d", status); !strings.Contains(lines[i], want) {
			t.Errorf("want %s: %s", want, lines[i])
		}
	}
	if len(lines) != 4 {
		t.Errorf("%d lines, want 4: GET changes nothing", len(lines))
	}
	if s := logged.String(); strings.Contains(s, nodeToken) || strings.Contains(s, operatorToken) {
		t.Errorf("a credential is in the log:\n%s", s)
	}
}

func TestHealth(t *testing.T) {
	primary := vitals{primary: true, mounted: true, synced: true}
	never := vitals{mounted: true}
	replica := vitals{mounted: true, synced: true, lag: 3 * time.Second}
	for _, tt := range []struct {
		name                             string
		v                                vitals
		maxLag                           time.Duration
		alive, ready, isPrimary, replica bool
	}{
		{"primary", primary, 0, true, true, true, false},
		{"primary, bound", primary, time.Second, true, true, true, false},
		{"starting", vitals{}, 0, true, false, false, false},
		{"never synced", never, 0, true, false, false, false},
		{"never synced, bound", never, time.Hour, false, false, false, false},
		{"replica", replica, 0, true, true, false, true},
		{"replica, in bound", replica, 3 * time.Second, true, true, false, true},
		{"replica, late", replica, 2 * time.Second, false, true, false, false},
	} {
		tt.v.maxLag = tt.maxLag
		for name, c := range map[string]struct {
			is   healthy
			want bool
		}{"alive": {healthAlive, tt.alive}, "ready": {healthReady, tt.ready}, "primary": {healthPrimary, tt.isPrimary}, "replica": {healthReplica, tt.replica}} {
			if ok, why := c.is(tt.v); ok != c.want {
				t.Errorf("%s: %s is %v (%s), want %v", tt.name, name, ok, why, c.want)
			}
		}
	}
}

func TestHealth_HTTP(t *testing.T) {
	src := newFakeSource()
	src.primary, src.mount, src.lag = false, "/mnt/a", 90*time.Second
	a := newAsker(t, serveTest(t, src, Options{Token: nodeToken, Logger: discard}, fastLimits()))
	for path, want := range map[string]int{
		"/health": 200, "/health?max-lag=2m": 200, "/health?max-lag=1m": 503, "/health?max-lag=x": 400, "/health?max-lag=-1s": 400,
		"/health/ready": 200, "/health/primary": 503, "/health/replica": 200, "/health/replica?max-lag=2s": 503, "/health/else": 404,
	} {
		if status, line := a.ask("GET", path, nil); status != want || strings.Count(line, "\n") != 1 {
			t.Errorf("%s: %d %q, want %d and one line", path, status, line, want)
		}
	}
}

// The description names every route, with the access that the server grants.
func TestOpenAPI(t *testing.T) {
	srv := serveTest(t, newFakeSource("a.db"), Options{Token: nodeToken, AdminToken: operatorToken, Logger: discard}, fastLimits())
	a := newAsker(t, srv)
	req, err := http.NewRequestWithContext(t.Context(), "GET", srv.URL()+"/openapi.json", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var doc struct {
		OpenAPI string
		Paths   map[string]map[string]struct {
			Summary   string
			Security  []map[string][]string
			Responses map[string]struct{ Content map[string]any }
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&doc); err != nil {
		t.Fatal(err)
	}
	if doc.OpenAPI != "3.1.0" {
		t.Errorf("openapi %q", doc.OpenAPI)
	}
	operations := 0
	for path, item := range doc.Paths {
		for method, op := range item {
			operations++
			concrete := strings.ReplaceAll(path, "{name}", "a.db")
			if strings.HasPrefix(path, "/debug/pprof/p") || strings.HasPrefix(path, "/debug/pprof/t") {
				continue // they take their time
			}
			status, line := a.ask(strings.ToUpper(method), concrete, nil)
			open := len(op.Security) == 1 && len(op.Security[0]) == 0
			if open == (status == http.StatusUnauthorized) {
				t.Errorf("%s %s: %d %s, described as %v", method, path, status, line, op.Security)
			}
			if _, ok := op.Responses[fmt.Sprint(status)]; !ok {
				t.Errorf("%s %s answers %d, which is not described", method, path, status)
			}
			if op.Summary == "" {
				t.Errorf("%s %s has no summary", method, path)
			}
		}
	}
	if want := len(srv.routes()); operations != want {
		t.Errorf("%d operations, %d routes", operations, want)
	}
}

// Every path with every method and every bad credential, and bodies, headers and names that are too long,
// malformed or lead elsewhere: refused, and nothing has changed or grown.
func TestScan(t *testing.T) {
	src := newFakeSource("a.db")
	var logged lockedBuffer
	srv := serveTest(t, src, Options{Token: nodeToken, AdminToken: operatorToken,
		Logger: slog.New(slog.NewTextHandler(&logged, nil))}, fastLimits())
	a := newAsker(t, srv)
	before := fmt.Sprint(src.IsPrimary(), src.Databases()[0].Pos())

	paths := []string{"/nothing", "/..%2f..%2fetc/passwd", "/db/..%2f..%2fx/wait", "/db//wait", "/db/" + strings.Repeat("x", 3000) + "/wait",
		"/export?name=../../etc/passwd", "/export?name=" + strings.Repeat("%00", 900), "/repair?db=../x", "/scrub?db=a.db&rate=-1"}
	for _, r := range srv.routes() {
		if !strings.HasPrefix(r.path, "/debug/pprof/") {
			paths = append(paths, strings.ReplaceAll(r.path, "{$}", ""))
		}
	}
	bodies := map[string]func() io.Reader{
		"none": func() io.Reader { return nil },
		"zero": func() io.Reader { return bytes.NewReader(make([]byte, 100)) },
		"huge": func() io.Reader { return io.LimitReader(strings.NewReader(strings.Repeat("A", 4<<20)), 4<<20) },
	}
	for _, path := range paths {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"} {
			for _, authorization := range []string{"", "Bearer", "Bearer " + operatorToken + "x", "Basic x", "Bearer " + strings.Repeat("z", 8000)} {
				status, line := a.ask(method, path, nil, header("Authorization", authorization))
				if opened := status < 300; opened && method != "GET" && method != "HEAD" || status >= 500 && status != 503 {
					t.Errorf("%s %s with %.20q: %d %s", method, path, authorization, status, line)
				}
			}
		}
		for name, body := range bodies {
			if strings.HasPrefix(path, "/events") {
				continue
			}
			status, line := a.tryAsk("POST", path, body(), bearer(operatorToken))
			if status >= 500 && status != 503 && status != 501 {
				t.Errorf("POST %s with a body %s: %d %s", path, name, status, line)
			}
		}
	}
	if after := fmt.Sprint(src.IsPrimary(), src.Databases()[0].Pos()); after != before {
		t.Errorf("now %s, was %s", after, before)
	}
	if strings.Contains(logged.String(), operatorToken+"\"") || strings.Contains(logged.String(), "panic") {
		t.Errorf("log:\n%s", logged.String())
	}
}

// tryAsk is ask for a body that the server may cut off.
func (a asker) tryAsk(method, path string, body io.Reader, change ...func(*http.Request)) (int, string) {
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.srv.URL()+path, body)
	if err != nil {
		a.t.Fatal(err)
	}
	for _, c := range change {
		c(req)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	return a.read(resp)
}
