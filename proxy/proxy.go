package proxy

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"
)

// Node is what the proxy must know of the node it is on.
type Node interface {
	IsPrimary() bool
	Epoch() uint64
	PrimaryURL() string      // of its API; "" when no primary is known
	PrimaryHostname() string // "" when no primary is known
	Lag() (time.Duration, bool)

	// TXID is where a database is; 0 when there is none with the id. It is asked at every read.
	TXID(id uint32) uint64

	// Positions returns the TXIDs, by database id, of the databases whose names match a pattern.
	// With settle, on a primary, what applications have committed before the call is counted.
	Positions(patterns []string, settle bool) (map[uint32]uint64, error)

	// Hurry tells of a database that a request waits for.
	Hurry(id uint32)

	// Watch returns a channel that gets a value after every change of role, primary or position,
	// until stop is called. Several changes may come as one value.
	Watch() (changed <-chan struct{}, stop func())
}

// Mode is how a write on a replica gets to the primary.
type Mode string

// Modes, as the configuration has them.
const (
	Forward   Mode = "forward"    // this node sends it there
	FlyReplay Mode = "fly-replay" // Fly.io's router is told to
	Redirect  Mode = "redirect"   // the client is told to
)

// Options configure a Proxy. Durations are > 0 unless said.
type Options struct {
	Addr      string       // to listen on
	Listener  net.Listener // bound to Addr already; nil: Listen binds it
	Target    string       // host:port of the application
	Databases []string     // patterns of the databases that cookies speak of
	MaxLag    time.Duration

	Passthrough   []string // patterns of paths
	AlwaysForward []string

	Write       Mode
	RedirectURL string // for Redirect; {hostname} stands for the primary's

	PrimaryTimeout time.Duration // for a primary to be known
	WaitTimeout    time.Duration // for a position to be reached
	TargetTimeout  time.Duration // for the application to accept a connection

	ReadTimeout       time.Duration // of a whole request; 0: none
	ReadHeaderTimeout time.Duration
	WriteTimeout      time.Duration // of a whole response; 0: none
	IdleTimeout       time.Duration

	Token     string // between nodes; "" only among loopback addresses
	CookieKey []byte // CookieKey
	Debug     bool   // log every request
	Logger    *slog.Logger

	// TLS returns the configuration of the next connection to a primary with an https URL;
	// certificates change. nil: the system's.
	TLS func() *tls.Config
}

// Proxy serves the application's clients.
type Proxy struct {
	node  Node
	opt   Options
	rules rules

	target  *httputil.ReverseProxy // the application here
	primary *httputil.ReverseProxy // the primary's node

	ln  net.Listener
	srv *http.Server

	// ctx ends when the proxy closes, and with it whatever is in flight: a WebSocket would stay.
	ctx    context.Context
	cancel context.CancelFunc
}

// New returns a proxy for the application beside node. Listen, then Serve.
func New(node Node, opt Options) *Proxy {
	p := &Proxy{node: node, opt: opt, rules: rules{opt.Passthrough, opt.AlwaysForward}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.target = p.newTarget()
	p.primary = p.newPrimary()
	p.srv = &http.Server{
		Handler:           p,
		ReadTimeout:       opt.ReadTimeout,
		ReadHeaderTimeout: opt.ReadHeaderTimeout,
		WriteTimeout:      opt.WriteTimeout,
		IdleTimeout:       opt.IdleTimeout,
		ErrorLog:          slog.NewLogLogger(opt.Logger.Handler(), slog.LevelDebug),
	}
	return p
}

// Listen binds the address, so that URL is known and connections are queued.
func (p *Proxy) Listen() error {
	if p.opt.Listener != nil {
		p.ln = p.opt.Listener
		return nil
	}
	ln, err := (&net.ListenConfig{}).Listen(p.ctx, "tcp", p.opt.Addr)
	if err != nil {
		return fmt.Errorf("proxy.addr: %w: stop what uses the address, or choose another one", err)
	}
	p.ln = ln
	return nil
}

// Listener is what the proxy is bound to; nil before Listen.
func (p *Proxy) Listener() net.Listener { return p.ln }

// URL is where this machine reaches the proxy; "" before Listen.
func (p *Proxy) URL() string {
	if p.ln == nil {
		return ""
	}
	if a, ok := p.ln.Addr().(*net.TCPAddr); ok && a.IP.IsUnspecified() {
		return fmt.Sprintf("http://localhost:%d", a.Port)
	}
	return "http://" + p.ln.Addr().String()
}

// Serve answers requests until Close, and returns nil then.
func (p *Proxy) Serve() error {
	if err := p.srv.Serve(p.ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("proxy: %w", err)
	}
	return nil
}

// Close lets requests end until ctx does, then cuts what is left.
func (p *Proxy) Close(ctx context.Context) error {
	err := p.srv.Shutdown(ctx)
	p.cancel()
	if err != nil {
		err = errors.Join(fmt.Errorf("proxy: requests cut off: %w", err), p.srv.Close())
	}
	if p.ln != nil {
		// Shutdown closes it only if Serve has seen it.
		if cerr := p.ln.Close(); cerr != nil && !errors.Is(cerr, net.ErrClosed) {
			err = errors.Join(err, cerr)
		}
	}
	for _, rp := range []*httputil.ReverseProxy{p.target, p.primary} {
		if t, ok := rp.Transport.(interface{ CloseIdleConnections() }); ok {
			t.CloseIdleConnections()
		}
	}
	return err
}

// ServeHTTP answers a client of this node.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r, done := p.bound(r)
	defer done()
	k := p.rules.classify(r.Method, r.URL.Path)
	if p.opt.Debug {
		p.opt.Logger.Info("proxy request", "method", r.Method, "path", r.URL.Path, "kind", k.String(), "primary", p.node.IsPrimary())
	}
	switch k {
	case kindPassthrough:
		p.target.ServeHTTP(w, r)
	case kindHealth:
		p.serveHealth(w)
	case kindRead:
		p.serveRead(w, r)
	case kindWrite:
		p.serveWrite(w, r)
	}
}

