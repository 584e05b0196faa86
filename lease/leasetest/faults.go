package leasetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/litefs/litefs"
)

// renewedAt holds a renewal on its way: the lease counts from before it was sent.
func renewedAt(t *testing.T, s suite) {
	p := s.proxy(t)
	a := s.node(t, "a", func(o *Options) { o.URL = p.url(); o.TTL = 10 * s.TTL })
	before := time.Now()
	p.set(hold)
	var lease litefs.FencedLease
	done := make(chan error, 1)
	// The suite's leasers send requests one after the other; all but the first pass at once.
	during := func(what string, call func() error) {
		t.Helper()
		go func() { done <- call() }()
		select {
		case <-p.held():
		case err := <-done:
			t.Fatalf("%s sent nothing: %v", what, err)
		}
		held := time.Now()
		p.set(pass)
		p.release()
		if err := <-done; err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if at := lease.RenewedAt(); at.Before(before) || at.After(held) {
			t.Errorf("%s: RenewedAt is %v after the request was sent", what, at.Sub(held))
		}
		// Without its monotonic reading a time jumps with the clock.
		if at := lease.RenewedAt(); at == at.Round(0) {
			t.Errorf("%s: RenewedAt goes by the wall clock", what)
		}
	}
	p.set(pass)
	lease = mustAcquire(t, a)
	p.set(hold)
	before = time.Now()
	during("Renew", func() error { return lease.Renew(timeout(t)) })
}

// clock has a node whose machine sleeps, and one whose clock says that a lease is old.
func clock(t *testing.T, s suite) {
	ctx := timeout(t)
	var jump atomic.Int64
	start := time.Now()
	a := s.node(t, "a", func(o *Options) {
		o.TTL = 10 * s.TTL
		o.Now = func() time.Duration { return time.Since(start) + time.Duration(jump.Load()) }
	})
	lease := mustAcquire(t, a)
	jump.Store(int64(11 * s.TTL))
	if d := lease.Remaining(); d > 0 {
		t.Errorf("after a sleep of more than the TTL %v are left", d)
	}
	// Nobody has taken it: it can be renewed.
	if err := lease.Renew(ctx); err != nil {
		t.Fatal(err)
	}
	if d := lease.Remaining(); d > 10*s.TTL || d <= 0 {
		t.Errorf("after a renewal %v are left", d)
	}
}

// calls are all that a leaser and a lease can be asked.
func calls(l leaser, lease litefs.FencedLease) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Acquire":     func(ctx context.Context) error { _, err := l.Acquire(ctx); return err },
		"PrimaryURL":  func(ctx context.Context) error { _, err := l.PrimaryURL(ctx); return err },
		"Record":      func(ctx context.Context) error { _, err := l.Record(ctx); return err },
		"SetOnce":     func(ctx context.Context) error { _, err := l.SetOnce(ctx, "x", []byte("x")); return err },
		"AwaitVacant": l.AwaitVacant,
		"Renew":       lease.Renew,
		"SetRecord":   func(ctx context.Context) error { return lease.SetRecord(ctx, litefs.Record{}) },
	}
}

// hanging is a server that answers nothing: every call ends by itself.
func hanging(t *testing.T, s suite) {
	p := s.proxy(t)
	a := s.node(t, "a", func(o *Options) { o.URL = p.url() })
	b := s.node(t, "b", func(o *Options) { o.URL = p.url() })
	lease := mustAcquire(t, a)
	at := lease.RenewedAt()
	p.set(hang)
	var wg sync.WaitGroup
	for name, call := range calls(b, lease) {
		wg.Go(func() {
			// No deadline but the test's.
			err := call(timeout(t))
			if err == nil || errors.Is(err, litefs.ErrLeaseExpired) || errors.Is(err, litefs.ErrPrimaryExists) || errors.Is(err, litefs.ErrNoPrimary) {
				t.Errorf("%s of a server that hangs: %v", name, err)
			}
			if errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s waited for its caller's deadline", name)
			}
		})
	}
	wg.Wait()
	if lease.RenewedAt() != at {
		t.Error("a renewal that failed moved RenewedAt")
	}
	// A caller that does not want to wait is heard.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, call := range calls(b, lease) {
		if err := call(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("%s after cancel: %v", name, err)
		}
	}
	if err := lease.Close(); err == nil {
		t.Error("Close of a server that hangs says that the lease was given back")
	}
	p.set(pass)
	// It could not give the lease back, and does not count on it: it need not wait for its end.
	if l, err := a.Acquire(timeout(t)); err != nil && !errors.Is(err, litefs.ErrPrimaryExists) {
		t.Errorf("Acquire after a lease that could not be given back: %v", err)
	} else if err == nil {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	eventually(t, b)
}

