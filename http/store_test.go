package http

import (
	"context"
	"log/slog"
	"testing"

	"github.com/litefs/litefs"
)

// The real store is a source and an identity: a database made in it is named on a stream, one that is
// not there is none.
func TestStore(t *testing.T) {
	store := litefs.NewStore(t.TempDir())
	store.Logger = slog.New(slog.DiscardHandler)
	if err := store.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, ok := (storeSource{store}).Database(12345); ok {
		t.Fatal("a database that does not exist")
	}

	srv := NewServer(store, Options{Addr: "127.0.0.1:0", Candidate: true, Logger: store.Logger})
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
	})

	if _, err := NewClient(store, "").Stream(t.Context(), srv.URL(), nil); err == nil {
		t.Fatal("a node follows itself")
	}
	c := testClient("")
	c.identity = fakeIdentity{node: "fresh"}
	s, err := c.Stream(t.Context(), srv.URL(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	wantBeat(t, s)
	info, err := c.Info(t.Context(), srv.URL())
	if err != nil {
		t.Fatal(err)
	}
	if info.NodeID != store.NodeID() || info.ClusterID != store.ClusterID() || info.ClusterID == "" || !info.IsPrimary || !info.Candidate || len(info.Databases) != 0 {
		t.Fatalf("%+v", info)
	}
}
