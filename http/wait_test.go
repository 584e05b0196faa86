package http

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs"
)

func TestWait(t *testing.T) {
	src := newFakeSource("a.db", "dir/b.db")
	src.dbs[1].first = 5
	srv := testServer(t, src, "", fastLimits())
	c := testClient("")

	// Positions that are there.
	for _, tt := range []struct {
		name string
		pos  litefs.Pos
	}{
		{"a.db", litefs.Pos{TXID: 3}},
		{"a.db", litefs.Pos{TXID: 5}},
		{"a.db", posAt(1, 5)},
		{"a.db", posAt(1, 2)},
		{"dir/b.db", litefs.Pos{}},
	} {
		w, err := c.Wait(t.Context(), srv.URL(), tt.name, tt.pos, 0, patience)
		if err != nil || w.Name != tt.name || w.Epoch != 3 {
			t.Errorf("%s at %s: %+v, %v", tt.name, tt.pos, w, err)
		}
	}

	// One that comes.
	got := make(chan error)
	go func() {
		w, err := c.Wait(t.Context(), srv.URL(), "a.db", litefs.Pos{TXID: 6}, 3, patience)
		if err == nil && w.Pos != posAt(1, 6).String() {
			err = errors.New("is at " + w.Pos)
		}
		got <- err
	}()
	src.waitSubs(t)
	src.change(2, func() {})
	src.change(1, func() { src.dbs[1].first = 6 })
	if err := <-got; err != nil {
		t.Error(err)
	}

	// Those that do not come.
	for _, tt := range []struct {
		name  string
		pos   litefs.Pos
		epoch uint64
		code  int
		line  string
	}{
		{"a.db", litefs.Pos{TXID: 7}, 0, 504, "a.db is at 0000000000000006/"},
		{"a.db", litefs.Pos{TXID: 7}, 3, 504, "not at 0000000000000007 yet"},
		{"a.db", litefs.Pos{TXID: 7}, 2, 409, "may be lost"},
		{"a.db", litefs.Pos{TXID: 3}, 4, 504, "a.db is at"},
		{"a.db", litefs.Pos{TXID: 6, Chksum: 1 << 63}, 0, 409, "another history"},
		{"c.db", litefs.Pos{TXID: 1}, 0, 504, "c.db is not here"},
		{"../c.db", litefs.Pos{TXID: 1}, 0, 404, ""},
	} {
		_, err := c.Wait(t.Context(), srv.URL(), tt.name, tt.pos, tt.epoch, time.Millisecond)
		var serr *StatusError
		if !errors.As(err, &serr) || serr.Code != tt.code || !strings.Contains(serr.Line, tt.line) {
			t.Errorf("%s at %s in epoch %d: %v, want %d with %q", tt.name, tt.pos, tt.epoch, err, tt.code, tt.line)
		}
	}
	src.waitNoSubs(t)
}

func TestWait_BadRequest(t *testing.T) {
	srv := testServer(t, newFakeSource("a.db"), "secret", fastLimits())
	for path, code := range map[string]int{
		"/db/a.db/wait":                                   400,
		"/db/a.db/wait?pos=1":                             400,
		"/db/a.db/wait?pos=0000000000000001/x":            400,
		"/db/a.db/wait?pos=0000000000000000&timeout=1h":   400,
		"/db/a.db/wait?pos=0000000000000000&timeout=-1s":  400,
		"/db/a.db/wait?pos=0000000000000000&epoch=x":      400,
		"/db/a.db/nothing?pos=0000000000000000":           404,
		"/db/a.db/wait?pos=0000000000000000&timeout=10ms": 200,
	} {
		for _, token := range []string{"secret", "", "wrong"} {
			r, err := http.NewRequestWithContext(t.Context(), "GET", srv.URL()+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			want := code
			if token != "secret" {
				want = 401
			}
			r.Header.Set("Authorization", "Bearer "+token)
			client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
			resp, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			if err := resp.Body.Close(); err != nil {
				t.Error(err)
			}
			if resp.StatusCode != want {
				t.Errorf("%s with token %q: %s, want %d", path, token, resp.Status, want)
			}
		}
	}
}