// failing is a server that answers with errors, or cuts connections. Nothing of it ends a lease.
func failing(t *testing.T, s suite) {
	p := s.proxy(t)
	long := func(o *Options) { o.URL = p.url(); o.TTL = 20 * s.TTL }
	a, b := s.node(t, "a", long), s.node(t, "b", long)
	lease := mustAcquire(t, a)
	for _, f := range []fault{fail, refuse} {
		at := lease.RenewedAt()
		p.set(f)
		for name, call := range calls(b, lease) {
			err := call(timeout(t))
			if err == nil || errors.Is(err, litefs.ErrLeaseExpired) || errors.Is(err, litefs.ErrPrimaryExists) || errors.Is(err, litefs.ErrNoPrimary) || errors.Is(err, litefs.ErrNoRecord) {
				t.Errorf("%s of a server that fails: %v", name, err)
			}
		}
		if lease.RenewedAt() != at {
			t.Error("a renewal that failed moved RenewedAt")
		}
		p.set(pass)
		if err := lease.Renew(timeout(t)); err != nil {
			t.Errorf("Renew after the fault: %v", err)
		}
		if err := lease.SetRecord(timeout(t), litefs.Record{}); err != nil {
			t.Errorf("SetRecord after the fault: %v", err)
		}
	}
}

// lostAnswers is a server that does what it is asked and whose answers get lost.
func lostAnswers(t *testing.T, s suite) {
	p := s.proxy(t)
	through := func(o *Options) { o.URL = p.url() }
	ctx := timeout(t)
	a, b := s.node(t, "a", through), s.node(t, "b")
	p.set(loseAnswer)
	if _, err := a.Acquire(ctx); err == nil {
		t.Fatal("Acquire without an answer")
	}
	if _, err := a.SetOnce(ctx, "secret", []byte("a")); err == nil {
		t.Fatal("SetOnce without an answer")
	}
	p.set(pass)
	first, err := b.SetOnce(ctx, "secret", []byte("b"))
	if err != nil {
		t.Fatal(err)
	}
	if again, err := a.SetOnce(ctx, "secret", []byte("a")); err != nil || string(again) != string(first) {
		t.Errorf("SetOnce: got %q, %v, want %q", again, err, first)
	}

	lease := eventually(t, a)
	at := lease.RenewedAt()
	p.set(loseAnswer)
	if err := lease.Renew(ctx); err == nil || errors.Is(err, litefs.ErrLeaseExpired) {
		t.Errorf("Renew without an answer: %v", err)
	}
	if lease.RenewedAt() != at {
		t.Error("a renewal whose answer was lost moved RenewedAt")
	}
	p.set(pass)
	if err := lease.Renew(ctx); err != nil && lease.Remaining() > 0 {
		t.Errorf("Renew: %v", err)
	}
}

// lostAnswer loses the answers of an acquisition from one of its requests on: whichever that is, the node
// that asked does not count on the lease, and nobody waits for it for longer than for any other.
func lostAnswer(t *testing.T, s suite) {
	ctx := timeout(t)
	var last uint64
	for requests := 0; ; requests++ {
		p := s.proxy(t)
		a := s.node(t, "a", func(o *Options) { o.URL = p.url() })
		p.setAfter(loseAnswer, requests)
		lease, err := a.Acquire(ctx)
		p.set(pass)
		if err != nil {
			lease = eventually(t, s.node(t, "b"))
		}
		token := fenced(t, lease).Token()
		if token <= last {
			t.Errorf("token %d after %d", token, last)
		}
		last = token
		if err := lease.Close(); err != nil {
			t.Fatal(err)
		}
		if err == nil {
			if requests < 2 {
				t.Errorf("an acquisition of %d requests", requests)
			}
			return
		}
	}
}