// bound ends the request with the proxy.
func (p *Proxy) bound(r *http.Request) (*http.Request, func()) {
	ctx, cancel := context.WithCancel(r.Context())
	stop := context.AfterFunc(p.ctx, cancel)
	return r.WithContext(ctx), func() { stop(); cancel() }
}

func (p *Proxy) serveHealth(w http.ResponseWriter) {
	lag, synced := p.node.Lag()
	switch {
	case !synced:
		http.Error(w, "never had all that the primary had", http.StatusServiceUnavailable)
	case lag > p.opt.MaxLag:
		http.Error(w, fmt.Sprintf("lag %v is more than proxy.max-lag %v", lag.Round(time.Millisecond), p.opt.MaxLag), http.StatusServiceUnavailable)
	default:
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte("OK\n")) // a client that has gone is nobody's error
	}
}

// serveRead answers here as soon as this node has what the client must see.
func (p *Proxy) serveRead(w http.ResponseWriter, r *http.Request) {
	want, ok := p.seenBy(r)
	if p.node.IsPrimary() || !ok || p.await(r.Context(), want) {
		p.target.ServeHTTP(w, r)
		return
	}
	p.toPrimary(w, r)
}

// serveWrite has the request answered on the primary, wherever that is.
func (p *Proxy) serveWrite(w http.ResponseWriter, r *http.Request) {
	if p.node.IsPrimary() {
		p.writeHere(w, r)
		return
	}
	p.toPrimary(w, r)
}

// Intercept returns the handler of the nodes' API port: requests that another
// node's proxy has sent to this one, as the primary, go to the application here,
// all others to next.
func (p *Proxy) Intercept(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(headerForward) == "" {
			next.ServeHTTP(w, r)
			return
		}
		r, done := p.bound(r)
		defer done()
		switch {
		case !p.trusts(r):
			w.Header().Set(headerForward, "refused")
			p.opt.Logger.Warn("proxy: forwarded request refused: wrong or missing token", "remote", r.RemoteAddr)
			http.Error(w, "wrong or missing token: set http.token to the token of this node", http.StatusUnauthorized)
		case !p.node.IsPrimary():
			// Before the body is read: the sender can send it again, to somebody else.
			w.Header().Set(headerNotPrimary, "1")
			http.Error(w, "this node is not the primary", http.StatusMisdirectedRequest)
		default:
			p.writeHere(w, r.WithContext(context.WithValue(r.Context(), forwardedKey{}, true)))
		}
	})
}

// forwardedKey marks, in its context, a request that another node's proxy has
// sent with the credential. The header alone anybody can send.
type forwardedKey struct{}

// trusts reports whether a forwarded request carries the nodes' credential.
func (p *Proxy) trusts(r *http.Request) bool {
	if p.opt.Token == "" {
		return true // only loopback addresses get here
	}
	got := sha256.Sum256([]byte(r.Header.Get(headerAuthorization)))
	want := sha256.Sum256([]byte("Bearer " + p.opt.Token))
	return subtle.ConstantTimeCompare(got[:], want[:]) == 1
}

// writeHere gives a write to the application and tells the client what it has to
// see from now on.
func (p *Proxy) writeHere(w http.ResponseWriter, r *http.Request) {
	p.target.ServeHTTP(w, r.WithContext(p.noteBefore(r.Context())))
}

