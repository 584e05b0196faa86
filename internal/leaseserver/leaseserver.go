// Package leaseserver runs a real Consul, etcd, NATS or S3 server as a child process, for tests and benchmarks: on free
// loopback ports, with its data in a directory of the caller's, to be paused, killed and started again
// at the same place.
package leaseserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/litefs/litefs/internal/childnode"
)

// Options of a server.
type Options struct {
	Dir string    // where its data goes; exists
	Log io.Writer // gets what it prints; may be nil

	Args []string // further ones, of NATS
	Nice bool     // an S3 server gets what processor others leave

	// Of an etcd in a network of its own: the address that it listens on (default 127.0.0.1), and what
	// makes a command line run there.
	Addr   string
	Inside func(args ...string) []string
}

// Server is one server process, or the place of one that is down.
type Server struct {
	URL string // of its API

	argv  []string
	env   []string // beside the parent's
	log   io.Writer
	probe func(ctx context.Context, url string) error

	cmd    *exec.Cmd // nil while it is down
	exited chan struct{}
}

// startTimeout bounds a start: a single Consul elects itself after seconds, on a loaded machine after
// many.
const startTimeout = 2 * time.Minute

// Consul starts a Consul server that keeps its data over a restart. Sessions may have a TTL from one
// second on: its own lower bound is ten.
func Consul(ctx context.Context, o Options) (*Server, error) {
	binary, err := builtBinary(ctx, "consul")
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	s := &Server{
		URL: "http://127.0.0.1:" + ports[0],
		argv: []string{
			binary, "agent", "-server", "-bootstrap-expect", "1", "-log-level", "warn",
			"-data-dir", o.Dir, "-bind", "127.0.0.1", "-client", "127.0.0.1",
			"-http-port", ports[0], "-server-port", ports[1], "-serf-lan-port", ports[2],
			"-serf-wan-port", "-1", "-dns-port", "-1", "-grpc-port", "-1",
			"-hcl", `session_ttl_min = "1s" performance { raft_multiplier = 1 } connect { enabled = false } disable_update_check = true`,
		},
		log:   o.Log,
		probe: consulAnswers,
	}
	return s, s.Start(ctx)
}

// ConsulDev starts the Consul of LiteFS's tutorial, "consul agent -dev", with Consul's own bounds: it
// keeps its data in memory, so that one that was killed comes back empty.
func ConsulDev(ctx context.Context, o Options) (*Server, error) {
	binary, err := builtBinary(ctx, "consul")
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(4)
	if err != nil {
		return nil, err
	}
	s := &Server{
		URL: "http://127.0.0.1:" + ports[0],
		argv: []string{
			binary, "agent", "-dev", "-log-level", "warn", "-bind", "127.0.0.1", "-client", "127.0.0.1",
			"-http-port", ports[0], "-server-port", ports[1], "-serf-lan-port", ports[2], "-serf-wan-port", ports[3],
			"-dns-port", "-1", "-grpc-port", "-1", "-hcl", "disable_update_check = true",
		},
		log:   o.Log,
		probe: consulAnswers,
	}
	return s, s.Start(ctx)
}

// Etcd starts an etcd server that keeps its data over a restart.
func Etcd(ctx context.Context, o Options) (*Server, error) {
	binary, err := exec.LookPath("etcd")
	if err != nil {
		return nil, fmt.Errorf("no etcd on this machine (.ci/install fetches it): %w", err)
	}
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	client, peer := "http://"+cmp.Or(o.Addr, "127.0.0.1")+":"+ports[0], "http://127.0.0.1:"+ports[1]
	s := &Server{
		URL: client,
		argv: []string{
			binary, "--name", "one", "--data-dir", filepath.Join(o.Dir, "etcd"), "--logger", "zap", "--log-level", "warn",
			"--listen-client-urls", client, "--advertise-client-urls", client,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "one=" + peer,
		},
		log:   o.Log,
		probe: etcdAnswers,
	}
	if o.Inside != nil {
		s.argv = o.Inside(s.argv...)
	}
	return s, s.Start(ctx)
}

