package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Headers between two proxies.
const (
	headerForward       = "Litefs-Forward"       // "1": for the application of the primary
	headerAuthorization = "Litefs-Authorization" // "Bearer TOKEN": Authorization is the application's
	headerNotPrimary    = "Litefs-Not-Primary"   // "1": nothing of the request was read
)

// keepBody is how much of a request's body is kept so that it can be sent again.
const keepBody = 64 << 10

// retryDelay is how long a peer that refuses connections is left alone: nothing
// wakes us when it accepts them.
const retryDelay = 100 * time.Millisecond

// newTarget returns the way to the application on this node.
func (p *Proxy) newTarget() *httputil.ReverseProxy {
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	transport := &http.Transport{
		MaxIdleConnsPerHost: 128,
		IdleConnTimeout:     30 * time.Second,
		DisableCompression:  true, // the client's own Accept-Encoding goes through
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dialPatiently(ctx, dialer, network, addr, p.opt.TargetTimeout)
		},
	}
	return &httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL.Scheme, pr.Out.URL.Host = "http", p.opt.Target
			clientHeaders(pr)
		},
		Transport:      transport,
		FlushInterval:  -1,
		ModifyResponse: p.setCookie,
		ErrorLog:       p.errorLog(),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			err = fmt.Errorf("the application at %s: %w", p.opt.Target, err)
			if dialFailed(err) {
				p.opt.Logger.Warn("proxy: request not answered", "method", r.Method, "path", r.URL.Path, "error", err)
				http.Error(w, "the application accepts no connection: nothing was done", http.StatusBadGateway)
				return
			}
			p.failed(w, r, err)
		},
	}
}

// dialFailed reports whether an error came before there was a connection.
func dialFailed(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// dialPatiently waits for an application that is still starting. A connection
// that is refused has delivered nothing.
func dialPatiently(ctx context.Context, d *net.Dialer, network, addr string, patience time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		conn, err := d.DialContext(ctx, network, addr)
		if err == nil || !errors.Is(err, unix.ECONNREFUSED) {
			return conn, err
		}
		select {
		case <-time.After(retryDelay):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// clientHeaders keeps what the client and the routers before us have said, and
// adds us to it.
func clientHeaders(pr *httputil.ProxyRequest) {
	pr.Out.Host = pr.In.Host
	for _, h := range []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded"} {
		if v, ok := pr.In.Header[h]; ok {
			pr.Out.Header[h] = v
		}
	}
	pr.Out.Header.Del(headerForward)
	pr.Out.Header.Del(headerAuthorization)
	if pr.In.Context().Value(forwardedKey{}) != nil {
		return // another proxy of ours has added the client
	}
	if ip, _, err := net.SplitHostPort(pr.In.RemoteAddr); err == nil {
		if before := pr.Out.Header["X-Forwarded-For"]; len(before) > 0 {
			ip = strings.Join(before, ", ") + ", " + ip
		}
		pr.Out.Header.Set("X-Forwarded-For", ip)
	}
	if pr.Out.Header.Get("X-Forwarded-Host") == "" {
		pr.Out.Header.Set("X-Forwarded-Host", pr.In.Host)
	}
	if pr.Out.Header.Get("X-Forwarded-Proto") == "" {
		proto := "http"
		if pr.In.TLS != nil {
			proto = "https"
		}
		pr.Out.Header.Set("X-Forwarded-Proto", proto)
	}
}

// newPrimary returns the way to the primary's node.
func (p *Proxy) newPrimary() *httputil.ReverseProxy {
	dialer := &net.Dialer{Timeout: 2 * time.Second}
	base := &http.Transport{
		MaxIdleConnsPerHost: 128,
		IdleConnTimeout:     30 * time.Second, // less than the server's: it hardly ever closes one that we use
		DisableCompression:  true,
		DialContext:         dialer.DialContext,
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			d := tls.Dialer{NetDialer: dialer}
			if p.opt.TLS != nil {
				d.Config = p.opt.TLS()
			}
			conn, err := d.DialContext(ctx, network, addr)
			if err != nil {
				// A handshake that fails has delivered nothing either.
				err = &net.OpError{Op: "dial", Net: network, Err: err}
			}
			return conn, err
		},
	}
	return &httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			clientHeaders(pr)
			pr.Out.Header.Set(headerForward, "1")
			if p.opt.Token != "" {
				pr.Out.Header.Set(headerAuthorization, "Bearer "+p.opt.Token)
			}
			pr.Out.URL.Scheme, pr.Out.URL.Host = "http", "primary" // primaryTransport knows better
		},
		Transport:     &primaryTransport{p, base},
		FlushInterval: -1,
		ErrorLog:      p.errorLog(),
		ErrorHandler:  p.failed,
	}
}

// errUnsent says that no application has seen anything of the request.
var errUnsent = errors.New("not sent")

