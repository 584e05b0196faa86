package http

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs"
)

// faultyServer answers every stream with handle.
func faultyServer(tb testing.TB, handle http.HandlerFunc) string {
	tb.Helper()
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	protocols.SetHTTP1(true)
	srv := httptest.NewUnstartedServer(fullDuplex(handle))
	srv.Config.Protocols = &protocols
	srv.Start()
	tb.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	return srv.URL
}

// fullDuplex has handle answer before it has read the request.
func fullDuplex(handle http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		handle(w, r)
	}
}

// welcome sends the headers of a good answer.
func welcome(w http.ResponseWriter) {
	h := w.Header()
	h.Set(headerProtocol, protocolVersion)
	h.Set(headerLTX, ltxVersion)
	h.Set(headerClusterID, "c1")
	h.Set(headerID, "primary1")
	h.Set(headerEpoch, "3")
	h.Set(headerSum, handshakeSum(h))
	w.(http.Flusher).Flush()
}

func frameBytes(tb testing.TB, frames ...litefs.StreamFrame) []byte {
	tb.Helper()
	var buf bytes.Buffer
	for _, f := range frames {
		if err := litefs.WriteStreamFrame(&buf, f); err != nil {
			tb.Fatal(err)
		}
	}
	return buf.Bytes()
}

// What a faulty node sends ends the stream with an error that says what is wrong, and stays its end.
func TestClient_FaultyStream(t *testing.T) {
	db := &litefs.DBStreamFrame{DBID: 1, Name: "a.db"}
	for name, tt := range map[string]struct {
		body []byte
		want string
	}{
		"ends":           {nil, "EOF"},
		"cut type":       {[]byte{0, 0}, "unexpected EOF"},
		"cut frame":      {frameBytes(t, db)[:10], "unexpected EOF"},
		"no file":        {frameBytes(t, db, &litefs.LTXStreamFrame{Size: 10}), "unexpected EOF"},
		"cut file":       {append(frameBytes(t, db, &litefs.LTXStreamFrame{Size: 10}), "abc"...), "unexpected EOF"},
		"garbage":        {[]byte("<html><body>hello"), "invalid stream frame type"},
		"long name":      {[]byte{0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0, 0, 0}, "name of"},
		"negative size":  {append(frameBytes(t, db), 0, 0, 0, 2, 0xff, 0, 0, 0, 0, 0, 0, 0), "size of"},
		"parent":         {frameBytes(t, &litefs.DBStreamFrame{DBID: 1, Name: "../x"}), "invalid database name"},
		"absolute":       {frameBytes(t, &litefs.DBStreamFrame{DBID: 1, Name: "/etc/passwd"}), "invalid database name"},
		"empty name":     {frameBytes(t, &litefs.DBStreamFrame{DBID: 1}), "invalid database name"},
		"wal":            {frameBytes(t, &litefs.DBStreamFrame{DBID: 1, Name: "a.db-wal"}), "invalid database name"},
		"file of none":   {frameBytes(t, &litefs.LTXStreamFrame{Size: 1}), "before it names a database"},
		"piece of none":  {frameBytes(t, &litefs.ChunkStreamFrame{DBID: 1, Size: 1, Len: 1}), "before it names it"},
		"cut piece":      {append(frameBytes(t, db, &litefs.ChunkStreamFrame{DBID: 1, Size: 10, Len: 10}), "abc"...), "unexpected EOF"},
		"large piece":    {append(frameBytes(t, db), 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0), "at once are allowed"},
		"its own words":  {frameBytes(t, &litefs.AckStreamFrame{DBID: 1}), "for primaries"},
		"file of no one": {frameBytes(t, db, &litefs.DropDBStreamFrame{DBID: 1}, &litefs.LTXStreamFrame{Size: 1}), "before it names a database"},
	} {
		t.Run(name, func(t *testing.T) {
			url := faultyServer(t, func(w http.ResponseWriter, r *http.Request) {
				welcome(w)
				if _, err := newBlockWriter(w).Write(tt.body); err != nil {
					t.Error(err)
				}
			})
			s := testStream(t, url, nil)
			var err error
			for err == nil {
				_, err = tryNext(s)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("%v, want %q", err, tt.want)
			}
			if _, again := s.NextFrame(); again == nil || again.Error() != err.Error() {
				t.Fatalf("after %v the stream goes on with %v", err, again)
			}
		})
	}
}

func TestClient_FaultyHandshake(t *testing.T) {
	for name, tt := range map[string]struct {
		header, value, want string
	}{
		"no litefs":     {headerProtocol, "", "is it a litefs"},
		"newer":         {headerProtocol, "2", "version \"2\" of the stream"},
		"LTX":           {headerLTX, "4", "LTX version \"4\""},
		"no node":       {headerID, "", "printable"},
		"long node":     {headerID, strings.Repeat("x", maxIDLen+1), "printable"},
		"no epoch":      {headerEpoch, "x", "want a number"},
		"changed":       {headerSum, "00000000", "changed bytes on the way"},
		"other cluster": {headerClusterID, "c2", `the node belongs to cluster "c2", this one to "c1"`},
	} {
		t.Run(name, func(t *testing.T) {
			url := faultyServer(t, func(w http.ResponseWriter, r *http.Request) {
				h := w.Header()
				h.Set(headerProtocol, protocolVersion)
				h.Set(headerLTX, ltxVersion)
				h.Set(headerClusterID, "c1")
				h.Set(headerID, "primary1")
				h.Set(headerEpoch, "3")
				h.Set(headerSum, handshakeSum(h))
				if tt.header == headerClusterID { // a good node of another cluster
					h.Set(tt.header, tt.value)
					h.Set(headerSum, handshakeSum(h))
				}
				h.Set(tt.header, tt.value)
			})
			_, err := testClient("").Stream(t.Context(), url, nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("%v, want one line with %q", err, tt.want)
			}
		})
	}
}

