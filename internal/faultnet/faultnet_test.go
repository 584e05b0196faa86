package faultnet

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"
)

// patience bounds waits for what should be quick.
const patience = 30 * time.Second

// echo is a server that says what it hears.
func echo(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	t.Cleanup(func() {
		_ = ln.Close()
		<-done
	})
	return ln.Addr().String()
}

func start(t *testing.T, target string) *Proxy {
	t.Helper()
	p, err := Listen(target, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func dial(t *testing.T, p *Proxy) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

// said sends b and returns as many bytes of the answer.
func said(t *testing.T, c net.Conn, b []byte) []byte {
	t.Helper()
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(b))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestGoodNetworkChangesNothing(t *testing.T) {
	p := start(t, echo(t))
	c := dial(t, p)
	b := make([]byte, 1<<20)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	go func() { _, _ = c.Write(b) }()
	got := make([]byte, len(b))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, b) {
		t.Fatalf("other bytes came back (%v)", err)
	}
}

func TestCorruptAndDuplicate(t *testing.T) {
	p := start(t, echo(t))
	c := dial(t, p)
	p.Set(Faults{Up: Direction{Corrupt: 1}})
	if got := said(t, c, []byte("hello")); string(got) == "hello" {
		t.Error("nothing is corrupt")
	}
	p.Set(Faults{Down: Direction{Duplicate: 1}})
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 10)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "hellohello" {
		t.Errorf("%q, %v", got, err)
	}
	if n := p.Counts(); n.Corrupted != 1 || n.Duplicated != 1 || n.Connections != 1 {
		t.Errorf("%+v", n)
	}
}

func TestStallHoldsAndLosesNothing(t *testing.T) {
	p := start(t, echo(t))
	c := dial(t, p)
	said(t, c, []byte("x"))
	p.Set(Faults{Down: Direction{Stall: true}})
	if _, err := c.Write([]byte("held")); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if n, err := c.Read(b); err == nil {
		t.Fatalf("%q came through", b[:n])
	}
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	p.Set(Faults{})
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "held" {
		t.Fatalf("%q, %v", b, err)
	}
}

func TestDelayAndRate(t *testing.T) {
	p := start(t, echo(t))
	c := dial(t, p)
	p.Set(Faults{Up: Direction{Delay: 60 * time.Millisecond}, Down: Direction{Rate: 100}})
	from := time.Now()
	said(t, c, []byte("0123456789"))
	if d := time.Since(from); d < 150*time.Millisecond {
		t.Errorf("after %s, want 60 ms and 100 ms", d)
	}
}

func TestCutAndRefuse(t *testing.T) {
	p := start(t, echo(t))
	c := dial(t, p)
	said(t, c, []byte("x"))
	p.Cut()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection goes on after a cut")
	}
	p.Set(Faults{Refuse: true})
	if c, err := net.Dial("tcp", p.Addr()); err == nil { // the reset may come as early as that
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a connection that is refused is served")
		}
		_ = c.Close()
	}
	p.Set(Faults{Up: Direction{Cut: 1}})
	c = dial(t, p)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err == nil {
		t.Errorf("%q, and no reset", b)
	}
}

// Whatever the weather, the proxy ends, and with it everything of it.
func TestStormEnds(t *testing.T) {
	p := start(t, echo(t))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			c, err := net.Dial("tcp", p.Addr())
			if err != nil {
				continue
			}
			_ = c.SetDeadline(time.Now().Add(20 * time.Millisecond))
			_, _ = c.Write(make([]byte, 100_000))
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
	}()
	weathers := 0
	p.Storm(ctx, rand.New(rand.NewPCG(1, 2)), 10*time.Millisecond, func(string) { weathers++ })
	<-done
	if weathers < 5 || p.Counts().Connections == 0 {
		t.Errorf("%d kinds of weather, %+v", weathers, p.Counts())
	}
	c := dial(t, p)
	if got := said(t, c, []byte("calm")); string(got) != "calm" {
		t.Errorf("%q after the storm", got)
	}
}
