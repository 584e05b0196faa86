package http

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs"
)

var emptyPosMap = []byte{0, 0, 0, 0}

func TestHandshake_Refused(t *testing.T) {
	src := newFakeSource("a.db")
	srv := testServer(t, src, "", fastLimits())
	if code, line, _ := post(t, srv.URL(), goodHeaders(), inBlocks(bytes.NewReader(emptyPosMap))); code != http.StatusOK {
		t.Fatalf("the good request is refused: %d %s", code, line)
	}
	long := strings.Repeat("x", maxIDLen+1)
	for _, tt := range []struct {
		header, value string
		code          int
		line          string
	}{
		{headerProtocol, "", 400, "version 1 of the stream"},
		{headerProtocol, "2", 400, "run the same version of litefs on both nodes"},
		{headerLTX, "1", 400, "this node sends LTX version 3"},
		{headerID, "", 400, "Litefs-Id is 0 bytes"},
		{headerID, long, 400, "Litefs-Id is 129 bytes"},
		{headerID, "primary1", 400, "node primary1 cannot follow itself"},
		{headerClusterID, long, 400, "Litefs-Cluster-Id is 129 bytes"},
		{headerClusterID, "c2", 409, `the replica belongs to cluster "c2", this node to "c1": correct the advertise-url, or give the replica an empty data directory`},
		{headerEpoch, "", 400, "want a number"},
		{headerEpoch, "-1", 400, "want a number"},
		{headerEpoch, "4", 409, "epoch 4, this node is of epoch 3"},
		{headerSum, "", 400, "changed bytes on the way"},
		{headerSum, "00000000", 400, "changed bytes on the way"},
	} {
		h := goodHeaders()
		h[tt.header] = tt.value
		code, line, _ := post(t, srv.URL(), h, inBlocks(bytes.NewReader(emptyPosMap)))
		if code != tt.code || !strings.Contains(line, tt.line) {
			t.Errorf("%s: %.20q: %d %q, want %d with %q", tt.header, tt.value, code, line, tt.code, tt.line)
		}
	}
}

