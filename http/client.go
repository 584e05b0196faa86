package http

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/litefs/litefs"
)

// ErrStalled reports a node that sent nothing for too long.
var ErrStalled = errors.New("the node sends nothing, not even a heartbeat")

// StatusError is a request that a node refused.
type StatusError struct {
	Code       int           // HTTP status
	Line       string        // the node's reason
	PrimaryURL string        // with 503: the primary that the node knows; "" if none
	RetryAfter time.Duration // with 503: when to ask again; 0 if not told
}

func (e *StatusError) Error() string {
	if e.Line == "" {
		return fmt.Sprintf("refused: %d %s", e.Code, http.StatusText(e.Code))
	}
	return fmt.Sprintf("refused: %s (%d)", e.Line, e.Code)
}

// Identity is what a node tells of itself in a handshake. A litefs.Store is one.
type Identity interface {
	ClusterID() string // "" before the node has met its primary
	NodeID() string
	Epoch() uint64
}

// timeouts are the client's bounds in time.
type timeouts struct {
	dial      time.Duration
	handshake time.Duration // from the request to the answer's headers
	stall     time.Duration // a read of a stream that brings no byte for so long ends the stream
	info      time.Duration // for a whole short request
}

func defaultTimeouts() timeouts {
	return timeouts{dial: 5 * time.Second, handshake: 10 * time.Second, stall: 5 * time.Second, info: 10 * time.Second}
}

const (
	maxLineLen  = 512      // bytes of a refusal's reason
	maxInfoSize = 64 << 20 // bytes of an Info
)

// Client connects to other nodes. It is safe for concurrent use and holds nothing between requests.
type Client struct {
	identity Identity
	token    string
	tls      *certificates // nil: what the system trusts
	timeouts timeouts
	filter   filter // databases to follow

	listens func() string // URL at which this node listens; nil: nowhere
}

var _ litefs.Client = (*Client)(nil)

// NewClient returns a client that shows identity and token. Without a token it connects to nodes on
// this machine only. identity may be nil for a client that starts no streams.
func NewClient(identity Identity, token string) *Client {
	return &Client{identity: identity, token: token, timeouts: defaultTimeouts()}
}

// UseTLS makes the client show, and ask for, certificates of files. It is called before any request.
func (c *Client) UseTLS(files TLSFiles, logger *slog.Logger) (err error) {
	c.tls, err = openCertificates(files, logger)
	return err
}

// TLSConfig returns the configuration of one more connection to a node, with the certificates as they are
// now; nil without UseTLS.
func (c *Client) TLSConfig() *tls.Config {
	if c.tls == nil {
		return nil
	}
	return c.tls.client()
}

// Follow limits streams to databases whose names match one of the patterns, as path.Match has them. It is
// called before any request; without it all are wanted.
func (c *Client) Follow(patterns []string) error {
	c.filter = patterns
	return c.filter.validate()
}

// Advertise makes streams tell where this node listens, so that a primary that lost transactions with its
// power can ask for them. It is called before any request; url may be called at any time.
func (c *Client) Advertise(url func() string) { c.listens = url }

// Stream starts a stream of changes from the node at rawurl, from the positions in posMap on. It is a
// *Stream. The error is a *StatusError if the node refuses.
func (c *Client) Stream(ctx context.Context, rawurl string, posMap map[uint32]litefs.Pos) (litefs.StreamReader, error) {
	s, err := c.stream(ctx, rawurl, posMap)
	if err != nil {
		return nil, fmt.Errorf("stream from %s: %w", rawurl, err)
	}
	return s, nil
}

