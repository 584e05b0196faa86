package http_test

import (
	"io"
	nethttp "net/http"
	"testing"

	"github.com/litefs/litefs/http"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// A primary serves a stream in HTTP/1.1, as replicas ask for it, and in HTTP/2.
func TestStreamInBothProtocols(t *testing.T) {
	app := sqlitetest.Start(t)
	primary, srv := startPrimary(t, t.TempDir())
	write(t, create(t, primary, app, "a.db"), 2, 1000)
	for major := 1; major <= 2; major++ {
		var protocols nethttp.Protocols
		protocols.SetHTTP1(major == 1)
		protocols.SetUnencryptedHTTP2(major == 2)
		transport := &nethttp.Transport{Protocols: &protocols}
		r, w := io.Pipe()
		go func() { // the test sees what comes of an error; without one the stream goes on
			if err := http.WritePosMap(http.NewBlockWriter(w), nil); err != nil {
				_ = w.CloseWithError(err)
			}
		}()
		req, err := nethttp.NewRequestWithContext(t.Context(), nethttp.MethodPost, srv.URL()+"/stream", r)
		if err != nil {
			t.Fatal(err)
		}
		http.Handshake(req.Header, primary.ClusterID(), "other", "1")
		client := nethttp.Client{Transport: transport, Timeout: patience}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != nethttp.StatusOK || resp.ProtoMajor != major {
			t.Errorf("HTTP/%d: answered with %s in %s", major, resp.Status, resp.Proto)
		}
		if _, err := resp.Body.Read(make([]byte, 1)); err != nil {
			t.Errorf("HTTP/%d: %v", major, err)
		}
		resp.Body.Close()
		r.Close()
		transport.CloseIdleConnections()
	}
	app.Exit()
}
