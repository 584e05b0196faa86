package http

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"
)

// caller is whose credential a request carries.
type caller string

const (
	callerNobody   caller = ""
	callerNode     caller = "node"
	callerOperator caller = "operator"
	callerLocal    caller = "local" // this node has no credentials: it listens on loopback addresses only
)

func (c caller) operates() bool { return c == callerOperator || c == callerLocal }

// identify says who r is from. Where the operator has no credential of his own, the nodes' is his.
func (s *Server) identify(r *http.Request) caller {
	if s.opt.Token == "" && s.opt.AdminToken == "" {
		return callerLocal
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch {
	case !ok:
		return callerNobody
	case sameToken(token, s.opt.AdminToken):
		return callerOperator
	case sameToken(token, s.opt.Token):
		return callerNode
	}
	return callerNobody
}

// sameToken compares in a time that does not depend on the tokens: their sums have one length.
func sameToken(got, want string) bool {
	g, w := sha256.Sum256([]byte(got)), sha256.Sum256([]byte(want))
	return want != "" && subtle.ConstantTimeCompare(g[:], w[:]) == 1
}

// admits reports whether c may make a call with access a. named: the call names the node that gains.
func (s *Server) admits(a access, c caller, named bool) bool {
	nodeOperates := c == callerNode && s.opt.AdminToken == ""
	switch a {
	case accessOpen:
		return true
	case accessRead:
		return c != callerNobody
	case accessNode:
		return c == callerNode || c == callerLocal
	case accessOperate:
		return c.operates() || nodeOperates
	case accessHandOver:
		return c.operates() || nodeOperates || c == callerNode && named
	}
	return false
}

const (
	wrongToken     = "wrong or missing token: set http.token to the token of this node"
	operatorsToken = "this call needs the operator's token: http.admin-token of this node"
)

// admitted lets those calls through that s.admits.
func (s *Server) admitted(a access, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := s.identify(r)
		switch {
		case s.admits(a, c, r.URL.Query().Get("to") != ""):
			next.ServeHTTP(w, r)
		case c == callerNode:
			s.refuse(w, r, http.StatusForbidden, operatorsToken)
		default:
			w.Header().Set("WWW-Authenticate", "Bearer")
			s.refuse(w, r, http.StatusUnauthorized, wrongToken)
		}
	})
}

// maxShortBody bounds the body of a call that has none, or a form.
const maxShortBody = 64 << 10

// bounded reads the body before the call is made: a deadline on the connection would, later, look like a
// caller who has gone.
func (s *Server) bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body == nil || r.Body == http.NoBody {
			next.ServeHTTP(w, r)
			return
		}
		rc := http.NewResponseController(w)
		if err := rc.SetReadDeadline(time.Now().Add(s.limits.body)); err != nil {
			s.fault(w, err)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxShortBody))
		if err != nil {
			s.refuse(w, r, http.StatusBadRequest, fmt.Sprintf("body: %v", err))
			return
		}
		if err := rc.SetReadDeadline(time.Time{}); err != nil {
			s.fault(w, err)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		next.ServeHTTP(w, r)
	})
}

// sameSite refuses what a page of another site makes a browser send.
func (s *Server) sameSite(next http.Handler) http.Handler {
	var crossOrigin http.CrossOriginProtection
	crossOrigin.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.refuse(w, r, http.StatusForbidden, "request of another site's page: this port is for its own page, nodes and commands")
	}))
	checked := crossOrigin.Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.opt.Token == "" && !namesThisMachine(r.Host) {
			// A page can have its own name resolve to a loopback address, and be of the same site then.
			s.refuse(w, r, http.StatusMisdirectedRequest, fmt.Sprintf("host %.64q is not this machine: without a token ask localhost", r.Host))
			return
		}
		checked.ServeHTTP(w, r)
	})
}

func namesThisMachine(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	if net.ParseIP(host) != nil || strings.EqualFold(host, "localhost") {
		return true
	}
	name, err := os.Hostname()
	return err == nil && strings.EqualFold(host, name)
}

// audited leaves a line for each call: who, what, and how it ended.
func (s *Server) audited(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from := time.Now()
		outcome := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(outcome, r)
		who := s.identify(r)
		if who == callerNobody {
			who = "nobody"
		}
		s.opt.Logger.Log(context.WithoutCancel(r.Context()), slog.LevelInfo, "audit", "call", r.Method+" "+r.URL.Path,
			"parameters", parameters(r), "by", string(who), "remote", r.RemoteAddr,
			"status", outcome.status, "seconds", time.Since(from).Seconds())
	})
}

// parameters is the query for a line of the log: no longer than one, in a fixed order.
func parameters(r *http.Request) string {
	q := r.URL.Query()
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(q)) {
		fmt.Fprintf(&b, " %.32s=%.128s", name, strings.Join(q[name], ","))
	}
	return fmt.Sprintf("%.512s", printable(strings.TrimSpace(b.String())))
}

// statusWriter remembers the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(code int) {
	w.status = code
	w.ResponseWriter.WriteHeader(code)
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