// NATS starts a NATS server with JetStream that keeps its data over a restart.
func NATS(ctx context.Context, o Options) (*Server, error) {
	binary, err := exec.LookPath("nats-server")
	if err != nil {
		return nil, fmt.Errorf("no nats-server on this machine (.ci/install fetches it): %w", err)
	}
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	monitor := "http://127.0.0.1:" + ports[1]
	s := &Server{
		URL:  "nats://127.0.0.1:" + ports[0],
		argv: append([]string{binary, "--addr", "127.0.0.1", "--port", ports[0], "--http_port", ports[1], "--jetstream", "--store_dir", o.Dir}, o.Args...),
		log:  o.Log,
		probe: func(ctx context.Context, _ string) error {
			return call(ctx, http.MethodGet, monitor+"/healthz?js-enabled-only=true", "")
		},
	}
	return s, s.Start(ctx)
}

// Program starts another server: argv makes its command line of the address to listen at, and any answer
// to a GET of path says that it is ready.
func Program(ctx context.Context, o Options, argv func(addr string) []string, path string) (*Server, error) {
	addr, err := childnode.FreeAddr()
	if err != nil {
		return nil, err
	}
	s := &Server{
		URL: "http://" + addr, argv: argv(addr), log: o.Log,
		probe: func(ctx context.Context, url string) error { return answers(ctx, url+path) },
	}
	return s, s.Start(ctx)
}

// Start starts the server at its place and waits until it answers.
func (s *Server) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	cmd := exec.Command(s.argv[0], s.argv[1:]...)
	cmd.Stdout, cmd.Stderr = s.log, s.log
	cmd.Env = append(os.Environ(), s.env...)
	// A terminal's Ctrl-C reaches a whole process group: it is the parent who ends its servers.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", s.argv[0], err)
	}
	exited := make(chan struct{})
	s.cmd, s.exited = cmd, exited
	go func() {
		defer close(exited)
		_ = cmd.Wait() // its end is asked for, or seen below
	}()
	for {
		err := s.probe(ctx, s.URL)
		if err == nil {
			return nil
		}
		select {
		case <-exited:
			s.cmd = nil
			return fmt.Errorf("%s ended before it answered: %s", s.argv[0], cmd.ProcessState)
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%s does not answer: %w", s.argv[0], err), s.Kill())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// PID is the process id of the server.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Pause stops the server's process where it is: connections stay open and nothing is answered.
func (s *Server) Pause() error { return s.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume lets a paused server go on.
func (s *Server) Resume() error { return s.cmd.Process.Signal(syscall.SIGCONT) }

// Kill ends the server as a crash does and waits for its end. It does nothing when it is down.
func (s *Server) Kill() error {
	if s.cmd == nil {
		return nil
	}
	err := s.cmd.Process.Kill()
	<-s.exited
	s.cmd = nil
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// builtBinary is the one that .ci/NAME has built, or builds now.
func builtBinary(ctx context.Context, name string) (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		script := filepath.Join(dir, ".ci", name)
		if _, err := os.Stat(script); err == nil {
			var complaints strings.Builder
			cmd := exec.CommandContext(ctx, script)
			cmd.Stderr = &complaints
			out, err := cmd.Output()
			if err != nil {
				return "", fmt.Errorf("%s: %w\n%s", script, err, complaints.String())
			}
			return strings.TrimSpace(string(out)), nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("no .ci/%s above the working directory: it is built from the project's tree", name)
		}
		dir = parent
	}
}

func freePorts(n int) ([]string, error) {
	ports := make([]string, 0, n)
	for len(ports) < n {
		addr, err := childnode.FreeAddr()
		if err != nil {
			return nil, err
		}
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(ports, port) { // nobody listens on it yet
			ports = append(ports, port)
		}
	}
	return ports, nil
}

// consulAnswers reports whether writes are answered: a server without a leader refuses a session.
func consulAnswers(ctx context.Context, url string) error {
	return call(ctx, http.MethodPut, url+"/v1/session/create", `{"NodeChecks":[],"TTL":"10s"}`)
}

func etcdAnswers(ctx context.Context, url string) error {
	return call(ctx, http.MethodPost, url+"/v3/lease/grant", `{"TTL":"1"}`)
}

func call(ctx context.Context, method, url, body string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	if err := resp.Body.Close(); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s", method, url, resp.Status)
	}
	return nil
}
