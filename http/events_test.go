package http

import (
	"bufio"
	"net/http"
	"testing"
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
	want(`{"type":"tx","db":"a.db","data":{"txID":"0000000000000002","postApplyChecksum":"8000000100000002","pageSize":4096,"commit":2,"timestamp":"1970-01-01T00:00:01Z"}}`)
	want(`{"type":"tx","db":"a.db","data":{"txID":"0000000000000003","postApplyChecksum":"8000000100000003","pageSize":4096,"commit":2,"timestamp":"1970-01-01T00:00:01Z"}}`)
	src.mu.Lock()
	src.primary = false
	src.mu.Unlock()
	want(`{"type":"primaryChange","data":{"isPrimary":false,"hostname":"host1"}}`)
	src.change(1, func() { delete(src.dbs, 1) })
	src.commit(2, "z")
	want(`{"type":"tx","db":"b.db","data":{"txID":"0000000000000001","postApplyChecksum":"8000000200000001","pageSize":4096,"commit":2,"timestamp":"1970-01-01T00:00:01Z"}}`)
}