// A refusal is one line, whatever the node says, and its redirects are not followed.
func TestClient_FaultyRefusal(t *testing.T) {
	url := faultyServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/stream" {
			t.Errorf("request for %s", r.URL.Path)
		}
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(http.StatusTemporaryRedirect)
		if _, err := io.WriteString(w, "\x1b[31mred"+strings.Repeat("x", 1<<20)); err != nil {
			return // the client has read enough
		}
	})
	_, err := testClient("").Stream(t.Context(), url, nil)
	var serr *StatusError
	if !errors.As(err, &serr) || serr.Code != 307 || !strings.HasPrefix(serr.Line, ".[31mredxx") || len(serr.Line) > maxLineLen {
		t.Fatalf("%v", err)
	}
}

func TestClient_SilentStream(t *testing.T) {
	block := make(chan struct{})
	url := faultyServer(t, func(w http.ResponseWriter, r *http.Request) {
		welcome(w)
		if _, err := newBlockWriter(w).Write(frameBytes(t, &litefs.HeartbeatStreamFrame{})); err != nil {
			t.Error(err)
		}
		w.(http.Flusher).Flush()
		<-block
	})
	t.Cleanup(func() { close(block) })
	c := testClient("")
	c.timeouts.stall = 100 * time.Millisecond
	s, err := c.Stream(t.Context(), url, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for err == nil {
		_, err = s.NextFrame()
	}
	if !errors.Is(err, ErrStalled) {
		t.Fatalf("%v, want ErrStalled", err)
	}
}

// silentListener accepts connections and says nothing.
func silentListener(tb testing.TB) string {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
		}
	}()
	tb.Cleanup(func() {
		ln.Close()
		<-done
	})
	return "http://" + ln.Addr().String()
}

func TestClient_SilentHandshake(t *testing.T) {
	url := silentListener(t)
	c := testClient("")
	c.timeouts.handshake, c.timeouts.info = 50*time.Millisecond, 50*time.Millisecond
	if _, err := c.Stream(t.Context(), url, nil); !errors.Is(err, ErrStalled) {
		t.Fatalf("%v, want ErrStalled", err)
	}
	if _, err := c.Info(t.Context(), url); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("%v, want a deadline", err)
	}
}

func TestClient_ContextEnds(t *testing.T) {
	srv := testServer(t, newFakeSource("a.db"), "", fastLimits())
	ctx, cancel := context.WithCancel(t.Context())
	s, err := testClient("").Stream(ctx, srv.URL(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	wantNext(t, s, "db 1 a.db")
	cancel()
	for err == nil {
		_, err = s.NextFrame()
	}
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("%v, want canceled", err)
	}
	if _, err := testClient("").Stream(ctx, srv.URL(), nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v, want canceled", err)
	}
}

// Close ends a read that waits in another goroutine.
func TestStream_CloseWhileReading(t *testing.T) {
	l := fastLimits()
	l.heartbeat = time.Hour
	srv := testServer(t, newFakeSource("a.db"), "", l)
	s := testStream(t, srv.URL(), nil)
	wantBeat(t, s)
	wantNext(t, s, "db 1 a.db")
	for _, want := range []litefs.StreamFrameType{litefs.StreamFrameTypeLevel, litefs.StreamFrameTypeDecided} {
		if f, err := s.NextFrame(); err != nil || f.Type() != want {
			t.Fatalf("%v, %v, want type %d", f, err, want)
		}
	}
	wantBeat(t, s) // all is sent
	got := make(chan error, 1)
	go func() {
		_, err := s.NextFrame()
		got <- err
	}()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err == nil {
		t.Fatal("a frame after Close")
	}
}

func TestClient_URL(t *testing.T) {
	c := testClient("")
	for _, u := range []string{"", "localhost:1", "http://", "http://user:pw@127.0.0.1:1", "http://127.0.0.1:1?x=y", "ftp://127.0.0.1:1", "http://%zz"} {
		if _, err := c.Stream(t.Context(), u, nil); err == nil || strings.Contains(err.Error(), "connect") {
			t.Errorf("%q: %v, want a refusal before any connection", u, err)
		}
	}
	if got, err := endpoint("http://h:1/base/", "stream"); err != nil || got != "http://h:1/base/stream" {
		t.Errorf("endpoint: %q, %v", got, err)
	}
}

// Without a token no other machine is asked: whoever answered there could feed this node anything.
func TestClient_NoTokenNoOtherMachine(t *testing.T) {
	_, err := testClient("").Stream(t.Context(), "http://192.0.2.1:20202", nil)
	if err == nil || !strings.Contains(err.Error(), "http.token") {
		t.Fatalf("%v, want a line with http.token", err)
	}
}