// slow is a server that takes its time for each request: all goes on.
func slow(t *testing.T, s suite) {
	p := s.proxy(t)
	p.set(late)
	through := func(o *Options) { o.URL = p.url() }
	a, b := s.node(t, "a", through), s.node(t, "b", through)
	lease := mustAcquire(t, a)
	for range 3 {
		from := time.Now()
		if err := lease.Renew(timeout(t)); err != nil {
			t.Fatal(err)
		}
		if at := lease.RenewedAt(); at.Before(from) || time.Since(at) < lateness {
			t.Errorf("a lease counts from %v after a renewal began that took %v", at.Sub(from), time.Since(from))
		}
	}
	if err := lease.SetRecord(timeout(t), litefs.Record{NodeID: "aa"}); err != nil {
		t.Fatal(err)
	}
	if err := lease.Close(); err != nil {
		t.Fatal(err)
	}
	if next := eventually(t, b); next.Token() <= lease.Token() {
		t.Errorf("token %d after %d", next.Token(), lease.Token())
	}
}

// slept is a candidate whose machine slept while the holder renewed: the time that passed for it says
// nothing of a lock that it did not look at.
func slept(t *testing.T, s suite) {
	ctx := timeout(t)
	var jump atomic.Int64
	start := time.Now()
	long := func(o *Options) { o.TTL = 20 * s.TTL }
	a, b := s.node(t, "a", long), s.node(t, "b", long, func(o *Options) {
		o.Now = func() time.Duration { return time.Since(start) + time.Duration(jump.Load()) }
	})
	lease := mustAcquire(t, a)
	_, err := b.Acquire(ctx)
	wantErr(t, "Acquire", err, litefs.ErrPrimaryExists)
	jump.Store(int64(100 * s.TTL))
	if err := lease.Renew(ctx); err != nil {
		t.Fatal(err)
	}
	_, err = b.Acquire(ctx)
	wantErr(t, "Acquire after a sleep", err, litefs.ErrPrimaryExists)
	if err := lease.Renew(ctx); err != nil {
		t.Error(err)
	}
}

// pausedServer stops the server's process for longer than the lease lasts. Its clock goes on.
func pausedServer(t *testing.T, s suite) {
	a, b := s.node(t, "a"), s.node(t, "b")
	lease := mustAcquire(t, a)
	exclusive(t, lease, b, func() {
		if err := s.server.Pause(); err != nil {
			t.Fatal(err)
		}
		for lease.Remaining() > 0 {
			if err := lease.Renew(timeout(t)); errors.Is(err, litefs.ErrLeaseExpired) {
				t.Errorf("a paused server said that the lease is lost")
			}
		}
		if err := s.server.Resume(); err != nil {
			t.Fatal(err)
		}
	})
}

// restartedServer kills the server and starts it again with its data.
func restartedServer(t *testing.T, s suite) {
	a, b := s.node(t, "a"), s.node(t, "b")
	lease := mustAcquire(t, a)
	want := litefs.Record{NodeID: "aa"}
	if err := lease.SetRecord(timeout(t), want); err != nil {
		t.Fatal(err)
	}
	exclusive(t, lease, b, func() {
		if err := s.server.Kill(); err != nil {
			t.Fatal(err)
		}
		if _, err := a.PrimaryURL(timeout(t)); err == nil {
			t.Error("PrimaryURL of a dead server")
		}
		if err := s.server.Start(timeout(t)); err != nil {
			t.Fatal(err)
		}
	})
	if got, err := b.Record(timeout(t)); err != nil || got.NodeID != want.NodeID {
		t.Errorf("Record after a restart: got %+v, %v", got, err)
	}
}

// exclusive has b try for the lease while something happens to the server, and until it gets it: not
// before the holder's own view of it has ended.
func exclusive(t *testing.T, lease litefs.FencedLease, b leaser, meanwhile func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	got := make(chan error, 1)
	go func() {
		for {
			next, err := await(ctx, b)
			if err == nil {
				if d := lease.Remaining(); d > 0 {
					err = fmt.Errorf("a second holder while the first has %v left", d)
				} else if f, ok := next.(litefs.FencedLease); !ok || f.Token() <= lease.Token() {
					err = fmt.Errorf("the second holder's token is not greater than %d", lease.Token())
				}
				got <- err
				return
			}
			if ctx.Err() != nil {
				got <- fmt.Errorf("no second holder within %v: %w", patience, err)
				return
			}
		}
	}()
	meanwhile()
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	wantExpired(t, lease)
}