func TestHandshake_FreshReplica(t *testing.T) {
	srv := testServer(t, newFakeSource("a.db"), "", fastLimits())
	c := testClient("")
	c.identity = fakeIdentity{node: "fresh"}
	s, err := c.Stream(t.Context(), srv.URL(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got := s.(litefs.StreamPeer).ClusterID(); got != "c1" {
		t.Fatalf("cluster id %q", got)
	}
}

func TestHandshake_NotPrimary(t *testing.T) {
	src := newFakeSource("a.db")
	src.primary, src.primaryURL = false, "http://10.1.2.3:20202"
	srv := testServer(t, src, "", fastLimits())
	_, err := testClient("").Stream(t.Context(), srv.URL(), nil)
	var serr *StatusError
	if !errors.As(err, &serr) {
		t.Fatalf("%v, want a StatusError", err)
	}
	if serr.Code != 503 || serr.PrimaryURL != src.primaryURL || serr.RetryAfter != time.Second || !strings.Contains(serr.Line, src.primaryURL) {
		t.Fatalf("%+v", serr)
	}
	src.mu.Lock()
	src.primaryURL = ""
	src.mu.Unlock()
	if _, err := testClient("").Stream(t.Context(), srv.URL(), nil); !errors.As(err, &serr) || serr.PrimaryURL != "" || serr.Code != 503 {
		t.Fatalf("%v", err)
	}
}

func TestHandshake_Body(t *testing.T) {
	srv := testServer(t, newFakeSource("a.db"), "", fastLimits())
	for name, tt := range map[string]struct {
		body io.Reader
		code int
		line string
	}{
		"empty":     {bytes.NewReader(nil), 400, "unexpected EOF"},
		"truncated": {bytes.NewReader([]byte{0, 0, 0, 1, 0}), 400, "database 1 of 1: unexpected EOF"},
		"garbage":   {strings.NewReader("GET / HTTP/1.1"), 400, "at most"},
		"huge":      {io.MultiReader(bytes.NewReader([]byte{0, 2, 0, 1}), &counter{n: 64 << 20}), 400, "at most"},
	} {
		code, line, _ := post(t, srv.URL(), goodHeaders(), inBlocks(tt.body))
		if code != tt.code || !strings.Contains(line, tt.line) {
			t.Errorf("%s: %d %q, want %d with %q", name, code, line, tt.code, tt.line)
		}
	}
}

// counter yields distinct database ids: n bytes, counting in 20-byte steps.
type counter struct{ i, n int }

func (c *counter) Read(p []byte) (int, error) {
	if c.i >= c.n {
		return 0, io.EOF
	}
	for k := range p {
		id := uint32(c.i / posSize)
		p[k] = 0
		if off := c.i % posSize; off < 4 {
			p[k] = byte(id >> (24 - 8*off))
		}
		c.i++
	}
	return len(p), nil
}

// A replica that does not finish its request is not waited for.
func TestHandshake_StalledBody(t *testing.T) {
	l := fastLimits()
	l.body = 50 * time.Millisecond
	srv := testServer(t, newFakeSource("a.db"), "", l)
	r, w := io.Pipe()
	defer w.Close()
	body := struct { // the client closes it when it has the answer
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader([]byte{0, 0}), r), r}
	code, line, _ := post(t, srv.URL(), goodHeaders(), body)
	if code != 400 || !strings.Contains(line, "timeout") {
		t.Fatalf("%d %q, want 400 with a timeout", code, line)
	}
}

func TestToken(t *testing.T) {
	src := newFakeSource("a.db")
	srv := testServer(t, src, "secret", fastLimits())
	for token, want := range map[string]int{"": 401, "Secret": 401, "secretx": 401, "secre": 401, "secret": 200} {
		c := testClient(token)
		s, err := c.Stream(t.Context(), srv.URL(), nil)
		if err == nil {
			s.Close()
		}
		_, ierr := c.Info(t.Context(), srv.URL())
		for _, err := range []error{err, ierr} {
			var serr *StatusError
			if want == 200 && err != nil {
				t.Errorf("token %q: %v", token, err)
			} else if want != 200 && (!errors.As(err, &serr) || serr.Code != want || !strings.Contains(serr.Line, "http.token")) {
				t.Errorf("token %q: %v, want status %d", token, err, want)
			}
		}
	}
	h := goodHeaders()
	h["Authorization"] = "secret"
	if code, _, header := post(t, srv.URL(), h, inBlocks(bytes.NewReader(emptyPosMap))); code != 401 || header.Get("WWW-Authenticate") != "Bearer" {
		t.Errorf("a token without its scheme: %d", code)
	}
}

func TestHTTP1(t *testing.T) {
	srv := testServer(t, newFakeSource("a.db"), "", fastLimits())
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: patience}

	resp, err := client.Post(srv.URL()+"/stream", "application/octet-stream", bytes.NewReader(emptyPosMap))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Fatalf("%d for a stream without a handshake, want 400", resp.StatusCode)
	}
	for path, code := range map[string]int{"/health": 200, "/info": 200, "/": 200, "/nothing": 404, "/stream": 405} {
		resp, err := client.Get(srv.URL() + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != code {
			t.Errorf("GET %s: %d, want %d", path, resp.StatusCode, code)
		}
	}
}

