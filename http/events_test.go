package http

import (
	"bufio"
	"encoding/json"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestEvents(t *testing.T) {
	src := newFakeSource("a.db", "b.db")
	src.commit(1, "before")
	srv := testServer(t, src, "", fastLimits())
	resp, err := http.Get(srv.URL() + "/events") // over HTTP/1.1, as curl
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	want := func(line string) {
		t.Helper()
		if !lines.Scan() {
			t.Fatalf("the stream ends: %v", lines.Err())
		}
		if lines.Text() != line {
			t.Fatalf("got  %s\nwant %s", lines.Text(), line)
		}
	}
	want(`{"type":"init","data":{"isPrimary":true,"hostname":"host1"}}`)
	src.commit(1, "x", "y")
	want(`{"type":"tx","db":"a.db","data":{"txID":"0000000000000002","postApplyChecksum":"8000000100000002","pageSize":4096,"commit":2,"timestamp":"1970-01-01T00:00:01Z","minTXID":"0000000000000002","dbID":"0000000000000001","epoch":3,"node":"n1","pages":1}}`)
	want(`{"type":"tx","db":"a.db","data":{"txID":"0000000000000003","postApplyChecksum":"8000000100000003","pageSize":4096,"commit":2,"timestamp":"1970-01-01T00:00:01Z","minTXID":"0000000000000003","dbID":"0000000000000001","epoch":3,"node":"n1","pages":1}}`)
	src.mu.Lock()
	src.primary = false
	src.mu.Unlock()
	want(`{"type":"primaryChange","data":{"isPrimary":false,"hostname":"host1"}}`)
	src.change(1, func() { delete(src.dbs, 1) })
	src.commit(2, "z")
	want(`{"type":"tx","db":"b.db","data":{"txID":"0000000000000001","postApplyChecksum":"8000000200000001","pageSize":4096,"commit":2,"timestamp":"1970-01-01T00:00:01Z","minTXID":"0000000000000001","dbID":"0000000000000002","epoch":3,"node":"n1","pages":1}}`)
}

// A listener goes on from positions: what the log has lost meanwhile, and a position of another history, are told.
func TestEventsFrom(t *testing.T) {
	src := newFakeSource("a.db", "b.db", "c.db", "d.db")
	for id := uint32(1); id <= 4; id++ {
		src.commit(id, "1", "2", "3", "4")
	}
	src.change(2, func() { src.dbs[2].first, src.dbs[2].log = 2, src.dbs[2].log[2:] })
	srv := testServer(t, src, "", fastLimits())
	q := url.Values{"from": {"a.db@0000000000000002", "b.db@0000000000000000", "c.db@0000000000000003/8000000000000bad", "d.db@0000000000000004/8000000400000004"}}
	resp, err := http.Get(srv.URL() + "/events?" + q.Encode())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	got := make(map[string][]string) // by database
	for range 1 + 2 + 3 + 2 {
		if !lines.Scan() {
			t.Fatalf("the stream ends: %v", lines.Err())
		}
		var ev struct {
			Type, DB string
			Data     struct{ TxID, After, Next, Have string }
		}
		if err := json.Unmarshal(lines.Bytes(), &ev); err != nil {
			t.Fatal(err)
		}
		got[ev.DB] = append(got[ev.DB], strings.TrimSpace(ev.Type+" "+ev.Data.TxID+ev.Data.After+" "+ev.Data.Next+ev.Data.Have))
	}
	want := map[string][]string{
		"":     {"init"},
		"a.db": {"tx 0000000000000003", "tx 0000000000000004"},
		"b.db": {"gap 0000000000000000 0000000000000003", "tx 0000000000000003", "tx 0000000000000004"},
		"c.db": {"fork 0000000000000003/8000000000000bad 0000000000000003/8000000300000003", "tx 0000000000000004"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got  %q\nwant %q", got, want)
	}

	for _, from := range []string{"a.db", "@1", "a.db@x", "../a.db@0000000000000001"} {
		resp, err := http.Get(srv.URL() + "/events?" + url.Values{"from": {from}}.Encode())
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("from %q: %s", from, resp.Status)
		}
	}
}

// Health with a bound is for load balancers: 503 when the node is further behind.
func TestHealthMaxLag(t *testing.T) {
	src := newFakeSource()
	src.primary = false
	srv := testServer(t, src, "secret", fastLimits())
	for _, c := range []struct {
		lag   time.Duration
		query string
		code  int
	}{
		{0, "", 200}, {-1, "", 200}, {time.Hour, "", 200},
		{time.Second, "?max-lag=2s", 200}, {3 * time.Second, "?max-lag=2s", 503}, {-1, "?max-lag=2s", 503},
		{0, "?max-lag=2", 400}, {0, "?max-lag=-2s", 400},
	} {
		src.mu.Lock()
		src.lag = c.lag
		src.mu.Unlock()
		resp, err := http.Get(srv.URL() + "/health" + c.query)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != c.code {
			t.Errorf("lag %v, /health%s: %s, want %d", c.lag, c.query, resp.Status, c.code)
		}
	}
}