// noteBefore puts the positions before a write into its context.
func (p *Proxy) noteBefore(ctx context.Context) context.Context {
	before, err := p.node.Positions(p.opt.Databases, false)
	if err != nil {
		before = nil // every database counts as written, which is safe
	}
	return context.WithValue(ctx, beforeKey{}, before)
}

// beforeKey finds the positions before a write in its context.
type beforeKey struct{}

// setCookie adds the cookie to the answer of a write. The application has
// committed by now, unless it goes on writing after its first byte.
func (p *Proxy) setCookie(resp *http.Response) error {
	r := resp.Request
	before, written := r.Context().Value(beforeKey{}).(map[uint32]uint64)
	if !written || len(p.opt.Databases) == 0 {
		return nil
	}
	s := seen{epoch: p.node.Epoch(), txids: make(map[uint32]uint64)}
	after, err := p.node.Positions(p.opt.Databases, true)
	if err != nil {
		p.opt.Logger.Warn("proxy: what a write has changed is not known; its client reads on the primary for a while", "error", err)
		s.primary = true
	}
	for id, txid := range after {
		if txid > before[id] {
			s.txids[id] = txid
		}
	}
	if len(s.txids) == 0 && !s.primary {
		return nil
	}
	if old, ok := p.seenBy(r); ok {
		s = s.merge(old)
	} else {
		s = s.merge(seen{epoch: s.epoch})
	}
	c := http.Cookie{
		Name: cookieName, Value: s.encode(p.opt.CookieKey), Path: "/", MaxAge: int(cookieAge.Seconds()),
		HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: r.Header.Get("X-Forwarded-Proto") == "https",
	}
	resp.Header.Add("Set-Cookie", c.String())
	return nil
}

// cookieAge is how long a client is owed its own writes.
const cookieAge = 5 * time.Minute

// seenBy returns what a client has to see; false if it brings no cookie of ours.
// Of several with the name, which paths and hosts allow, the first that verifies counts.
func (p *Proxy) seenBy(r *http.Request) (seen, bool) {
	for _, c := range r.CookiesNamed(cookieName) {
		if s, ok := decodeSeen(p.opt.CookieKey, c.Value); ok {
			return s, true
		}
	}
	return seen{}, false
}

// await waits until this node has all of want. It returns false when that takes
// too long or may never happen.
func (p *Proxy) await(ctx context.Context, want seen) bool {
	if p.has(want) {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, p.opt.WaitTimeout)
	defer cancel()
	changed, stop := p.node.Watch()
	defer stop()
	for {
		// Looked at after Watch: a change in between is not missed.
		if p.has(want) {
			return true
		}
		if want.primary || p.node.Epoch() > want.epoch {
			return false
		}
		for id := range want.missing(p.node.TXID) {
			p.node.Hurry(id)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

func (p *Proxy) has(want seen) bool {
	return p.node.IsPrimary() || want.reached(p.node.TXID)
}

// toPrimary has a request answered by the primary's node, by the configured way.
func (p *Proxy) toPrimary(w http.ResponseWriter, r *http.Request) {
	if p.opt.Write == Forward {
		p.primary.ServeHTTP(w, r)
		return
	}
	host, here := p.awaitPrimary(r.Context())
	switch {
	case here:
		p.writeHere(w, r)
	case host == "":
		unavailable(w, "no primary is known")
	case p.opt.Write == FlyReplay:
		w.Header().Set("fly-replay", "instance="+host)
	default:
		to := strings.ReplaceAll(p.opt.RedirectURL, "{hostname}", url.PathEscape(host))
		http.Redirect(w, r, strings.TrimRight(to, "/")+r.URL.RequestURI(), http.StatusTemporaryRedirect)
	}
}

// awaitPrimary waits for a primary to be known, and returns its host name, or
// that it is here.
func (p *Proxy) awaitPrimary(ctx context.Context) (host string, here bool) {
	ctx, cancel := context.WithTimeout(ctx, p.opt.PrimaryTimeout)
	defer cancel()
	changed, stop := p.node.Watch()
	defer stop()
	for {
		if p.node.IsPrimary() {
			return "", true
		}
		if host := p.node.PrimaryHostname(); host != "" {
			return host, false
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return "", false
		}
	}
}

// unavailable says that nothing of the request has been done.
func unavailable(w http.ResponseWriter, why string) {
	w.Header().Set("Retry-After", "1")
	http.Error(w, why+": nothing was done, try again", http.StatusServiceUnavailable)
}

func (k kind) String() string {
	return [...]string{"passthrough", "health", "read", "write"}[k]
}