func TestInfo(t *testing.T) {
	src := newFakeSource("a.db", "b.db")
	src.commit(1, "a1")
	src.primaryURL = "http://self"
	srv := testServer(t, src, "", fastLimits())
	got, err := testClient("").Info(t.Context(), srv.URL())
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"clusterID":"c1","nodeID":"primary1","isPrimary":true,"candidate":false,"role":"primary","primaryURL":"http://self","hostname":"host1","primary":{"hostname":"host1"},"epoch":3,"passthrough":false,"lagMillis":0,"databases":[` +
		`{"id":"0000000000000001","name":"a.db","txid":"0000000000000001","checksum":"8000000100000001","received":"0000000000000001","durable":"0000000000000000","walBytes":0,"logEntries":0,"logBytes":0,"level":"async"},` +
		`{"id":"0000000000000002","name":"b.db","txid":"0000000000000000","checksum":"0000000000000000","received":"0000000000000000","durable":"0000000000000000","walBytes":0,"logEntries":0,"logBytes":0,"level":"async"}]}`
	if string(b) != want {
		t.Fatalf("got  %s\nwant %s", b, want)
	}
}

func TestListen_Refused(t *testing.T) {
	for addr, want := range map[string]string{
		"":          "http.addr is empty",
		"0.0.0.0:0": "http.token",
		":0":        "http.token",
		"[::]:0":    "http.token",
		"127.0.0.1": "http.addr",
	} {
		s := newServer(newFakeSource(), Options{Addr: addr, Logger: slog.New(slog.DiscardHandler)}, defaultLimits())
		err := s.Listen()
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "http.addr") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want a line with http.addr and %s", addr, err, want)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestListen_WithToken(t *testing.T) {
	s := newServer(newFakeSource(), Options{Addr: "0.0.0.0:0", Token: "x", Logger: slog.New(slog.DiscardHandler)}, defaultLimits())
	if s.URL() != "" {
		t.Fatal("a URL before Listen")
	}
	if err := s.Serve(t.Context()); err == nil {
		t.Fatal("Serve before Listen")
	}
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(s.URL(), "http://localhost:") {
		t.Fatalf("URL()=%q", s.URL())
	}
	if err := s.Close(t.Context()); err != nil { // also closes a listener that was never served
		t.Fatal(err)
	}
	if err := s.ln.Close(); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("the listener was open: %v", err)
	}
}

func TestServe_ContextEnds(t *testing.T) {
	src := newFakeSource("a.db")
	s := newServer(src, Options{Addr: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)}, fastLimits())
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	stream := testStream(t, s.URL(), nil)
	wantNext(t, stream, "db 1 a.db")
	cancel()
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	if len(src.subs) != 0 {
		t.Fatal("Serve returned before its streams ended")
	}
}

func TestIsLoopback(t *testing.T) {
	want := map[string]bool{
		"127.0.0.1:1": true, "127.9.9.9:1": true, "[::1]:1": true, "[::ffff:127.0.0.1]:1": true,
		"0.0.0.0:1": false, ":1": false, "[::]:1": false, "10.0.0.1:1": false, "[::ffff:10.0.0.1]:1": false, "localhost:1": false, "": false,
	}
	for addr := range maps.Keys(want) {
		if got := isLoopback(addr); got != want[addr] {
			t.Errorf("isLoopback(%q)=%v", addr, got)
		}
	}
}

// Nothing stays behind of streams that ended in any way, nor of the server.
func TestNoGoroutineLeft(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("load", func(t *testing.T) {
		src := newFakeSource("a.db")
		src.commit(1, "a1")
		srv := testServer(t, src, "", fastLimits())
		for i := range 20 {
			s, err := testClient("").Stream(t.Context(), srv.URL(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if i%2 == 0 {
				wantNext(t, s, "db 1 a.db", "ltx a1")
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			c := testClient("")
			c.identity = fakeIdentity{cluster: "c2", node: "x"}
			if _, err := c.Stream(t.Context(), srv.URL(), nil); err == nil {
				t.Fatal("another cluster is welcome")
			}
			if _, err := c.Info(t.Context(), srv.URL()); err != nil {
				t.Fatal(err)
			}
		}
	})
	// net/http has no call that waits for the last goroutines of a closed connection.
	deadline := time.After(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for runtime.NumGoroutine() > before {
		select {
		case <-tick.C:
		case <-deadline:
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}

// Nothing but GET /health is told to one who has no token, or another one.
func TestToken_EveryEndpoint(t *testing.T) {
	srv := testServer(t, newFakeSource("a.db"), "secret", fastLimits())
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: patience}
	for endpoint, want := range map[string]int{
		"GET /health": 200, "GET /info": 401, "GET /events": 401, "GET /metrics": 401, "GET /export?name=a.db": 401,
		"GET /db/a.db/wait": 401, "POST /stream": 401, "POST /pages": 401, "POST /repair": 401,
	} {
		method, path, _ := strings.Cut(endpoint, " ")
		for _, authorization := range []string{"", "Bearer", "Bearer ", "Bearer Secret", "Basic c2VjcmV0", "secret"} {
			req, err := http.NewRequestWithContext(t.Context(), method, srv.URL()+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if authorization != "" {
				req.Header.Set("Authorization", authorization)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("%s with authorization %q: %d, want %d", endpoint, authorization, resp.StatusCode, want)
			}
		}
	}
}
