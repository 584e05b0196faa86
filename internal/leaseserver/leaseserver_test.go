package leaseserver

import (
	"context"
	"testing"
	"time"
)

// All servers start, die and come back at the same place.
func TestServers(t *testing.T) {
	for name, start := range map[string]func(context.Context, Options) (*Server, error){"consul": Consul, "etcd": Etcd, "nats": NATS} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			s, err := start(ctx, Options{Dir: t.TempDir(), Log: t.Output()})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := s.Kill(); err != nil {
					t.Error(err)
				}
			}()
			if err := s.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := s.probe(ctx, s.URL); err == nil {
				t.Fatal("a killed server answers")
			}
			if err := s.Start(ctx); err != nil {
				t.Fatal(err)
			}
		})
	}
}