func (c *Client) stream(ctx context.Context, rawurl string, posMap map[uint32]litefs.Pos) (_ *Stream, err error) {
	if c.identity == nil {
		return nil, errors.New("a client without an identity starts no streams")
	}
	u, err := endpoint(rawurl, "stream")
	if err != nil {
		return nil, err
	}
	// The request's body stays open: after the positions it carries what the replica acknowledges.
	var positions bytes.Buffer
	out := newBlockWriter(&positions)
	if err := WritePosMap(out, posMap); err != nil {
		return nil, err
	}
	acks, up := io.Pipe()
	out.w = up
	ctx, cancel := context.WithCancelCause(ctx)
	// The transport does not look at the context while it reads the body.
	context.AfterFunc(ctx, func() { _ = up.CloseWithError(context.Cause(ctx)) })   // never fails
	conn := c.newStreamConnection(func() { _ = up.CloseWithError(net.ErrClosed) }) // never fails
	defer func() {
		if err != nil {
			cancel(err)
			conn.close()
		}
	}()
	// The transport closes the body when the request ends, which ends a read of it that waits.
	body := struct {
		io.Reader
		io.Closer
	}{io.MultiReader(&positions, acks), acks}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	c.identify(req)
	req.Header.Set(headerPages, "1")
	req.Header.Set(headerPromises, promisesLevels)
	if p, ok := c.identity.(interface{ Position() litefs.NodePosition }); ok {
		pos := p.Position()
		req.Header.Set(headerURL, pos.URL)
		req.Header.Set(headerCandidate, strconv.FormatBool(pos.Candidate))
	}
	if c.listens != nil && req.Header.Get(headerURL) == "" {
		req.Header.Set(headerURL, c.listens())
	}
	c.filter.write(req.Header)
	req.Header.Set(headerSum, handshakeSum(req.Header))

	watchdog := time.AfterFunc(c.timeouts.handshake, func() { cancel(ErrStalled) })
	resp, err := c.do(conn, req)
	if !watchdog.Stop() && err == nil {
		err = errors.Join(ErrStalled, resp.Body.Close())
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, err
	}
	s := &Stream{cancel: cancel, conn: conn, body: resp.Body, up: out}
	if err := s.readHeader(resp.Header); err != nil {
		return nil, errors.Join(err, resp.Body.Close())
	}
	if own := c.identity.ClusterID(); own != "" && own != s.clusterID {
		return nil, errors.Join(fmt.Errorf("the node belongs to cluster %q, this one to %q: correct the advertise-url", s.clusterID, own), resp.Body.Close())
	}
	s.in = newFrameReader(newBlockReaderSize(&patientReader{ctx: ctx, cancel: cancel, r: resp.Body, patience: c.timeouts.stall}, maxWrite))
	return s, nil
}

// Info asks the node at rawurl about itself.
func (c *Client) Info(ctx context.Context, rawurl string) (Info, error) {
	info, err := c.info(ctx, rawurl)
	if err != nil {
		return Info{}, fmt.Errorf("info of %s: %w", rawurl, err)
	}
	return info, nil
}

func (c *Client) info(ctx context.Context, rawurl string) (info Info, err error) {
	u, err := endpoint(rawurl, "info")
	if err != nil {
		return Info{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeouts.info)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return Info{}, err
	}
	conn := c.newConnection()
	defer conn.close()
	resp, err := c.do(conn, req)
	if err != nil {
		return Info{}, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxInfoSize+1))
	if err != nil {
		return Info{}, err
	}
	if len(b) > maxInfoSize {
		return Info{}, fmt.Errorf("answer of more than %d bytes", maxInfoSize)
	}
	if err := json.Unmarshal(b, &info); err != nil {
		return Info{}, fmt.Errorf("answer: %w", err)
	}
	return info, nil
}

// do sends req on conn. A status other than 200 is a *StatusError.
func (c *Client) do(conn *connection, req *http.Request) (*http.Response, error) {
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	client := http.Client{
		Transport: conn.transport,
		// The token is for the node that was named, not for wherever its answer points.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		// The caller names the node; the method and URL that net/http prefixes say nothing more.
		if uerr := (*url.Error)(nil); errors.As(err, &uerr) {
			err = uerr.Err
		}
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		serr := newStatusError(resp)
		return nil, errors.Join(serr, resp.Body.Close())
	}
	return resp, nil
}

