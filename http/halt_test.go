package http

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs"
)

// lendingSource is a Source that answers as it is told.
type lendingSource struct {
	*fakeSource
	err error
	got []byte // of the last commit
	tx  litefs.HaltTx
}

func (s *lendingSource) Lend(context.Context, uint32, string) (litefs.HaltGrant, error) {
	return litefs.HaltGrant{Epoch: 3, Pos: litefs.Pos{TXID: 7, Chksum: 1 << 63}, TTL: 10 * time.Second, First: 3 * time.Second}, s.err
}
func (s *lendingSource) RenewHold(uint32, string) (litefs.HaltNews, error) {
	return litefs.HaltNews{Wanted: true}, s.err
}
func (s *lendingSource) ReleaseHold(context.Context, uint32, string) error  { return s.err }
func (s *lendingSource) Halt(context.Context, string) (*litefs.Halt, error) { return nil, s.err }
func (s *lendingSource) HeldOutcome(context.Context, uint32, string, litefs.HaltTx) (litefs.HaltOutcome, error) {
	return litefs.HaltVoid, s.err
}
func (s *lendingSource) CommitHeld(_ context.Context, _ uint32, _ string, tx litefs.HaltTx, r io.Reader, _ int64) (news litefs.HaltNews, err error) {
	if s.err == nil {
		s.got, err = io.ReadAll(r)
		s.tx = tx
		return litefs.HaltNews{Wanted: true}, err
	}
	return news, s.err
}

func haltTest(t *testing.T) (*lendingSource, *Server, litefs.HaltLink) {
	src := &lendingSource{fakeSource: newFakeSource("a.db")}
	srv := serveTest(t, src.fakeSource, Options{Token: nodeToken, Logger: discard}, fastLimits())
	srv.src = src // nobody has asked yet
	link := NewClient(src, nodeToken).HaltLink(srv.URL())
	t.Cleanup(link.Close)
	return src, srv, link
}

// What a holder asks arrives, and what it is told comes back; an error keeps what its caller decides by.
func TestHaltLink(t *testing.T) {
	src, _, link := haltTest(t)
	ctx := t.Context()
	tx := litefs.HaltTx{Epoch: 3, Pre: litefs.Pos{TXID: 7, Chksum: 1<<63 | 5}, Post: litefs.Pos{TXID: 8, Chksum: 1<<63 | 6}}
	g, err := link.Acquire(ctx, 1, "t")
	if want, _ := src.Lend(ctx, 1, "t"); err != nil || g != want {
		t.Fatalf("%+v, %v", g, err)
	}
	body := bytes.Repeat([]byte("page"), 100_000)
	if news, err := link.Commit(ctx, 1, "t", tx, bytes.NewReader(body), int64(len(body))); err != nil || !news.Wanted || !bytes.Equal(src.got, body) || src.tx != tx {
		t.Fatalf("%v, %d bytes, %+v", err, len(src.got), src.tx)
	}
	if out, err := link.Outcome(ctx, 1, "t", tx); err != nil || out != litefs.HaltVoid {
		t.Fatalf("%v, %v", out, err)
	}
	if news, err := link.Renew(ctx, 1, "t"); err != nil || !news.Wanted {
		t.Fatalf("%+v, %v", news, err)
	}
	if err := link.Release(ctx, 1, "t"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []error{litefs.ErrHaltLost, litefs.ErrNotJoined, litefs.ErrNotLent, litefs.ErrDatabaseNotFound} {
		src.err = want
		_, lerr := link.Acquire(ctx, 1, "t")
		_, oerr := link.Outcome(ctx, 1, "t", tx)
		_, rerr := link.Renew(ctx, 1, "t")
		_, cerr := link.Commit(ctx, 1, "t", tx, bytes.NewReader(body), int64(len(body)))
		for i, err := range []error{lerr, oerr, rerr, link.Release(ctx, 1, "t"), cerr} {
			if !errors.Is(err, want) {
				t.Errorf("call %d: %v, want %v", i, err, want)
			}
		}
	}
	src.err = errors.New("the disk is full")
	if _, err := link.Renew(ctx, 1, "t"); err == nil || errors.Is(err, litefs.ErrHaltLost) || !strings.Contains(err.Error(), "the disk is full") {
		t.Errorf("%v", err)
	}
}

// A request that was changed on the way, or is of another cluster, is refused before it means anything.
func TestHaltRefused(t *testing.T) {
	src, srv, _ := haltTest(t)
	a := newAsker(t, srv)
	const query = "db=0000000000000001&epoch=3&pre=0000000000000007/8000000000000005&post=0000000000000008/8000000000000006"
	good := func(r *http.Request) {
		bearer(nodeToken)(r)
		r.Header.Set(headerClusterID, src.ClusterID())
		r.Header.Set(headerToken, "t")
		r.Header.Set(headerHaltSum, haltSum("outcome", query, "t"))
	}
	for name, tt := range map[string]struct {
		path   string
		change func(*http.Request)
		want   int
	}{
		"good":            {"/halt/outcome?" + query, good, 200},
		"a digit":         {"/halt/outcome?" + strings.Replace(query, "8000000000000006", "8000000000000007", 1), good, 400},
		"another call":    {"/halt/renew?" + query, good, 400},
		"another token":   {"/halt/outcome?" + query, func(r *http.Request) { good(r); r.Header.Set(headerToken, "u") }, 400},
		"no token":        {"/halt/outcome?" + query, func(r *http.Request) { good(r); r.Header.Del(headerToken) }, 400},
		"another cluster": {"/halt/outcome?" + query, func(r *http.Request) { good(r); r.Header.Set(headerClusterID, "x") }, 409},
	} {
		if status, line := a.ask("POST", tt.path, nil, tt.change); status != tt.want {
			t.Errorf("%s: %d %s, want %d", name, status, line, tt.want)
		}
	}
}