// failed answers a request that has got no answer.
func (p *Proxy) failed(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil && p.ctx.Err() == nil {
		return // the client has gone
	}
	p.opt.Logger.Warn("proxy: request not answered", "method", r.Method, "path", r.URL.Path, "error", err)
	if errors.Is(err, errUnsent) {
		unavailable(w, err.Error())
		return
	}
	http.Error(w, "the request was sent and not answered; it may have been carried out", http.StatusBadGateway)
}

// primaryTransport sends a request to whichever node is the primary, again if the
// first one turns out not to be, and never twice to an application.
type primaryTransport struct {
	p    *Proxy
	base *http.Transport
}

func (t *primaryTransport) CloseIdleConnections() { t.base.CloseIdleConnections() }

func (t *primaryTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := newBody(r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), t.p.opt.PrimaryTimeout)
	defer cancel()
	changed, stop := t.p.node.Watch()
	defer stop()

	last := fmt.Errorf("%w: no primary is known", errUnsent)
	for {
		if t.p.node.IsPrimary() {
			return t.here(r, body)
		}
		if primary := t.p.node.PrimaryURL(); primary != "" {
			resp, err := t.send(r, body, primary)
			if err == nil || !errors.Is(err, errUnsent) {
				return resp, err
			}
			if last = err; !body.again() {
				return nil, fmt.Errorf("%w; its body is too long to be sent again", last)
			}
		}
		select {
		case <-changed:
		case <-time.After(retryDelay): // a node that restarts under the same URL is no change
		case <-ctx.Done():
			return nil, last
		}
	}
}

// here gives the request to the application on this node, which has become the
// primary while the request waited.
func (t *primaryTransport) here(r *http.Request, body *body) (*http.Response, error) {
	out := body.request(r, t.p.noteBefore(r.Context()))
	out.Header.Del(headerForward)
	out.Header.Del(headerAuthorization)
	out.URL.Scheme, out.URL.Host = "http", t.p.opt.Target
	resp, err := t.p.target.Transport.RoundTrip(out)
	if err == nil {
		err = t.p.setCookie(resp)
	}
	return resp, err
}

// send tries one primary. An error that is errUnsent leaves the request as new.
func (t *primaryTransport) send(r *http.Request, body *body, primary string) (*http.Response, error) {
	u, err := url.Parse(primary)
	if err != nil {
		return nil, fmt.Errorf("%w: the primary's URL: %w", errUnsent, err)
	}
	out := body.request(r, r.Context())
	out.URL.Scheme, out.URL.Host = u.Scheme, u.Host
	resp, err := t.base.RoundTrip(out)
	switch {
	case dialFailed(err):
		return nil, fmt.Errorf("%w: %w", errUnsent, err)
	case err != nil:
		return nil, fmt.Errorf("primary at %s: %w", primary, err)
	case resp.Header.Get(headerNotPrimary) != "":
		err := resp.Body.Close()
		return nil, errors.Join(fmt.Errorf("%w: %s is not the primary any more", errUnsent, primary), err)
	case resp.StatusCode == http.StatusUnauthorized && resp.Header.Get(headerForward) != "":
		err := resp.Body.Close()
		return nil, errors.Join(fmt.Errorf("%w: %s refuses the token of this node", errUnsent, primary), err)
	}
	return resp, nil
}

// body is a request's body that can be sent again: a short one from memory, a
// long one as long as nobody has read of it.
type body struct {
	kept []byte // all of it; nil when it is long
	rest io.ReadCloser
	read atomic.Bool // rest was read from
}

func newBody(r *http.Request) (*body, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return &body{kept: []byte{}}, nil
	}
	if r.ContentLength < 0 || r.ContentLength > keepBody {
		return &body{rest: r.Body}, nil
	}
	kept := make([]byte, r.ContentLength)
	_, err := io.ReadFull(r.Body, kept)
	if err = errors.Join(err, r.Body.Close()); err != nil {
		return nil, fmt.Errorf("%w: read the request: %w", errUnsent, err)
	}
	return &body{kept: kept}, nil
}

// request returns a copy of r with the body, to be sent once.
func (b *body) request(r *http.Request, ctx context.Context) *http.Request {
	out := r.Clone(ctx)
	switch {
	case b.rest != nil:
		out.Body = &onceBody{b}
	case len(b.kept) == 0:
		out.Body, out.ContentLength = http.NoBody, 0
	default:
		// GetBody lets the transport itself choose another connection when nothing was written.
		out.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.kept)), nil }
		out.Body = io.NopCloser(bytes.NewReader(b.kept))
	}
	return out
}

// again reports whether the body can be sent once more.
func (b *body) again() bool { return b.rest == nil || !b.read.Load() }

// onceBody is a long body that a transport may close without having read it. The
// server closes the client's end.
type onceBody struct{ b *body }

func (o *onceBody) Read(p []byte) (int, error) {
	o.b.read.Store(true)
	return o.b.rest.Read(p)
}

func (o *onceBody) Close() error { return nil }

// errorLog takes what httputil has to say of connections that end.
func (p *Proxy) errorLog() *log.Logger {
	return slog.NewLogLogger(p.opt.Logger.Handler(), slog.LevelDebug)
}
