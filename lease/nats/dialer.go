package nats

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// dialer keeps the one connection to the servers. It is made by the first call that needs it, and again
// by the first one after its end. A client that reconnects by itself would send, once it can, what was
// asked before: here a call that failed is over, as far as this node can tell.
type dialer struct {
	urls        []string
	credentials string        // file; "": none
	timeout     time.Duration // for each server

	mu      sync.Mutex // guards what is below
	nc      *nats.Conn // nil: none
	attempt *attempt   // that is under way
	said    error      // by a server, of the connection, outside of an answer
}

// attempt is one to connect. It goes on when the call that began it has given up.
type attempt struct {
	done chan struct{} // closed at its end
	err  error         // after that
}

// connected returns a live connection. One that is new has passed check.
func (d *dialer) connected(ctx context.Context, check func(context.Context, *nats.Conn) error) (*nats.Conn, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		d.mu.Lock()
		if d.nc != nil && d.nc.IsConnected() {
			defer d.mu.Unlock()
			return d.nc, nil
		}
		a := d.attempt
		mine := a == nil
		if mine {
			a = &attempt{done: make(chan struct{})}
			d.attempt = a
			go d.dial(a, check)
		}
		d.mu.Unlock()
		select {
		case <-a.done:
			// One that an earlier call began may have failed by what was before this one.
			if a.err != nil && mine {
				return nil, a.err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// dial makes one attempt, which ends by itself within the time-out for each server and one more.
func (d *dialer) dial(a *attempt, check func(context.Context, *nats.Conn) error) {
	nc, err := d.connect()
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), d.timeout)
		if err = check(ctx, nc); err != nil {
			nc.Close()
		}
		cancel()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		d.nc = nc
	}
	a.err, d.attempt = err, nil
	close(a.done)
}

func (d *dialer) connect() (*nats.Conn, error) {
	o := nats.GetDefaultOptions()
	o.Servers, o.Name, o.Timeout = d.urls, "litefs", d.timeout
	o.AllowReconnect = false
	o.AsyncErrorCB = func(_ *nats.Conn, _ *nats.Subscription, err error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.said = err
	}
	if d.credentials != "" {
		if err := nats.UserCredentials(d.credentials)(&o); err != nil {
			return nil, fmt.Errorf("credentials of nats in %s: %w", d.credentials, err)
		}
	}
	nc, err := o.Connect()
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	return nc, nil
}

// drop ends a connection on which err has come, and adds to it what the server has said of it.
func (d *dialer) drop(nc *nats.Conn, err error) error {
	nc.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.nc == nc {
		d.nc = nil
	}
	if d.said != nil {
		err = fmt.Errorf("%w; the server said: %w", err, d.said)
	}
	d.said = nil
	return err
}

// Close is cas.Store's. It waits for an attempt that is under way.
func (d *dialer) Close() {
	for {
		d.mu.Lock()
		a, nc := d.attempt, d.nc
		if a == nil {
			d.nc = nil
			d.mu.Unlock()
			if nc != nil {
				nc.Close()
			}
			return
		}
		d.mu.Unlock()
		<-a.done
	}
}
