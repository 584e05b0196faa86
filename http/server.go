package http

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/litefs/litefs"
)

// Options configure a Server.
type Options struct {
	Addr  string // host:port to listen on; port 0 picks one
	Token string // bearer token of the cluster's nodes; "" admits loopback addresses only
	// AdminToken is the operator's. "": the nodes' token opens his calls too.
	AdminToken string
	Candidate  bool         // told by GET /info
	TLS        TLSFiles     // without a certificate connections are in the clear
	Logger     *slog.Logger // required

	// Listener, if set, is bound to Addr already: Listen takes it as it is.
	Listener net.Listener

	// Intercept, if set, sees requests before the server does, and hands on those
	// that it does not answer.
	Intercept func(next http.Handler) http.Handler
}

// limits are the server's bounds in time.
type limits struct {
	header    time.Duration // from a connection's first byte to the end of a request's headers
	body      time.Duration // for the body of a request, and for a short answer
	heartbeat time.Duration // between heartbeats
	stall     time.Duration // a stream's write that makes no progress for so long ends the stream
	retry     time.Duration // after a database's first error; doubled up to maxRetry
	maxRetry  time.Duration
	stop      time.Duration // for the end of Serve
}

func defaultLimits() limits {
	return limits{
		header:    10 * time.Second,
		body:      10 * time.Second,
		heartbeat: time.Second,
		stall:     30 * time.Second,
		retry:     time.Second,
		maxRetry:  30 * time.Second,
		stop:      5 * time.Second,
	}
}

// Server answers the requests of other nodes and of the commands. Listen, then Serve.
type Server struct {
	src    Source
	opt    Options
	limits limits

	ln  net.Listener // set by Listen
	srv *http.Server

	ctx    context.Context // ends when the server closes; every stream ends with it
	cancel context.CancelFunc

	exchanges chan struct{} // capacity maxExchanges: comparisons of pages at work

	mu       sync.Mutex
	closing  bool           // no request is admitted any more
	handlers sync.WaitGroup // requests in their handlers; Add only under mu and before closing
}

// NewServer returns a server of store.
func NewServer(store *litefs.Store, opt Options) *Server {
	return newServer(storeSource{store}, opt, defaultLimits())
}

func newServer(src Source, opt Options, l limits) *Server {
	s := &Server{src: src, opt: opt, limits: l, exchanges: make(chan struct{}, maxExchanges)}
	s.ctx, s.cancel = context.WithCancel(context.Background())

	handler := s.handler()
	if opt.Intercept != nil {
		handler = opt.Intercept(handler)
	}

	var protocols http.Protocols
	protocols.SetHTTP1(true) // streams, and curl and the like
	protocols.SetUnencryptedHTTP2(true)
	s.srv = &http.Server{
		Handler:           s.tracked(handler),
		Protocols:         &protocols,
		ReadHeaderTimeout: l.header,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    64 << 10, // a forwarded request brings those of the application's client
		ErrorLog:          slog.NewLogLogger(opt.Logger.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{
			// A heartbeat to a machine that lost its power fits into buffers for hours: only a
			// ping without an answer tells.
			SendPingTimeout:  l.stall / 3,
			PingTimeout:      l.stall / 3,
			WriteByteTimeout: l.stall,
		},
	}
	return s
}

// Listen binds the address, so that URL is known and connections are queued. Without a token it
// refuses an address that other machines can reach.
func (s *Server) Listen() error {
	if s.opt.Addr == "" {
		return errors.New("http.addr is empty: set it to a host and port like 127.0.0.1:20202")
	}
	if !s.opt.TLS.IsZero() {
		if s.opt.TLS.Cert == "" {
			return errNoCert
		}
		id, err := openCertificates(s.opt.TLS, s.opt.Logger)
		if err != nil {
			return err
		}
		s.srv.TLSConfig = id.server()
		s.srv.Protocols.SetHTTP2(true)
		s.srv.Protocols.SetUnencryptedHTTP2(false)
	}
	if s.opt.Listener != nil {
		s.ln = s.opt.Listener
		return nil
	}
	var lc net.ListenConfig
	if s.opt.Token == "" {
		lc.Control = checkListen
	}
	ln, err := lc.Listen(s.ctx, "tcp", s.opt.Addr)
	if err != nil {
		return fmt.Errorf("http.addr: %w", err)
	}
	s.ln = ln
	return nil
}

// Listener is what the server is bound to; nil before Listen.
func (s *Server) Listener() net.Listener { return s.ln }

// URL returns the base URL at which this machine reaches the server; "" before Listen.
func (s *Server) URL() string {
	if s.ln == nil {
		return ""
	}
	scheme := "http://"
	if !s.opt.TLS.IsZero() {
		scheme = "https://"
	}
	addr, ok := s.ln.Addr().(*net.TCPAddr)
	if ok && addr.IP.IsUnspecified() {
		return scheme + net.JoinHostPort("localhost", strconv.Itoa(addr.Port))
	}
	return scheme + s.ln.Addr().String()
}

// Serve answers requests until ctx ends or Close is called, and returns nil then; else the error that
// ended it. When ctx ends it closes the server.
func (s *Server) Serve(ctx context.Context) error {
	if s.ln == nil {
		return errors.New("http server: Serve before Listen")
	}
	served := make(chan error, 1)
	go func() {
		if s.srv.TLSConfig != nil {
			served <- s.srv.ServeTLS(s.ln, "", "")
		} else {
			served <- s.srv.Serve(s.ln)
		}
	}()

	var err error
	select {
	case err = <-served:
	case <-ctx.Done():
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.limits.stop)
		defer cancel()
		if err := s.Close(stopCtx); err != nil {
			return errors.Join(err, ignoreClosed(<-served))
		}
		err = <-served
	}
	return ignoreClosed(err)
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("http server: %w", err)
}

// Close ends every stream between two frames, or within one that cannot be written, and waits for all
// requests until ctx ends.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	s.cancel()

	err := s.srv.Shutdown(ctx)
	if err != nil {
		err = errors.Join(fmt.Errorf("http server: connections closed before they were done: %w", err), s.srv.Close())
	}
	if s.ln != nil {
		// Shutdown closes it only if Serve has seen it.
		if cerr := s.ln.Close(); cerr != nil && !errors.Is(cerr, net.ErrClosed) {
			err = errors.Join(err, cerr)
		}
	}

	done := make(chan struct{})
	go func() {
		s.handlers.Wait()
		close(done)
	}()
	select {
	case <-done:
		return err
	case <-ctx.Done():
		return errors.Join(err, fmt.Errorf("http server: requests still in their handlers: %w", ctx.Err()))
	}
}

// tracked lets Close wait for the handlers. net/http waits for connections, and a connection may end
// before the handlers of its streams.
func (s *Server) tracked(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		if s.closing {
			s.mu.Unlock()
			http.Error(w, "this node is stopping", http.StatusServiceUnavailable)
			return
		}
		s.handlers.Add(1)
		s.mu.Unlock()
		defer s.handlers.Done()
		next.ServeHTTP(w, r)
	})
}

// refuse answers with one line and logs it.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, code int, line string) {
	s.opt.Logger.Warn("request refused", "path", r.URL.Path, "remote", r.RemoteAddr,
		"node", r.Header.Get(headerID), "status", code, "reason", line)
	http.Error(w, line, code)
}

// answer writes a short body within the limit for it.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.limits.body))
	if err == nil {
		_, err = w.Write(body)
	}
	if err != nil {
		s.opt.Logger.Debug("answer not written", "path", r.URL.Path, "remote", r.RemoteAddr, "error", err)
	}
}
