package http

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"testing"

	"github.com/litefs/litefs"
)

// realServer serves a real, empty store.
func realServer(t *testing.T) (*litefs.Store, string) {
	t.Helper()
	store := litefs.NewStore(t.TempDir())
	store.Logger = slog.New(slog.DiscardHandler)
	if err := store.Open(); err != nil {
		t.Fatal(err)
	}
	srv := NewServer(store, Options{Addr: "127.0.0.1:0", Logger: store.Logger})
	if err := srv.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return store, srv.URL()
}

// What is no exchange, or of nobody who may ask, is refused, and the server lives.
func TestPagesAndTailOfBadRequests(t *testing.T) {
	store, url := realServer(t)
	blocks := func(b []byte) []byte {
		var out bytes.Buffer
		if _, err := newBlockWriter(&out).Write(b); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	question := func(mode byte, id, positions uint32) []byte {
		b := binary.BigEndian.AppendUint32([]byte{mode}, id)
		return blocks(binary.BigEndian.AppendUint32(b, positions))
	}
	for _, tt := range []struct {
		name, path, cluster string
		body                []byte
		code                int
	}{
		{"no database", "pages", store.ClusterID(), question(0, 1, 0), http.StatusNotFound},
		{"unknown mode", "pages", store.ClusterID(), question(9, 1, 0), http.StatusBadRequest},
		{"too many positions", "pages", store.ClusterID(), question(0, 1, 1<<30), http.StatusBadRequest},
		{"positions that do not come", "pages", store.ClusterID(), question(0, 1, 7), http.StatusBadRequest},
		{"no blocks", "pages", store.ClusterID(), []byte("GET / HTTP/1.1\r\n\r\n"), http.StatusBadRequest},
		{"nothing", "pages", store.ClusterID(), nil, http.StatusBadRequest},
		{"pages of another cluster", "pages", "other", question(0, 1, 0), http.StatusConflict},
		{"tail of another cluster", "tail", "other", blocks([]byte{0, 0, 0, 0}), http.StatusConflict},
		{"tail for a node of none", "tail", "", blocks([]byte{0, 0, 0, 0}), http.StatusConflict},
		{"more positions than may be", "tail", store.ClusterID(), blocks([]byte{0xff, 0xff, 0xff, 0xff}), http.StatusBadRequest},
		{"fewer positions than told", "tail", store.ClusterID(), blocks([]byte{0, 0, 0, 9}), http.StatusBadRequest},
		{"a tail of nothing", "tail", store.ClusterID(), blocks([]byte{0, 0, 0, 0}), http.StatusOK},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := testClient("")
			c.identity = fakeIdentity{cluster: tt.cluster, node: "n", epoch: store.Epoch()}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/"+tt.path, bytes.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			c.identify(req)
			conn := c.newConnection()
			defer conn.close()
			resp, err := (&http.Client{Transport: conn.transport}).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tt.code {
				t.Errorf("status %d, want %d", resp.StatusCode, tt.code)
			}
			if err := resp.Body.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// answerOf reads b as the primary's half of an exchange.
func answerOf(b []byte, q litefs.PagesQuery) error {
	x := &pageExchange{q: q, up: newBlockWriter(io.Discard), answer: &litefs.PagesAnswer{}}
	x.in = bufio.NewReader(bytes.NewReader(b))
	return x.run()
}

// A primary that answers nonsense is not believed, whatever it says.
func TestPagesOfBadAnswers(t *testing.T) {
	have := litefs.PageSums{PageSize: 512, Sums: make([]uint64, 1000)}
	start := make([]byte, 25)
	u32 := func(n ...uint32) (b []byte) {
		for _, v := range n {
			b = binary.BigEndian.AppendUint32(b, v)
		}
		return b
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, tt := range map[string]struct {
		mode   litefs.PagesMode
		answer []byte
		ok     bool
	}{
		"empty":                      {litefs.PagesLocate, nil, false},
		"the relation alone":         {litefs.PagesLocate, start, true},
		"an unknown relation":        {litefs.PagesLocate, append([]byte{7}, start[1:]...), false},
		"more blocks than there are": {litefs.PagesList, join(start, u32(5)), false},
		"a block beyond the end":     {litefs.PagesList, join(start, u32(1, 4)), false},
		"a block twice":              {litefs.PagesList, join(start, u32(2, 1, 1)), false},
		"a kind that is none":        {litefs.PagesList, join(start, u32(0), []byte{9}), false},
		"pages out of order":         {litefs.PagesList, join(start, u32(0), []byte{pagesFollow}, u32(2, 5, 4)), false},
		"fewer pages than told":      {litefs.PagesList, join(start, u32(0), []byte{pagesFollow}, u32(1<<31)), false},
		"two pages, after a wait":    {litefs.PagesList, join(start, u32(0), []byte{pagesWait, pagesFollow}, u32(2, 4, 5)), true},
		"a file of no bytes":         {litefs.PagesFetch, join(start, u32(0), []byte{pagesFollow}, make([]byte, 8)), false},
		"a file without end":         {litefs.PagesFetch, join(start, u32(0), []byte{pagesFollow}, u32(1<<31, 0)), false},
		"a refusal that is too long": {litefs.PagesFetch, join(start, u32(0), []byte{pagesRefused, 0xff, 0xff}), false},
	} {
		if err := answerOf(tt.answer, litefs.PagesQuery{Mode: tt.mode, Have: have}); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTailsOfBadAnswers(t *testing.T) {
	after := map[uint32]litefs.Pos{1: {TXID: 5, Chksum: 6}}
	record := func(id uint32, size int64) []byte {
		return appendTailRecord(nil, id, litefs.Pos{TXID: 9, Chksum: 9}, &litefs.LTXReader{Size: size, MinTXID: 6, MaxTXID: 9})
	}
	end := make([]byte, tailRecord)
	for name, tt := range map[string]struct {
		answer []byte
		tails  int
		ok     bool
	}{
		"cut off":              {record(1, 0)[:20], 0, false},
		"no end":               {record(1, 0), 1, false},
		"nothing":              {end, 0, true},
		"one that is off":      {append(record(1, 0), end...), 1, true},
		"not asked for":        {append(record(2, 0), end...), 0, false},
		"a negative size":      {append(record(1, -1), end...), 0, false},
		"a file of three":      {append(append(record(1, 3), "abc"...), end...), 1, true},
		"a file that is short": {append(record(1, 300), "abc"...), 1, false},
	} {
		n := 0
		err := readTails(bytes.NewReader(tt.answer), after, func(litefs.Tail) error { n++; return nil })
		if (err == nil) != tt.ok || n != tt.tails {
			t.Errorf("%s: %d tails, %v", name, n, err)
		}
	}
}

// TestPages_Handshake: a node that compares pages is let in as one that follows is.
func TestPages_Handshake(t *testing.T) {
	url := testServer(t, newFakeSource("a.db"), "", fastLimits()).URL()
	_, err := testClient("").Pages(t.Context(), url, litefs.PagesQuery{DBID: 99})
	if serr := (*StatusError)(nil); !errors.As(err, &serr) || serr.Code != http.StatusNotFound {
		t.Errorf("pages of a database that is not there: %v, want %d", err, http.StatusNotFound)
	}
}