func newStatusError(resp *http.Response) error {
	e := &StatusError{Code: resp.StatusCode}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxLineLen))
	if err != nil {
		return errors.Join(e, fmt.Errorf("reason: %w", err))
	}
	line, _, _ := strings.Cut(string(b), "\n")
	e.Line = printable(line)
	if resp.StatusCode == http.StatusServiceUnavailable {
		e.PrimaryURL = printable(resp.Header.Get(headerPrimaryURL))
		if n, err := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 16); err == nil {
			e.RetryAfter = time.Duration(n) * time.Second
		}
	}
	return e
}

// printable replaces what could change the terminal or the log that a node's words end up in.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '.'
		}
		return r
	}, s)
}

// endpoint returns the URL of path at the node at rawurl.
func endpoint(rawurl, path string) (string, error) {
	u, err := url.Parse(rawurl)
	if err != nil {
		return "", err
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("%q is no URL of a node, want one like http://10.0.0.1:20202", rawurl)
	}
	return u.JoinPath(path).String(), nil
}

// connection is the transport of one request. Requests do not share connections: one that has gone
// silent must end with its stream, and not be there for the next.
type connection struct {
	transport *http.Transport
	ended     func() // called when the transport closes a connection

	mu     sync.Mutex
	closed bool
	conns  []net.Conn
}

// newConnection returns the transport of a request in HTTP/2, in the clear with prior knowledge.
func (c *Client) newConnection() *connection {
	conn := c.newTransport()
	conn.transport.Protocols.SetUnencryptedHTTP2(true)
	conn.transport.Protocols.SetHTTP2(true)
	conn.transport.HTTP2 = &http.HTTP2Config{MaxReadFrameSize: maxWrite} // one write of the server, one frame
	return conn
}

// newStreamConnection returns the transport of a stream, in HTTP/1.1: both sides then read and write the connection
// themselves. In HTTP/2 net/http has goroutines of its own for that, which wake each other several times for each
// transaction, and answers what is read with frames of its own.
//
// ended is called at the end of the connection, and has to end the request's body: the transport tells of an end only when
// nobody reads that any more.
func (c *Client) newStreamConnection(ended func()) *connection {
	conn := c.newTransport()
	conn.ended = ended
	conn.transport.Protocols.SetHTTP1(true)
	conn.transport.ReadBufferSize = maxBlock
	return conn
}

func (c *Client) newTransport() *connection {
	dialer := &net.Dialer{Timeout: c.timeouts.dial}
	if c.token == "" {
		dialer.Control = checkDial
	}
	var tlsConfig *tls.Config
	if c.tls != nil {
		tlsConfig = c.tls.client()
	}
	conn := &connection{ended: func() {}}
	conn.transport = &http.Transport{
		Protocols:              &http.Protocols{},
		TLSClientConfig:        tlsConfig,
		TLSHandshakeTimeout:    c.timeouts.dial,
		DisableCompression:     true, // LTX files are compressed
		MaxResponseHeaderBytes: 16 << 10,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			nc, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return endingConn{nc, conn.ended}, conn.add(nc)
		},
	}
	return conn
}

// add notes nc, to be closed with c. An error means that c is closed already, and nc too now.
func (c *connection) add(nc net.Conn) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return errors.Join(net.ErrClosed, nc.Close())
	}
	c.conns = append(c.conns, nc)
	return nil
}

// close closes the connection under whatever the transport still does on it. Asking the transport to
// close it would leave one open whose stream is just ending.
func (c *connection) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, nc := range c.conns {
		_ = nc.Close() // closed by the other side or by the transport: that is as good
	}
	c.conns = nil
	c.transport.CloseIdleConnections()
}

// endingConn tells when it is closed.
type endingConn struct {
	net.Conn
	ended func()
}

func (c endingConn) Close() error {
	c.ended()
	return c.Conn.Close()
}
