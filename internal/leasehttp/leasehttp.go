// Package leasehttp calls the HTTP API of a lease server: each call has a time-out, each answer is
// bounded, and no credential gets into an error.
package leasehttp

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// ErrNoAnswer reports that the server did not answer in time. What was asked may have been done.
var ErrNoAnswer = errors.New("no answer")

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 1 << 20

// maxReason bounds what of a server's error is repeated, in bytes.
const maxReason = 300

// StatusError is an answer that is not a success.
type StatusError struct {
	Code int    // HTTP status
	Body []byte // at most maxAnswer bytes
}

func (e *StatusError) Error() string {
	reason := strings.Join(strings.Fields(string(e.Body)), " ")
	if len(reason) > maxReason {
		reason = reason[:maxReason] + "..."
	}
	return fmt.Sprintf("status %d: %s", e.Code, reason)
}

// Client calls one server. It is safe for concurrent use.
type Client struct {
	name    string // "consul", for errors
	base    string // scheme and host
	timeout time.Duration
	http    *http.Client

	transport *http.Transport // of http
}

// New returns a client of the server at base, a URL of which only the scheme and the host are used.
// A call takes at most timeout.
func New(name string, base *url.URL, timeout time.Duration) *Client {
	// No proxy of the environment: the lease of a cluster is not web traffic, and what is in between adds
	// to the time that a call takes.
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: timeout, KeepAlive: 5 * time.Second}).DialContext,
		TLSHandshakeTimeout: timeout,
		IdleConnTimeout:     90 * time.Second,
	}
	return &Client{
		name:      name,
		base:      (&url.URL{Scheme: base.Scheme, Host: base.Host}).String(),
		timeout:   timeout,
		transport: transport,
		http: &http.Client{
			Transport: transport,
			// A redirect would carry the credential to another host.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// Trust makes https believe the authorities in a PEM file and no others. It is read for each connection:
// authorities are replaced while nodes run.
func (c *Client) Trust(file string) {
	dialer := &net.Dialer{Timeout: c.timeout, KeepAlive: 5 * time.Second}
	c.transport.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("the server's authority: %w", err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s holds no certificate of an authority", file)
		}
		return (&tls.Dialer{NetDialer: dialer, Config: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}).DialContext(ctx, network, addr)
	}
}

// Close lets go of idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Base is the URL of the server, without credential and path.
func (c *Client) Base() string { return c.base }

// Timeout is how long a call may take.
func (c *Client) Timeout() time.Duration { return c.timeout }

// Request is one call.
type Request struct {
	Method string
	Path   string // escaped, with the query
	Header http.Header

	Body any // sent as JSON; []byte is sent as it is; nil is no body

	// Longer is added to the time-out: how long the server was asked to wait before it answers.
	Longer time.Duration
}

// Do sends r, decodes an answer with status 200 or 201 into out unless that is nil, and returns the answer's
// header. Another status is a *StatusError, an answer that is late is ErrNoAnswer.
func (c *Client) Do(ctx context.Context, r Request, out any) (http.Header, error) {
	limit := c.timeout + r.Longer
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	resp, body, err := c.roundTrip(limited, r)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: %w", c.what(r), context.Cause(ctx))
	case limited.Err() != nil:
		return nil, fmt.Errorf("%s: %w within %v", c.what(r), ErrNoAnswer, limit)
	default:
		return nil, fmt.Errorf("%s: %w", c.what(r), err)
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusCreated {
		return resp.Header, fmt.Errorf("%s: %w", c.what(r), &StatusError{resp.StatusCode, body})
	}
	if out != nil {
		if err := json.Unmarshal(body, out); err != nil {
			return nil, fmt.Errorf("%s: the answer is not what this server should say: %w", c.what(r), err)
		}
	}
	return resp.Header, nil
}

func (c *Client) roundTrip(ctx context.Context, r Request) (*http.Response, []byte, error) {
	resp, err := c.send(ctx, r)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, nil, err
	}
	if len(body) > maxAnswer {
		return nil, nil, fmt.Errorf("the answer is longer than %d bytes", maxAnswer)
	}
	return resp, body, nil
}

func (c *Client) send(ctx context.Context, r Request) (*http.Response, error) {
	var body io.Reader
	switch b := r.Body.(type) {
	case nil:
	case []byte:
		body = bytes.NewReader(b)
	default:
		text, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, c.base+r.Path, body)
	if err != nil {
		return nil, err
	}
	for k, v := range r.Header {
		req.Header[k] = v
	}
	resp, err := c.http.Do(req)
	if err != nil {
		// url.Error says method and URL, which what() does; its query is of no use to a reader.
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return nil, err
	}
	return resp, nil
}

// Stream sends r and returns the body of an answer with status 200 while it is still being written.
// It lives until ctx ends or it is closed; its reader bounds what it takes.
func (c *Client) Stream(ctx context.Context, r Request) (io.ReadCloser, error) {
	resp, err := c.send(ctx, r)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("%s: %w", c.what(r), err)
	}
	if resp.StatusCode != http.StatusOK {
		body, readErr := io.ReadAll(io.LimitReader(resp.Body, maxReason+1))
		return nil, errors.Join(fmt.Errorf("%s: %w", c.what(r), &StatusError{resp.StatusCode, body}), readErr, resp.Body.Close())
	}
	return resp.Body, nil
}

func (c *Client) what(r Request) string {
	path, _, _ := strings.Cut(r.Path, "?")
	return fmt.Sprintf("%s at %s: %s %s", c.name, c.base, r.Method, path)
}

// IsStatus reports whether err is an answer with this status.
func IsStatus(err error, code int) bool {
	var s *StatusError
	return errors.As(err, &s) && s.Code == code
}
