package static_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/lease/static"
)

const (
	primaryURL  = "http://127.0.0.1:20202"
	followerURL = "http://127.0.0.1:20203"
)

func TestPrimary(t *testing.T) {
	ctx := t.Context()
	l, err := static.NewPrimary(primaryURL)
	if err != nil {
		t.Fatal(err)
	}
	if got := l.AdvertiseURL(); got != primaryURL {
		t.Fatalf("AdvertiseURL()=%q", got)
	}
	if _, err := l.PrimaryURL(ctx); !errors.Is(err, litefs.ErrNoPrimary) {
		t.Fatalf("PrimaryURL() before Acquire: %v, want ErrNoPrimary", err)
	}

	before := time.Now()
	lease, err := l.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := l.PrimaryURL(ctx); err != nil || got != primaryURL {
		t.Fatalf("PrimaryURL()=%q, %v", got, err)
	}
	if _, err := l.Acquire(ctx); !errors.Is(err, litefs.ErrPrimaryExists) {
		t.Fatalf("second Acquire: %v, want ErrPrimaryExists", err)
	}
	if lease.RenewedAt().Before(before) || !lease.RenewedAt().Add(lease.TTL()).After(before.AddDate(50, 0, 0)) {
		t.Fatalf("lease of %v since %v", lease.TTL(), lease.RenewedAt())
	}
	first := lease.RenewedAt()
	if err := lease.Renew(ctx); err != nil {
		t.Fatal(err)
	}
	if lease.RenewedAt().Before(first) {
		t.Fatal("Renew went back in time")
	}

	if err := lease.Close(); err != nil {
		t.Fatal(err)
	}
	if err := lease.Renew(ctx); !errors.Is(err, litefs.ErrLeaseExpired) {
		t.Fatalf("Renew after Close: %v, want ErrLeaseExpired", err)
	}
	if _, err := l.PrimaryURL(ctx); !errors.Is(err, litefs.ErrNoPrimary) {
		t.Fatalf("PrimaryURL() after Close: %v, want ErrNoPrimary", err)
	}

	next, err := l.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := lease.Close(); err != nil {
		t.Fatal(err)
	}
	if err := next.Renew(ctx); err != nil {
		t.Fatalf("the old lease's second Close ended its successor: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := next.Renew(ctx); !errors.Is(err, litefs.ErrLeaseExpired) {
		t.Fatalf("Renew after the leaser's Close: %v, want ErrLeaseExpired", err)
	}
}

func TestFollower(t *testing.T) {
	l, err := static.NewFollower(followerURL, primaryURL)
	if err != nil {
		t.Fatal(err)
	}
	if got := l.AdvertiseURL(); got != followerURL {
		t.Fatalf("AdvertiseURL()=%q", got)
	}
	if _, err := l.Acquire(t.Context()); !errors.Is(err, litefs.ErrPrimaryExists) {
		t.Fatalf("Acquire: %v, want ErrPrimaryExists", err)
	}
	if got, err := l.PrimaryURL(t.Context()); err != nil || got != primaryURL {
		t.Fatalf("PrimaryURL()=%q, %v", got, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	l, err := static.NewPrimary("")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Acquire(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("Acquire: %v", err)
	}
	if _, err := l.PrimaryURL(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("PrimaryURL: %v", err)
	}
}

func TestInvalidURL(t *testing.T) {
	for _, u := range []string{"", "localhost:20202", "ftp://host", "http://", "http://:20202", "://", "/x"} {
		if _, err := static.NewFollower("", u); err == nil {
			t.Errorf("NewFollower accepts primary URL %q", u)
		}
		if u == "" {
			continue
		}
		if _, err := static.NewFollower(u, primaryURL); err == nil {
			t.Errorf("NewFollower accepts advertise URL %q", u)
		}
		if _, err := static.NewPrimary(u); err == nil {
			t.Errorf("NewPrimary accepts advertise URL %q", u)
		}
	}
}
