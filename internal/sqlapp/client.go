package sqlapp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// Command says how to start a child that calls Serve.
type Command struct {
	Path string   // binary; empty: the running one
	Args []string // arguments without the name of the binary
	Env  []string // added to this process's environment
}

// Process is a running child. Its methods may be called at once; requests are served one by one.
type Process struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *os.File
	done  chan struct{} // closed when the child has been waited for
	err   error         // what Wait returned; read it after done

	mu struct {
		sync.Mutex // held for a whole request and its answer
		lines      *bufio.Reader
		nextConn   int
		broken     error // an answer was given up: the pipe is out of step from here on
	}
}

// Start starts a child, which is killed when ctx ends. The caller ends it with Close or Kill.
func Start(ctx context.Context, c Command) (*Process, error) {
	path := c.Path
	if path == "" {
		exe, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find this binary: %w", err)
		}
		path = exe
	}
	cmd := exec.CommandContext(ctx, path, c.Args...)
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Stderr = os.Stderr
	// A terminal's Ctrl-C reaches a whole process group: it is the parent who ends its children, in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start SQLite child: %w", err)
	}
	// A pipe of our own: the one of StdoutPipe is closed by Wait, which runs beside the reader here.
	out, w, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start SQLite child: %w", err), stdin.Close())
	}
	cmd.Stdout = w
	err = cmd.Start()
	// With our copy of the write end closed, the death of the child is the end of the file.
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("start SQLite child %s: %w", path, err), out.Close(), stdin.Close())
	}
	p := &Process{cmd: cmd, stdin: stdin, out: out, done: make(chan struct{})}
	p.mu.lines = bufio.NewReader(out)
	go func() {
		defer close(p.done)
		p.err = cmd.Wait()
	}()
	return p, nil
}

// PID is the child's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends sig to the child.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Kill ends the child as a crash does (SIGKILL) and waits for it.
func (p *Process) Kill() error {
	err := p.cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	select {
	case <-p.done:
		return errors.Join(err, p.release())
	case <-time.After(killPatience):
		return errors.Join(err, fmt.Errorf("SQLite child %d does not die: is it waiting for a mount that does not answer?", p.PID()))
	}
}

// killPatience is how long a killed child may take to be gone. The kernel lets a process that waits for
// a file system finish that wait first.
const killPatience = 30 * time.Second

// Close lets the child close its connections and end, and waits for it until ctx ends, when it is killed.
func (p *Process) Close(ctx context.Context) error {
	p.mu.Lock()
	err := p.stdin.Close() // the end of its input is the child's order to end
	p.mu.Unlock()
	if errors.Is(err, os.ErrClosed) {
		err = nil
	}
	select {
	case <-p.done:
		return errors.Join(err, p.err, p.release())
	case <-ctx.Done():
		return errors.Join(err, fmt.Errorf("SQLite child %d did not end: %w", p.PID(), context.Cause(ctx)), p.Kill())
	}
}

// release closes the read end; it is safe to call twice.
func (p *Process) release() error {
	if err := p.out.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close pipe of SQLite child: %w", err)
	}
	return nil
}

// Options of a connection.
type Options struct {
	BusyTimeout time.Duration // 0: SQLITE_BUSY at once
	Pragmas     []string      // run first, each as "name=value" or "name"
}

// Conn is one SQLite connection in a child.
type Conn struct {
	p  *Process
	id int
}

// Open opens the database at path.
func (p *Process) Open(ctx context.Context, path string, o Options) (*Conn, error) {
	p.mu.Lock()
	p.mu.nextConn++
	c := &Conn{p: p, id: p.mu.nextConn}
	p.mu.Unlock()
	req := request{Op: opOpen, Conn: c.id, Path: path, BusyMS: int(o.BusyTimeout / time.Millisecond)}
	if _, err := p.call(ctx, req); err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	for _, pragma := range o.Pragmas {
		if _, err := c.Query(ctx, "PRAGMA "+pragma); err != nil {
			return nil, errors.Join(fmt.Errorf("open %s: pragma %s: %w", path, pragma, err), c.Close(ctx))
		}
	}
	return c, nil
}

// Exec runs statements and returns how many rows the last one changed. Rows that they return are dropped.
func (c *Conn) Exec(ctx context.Context, sql string, args ...any) (int64, error) {
	resp, err := c.p.call(ctx, request{Op: opExec, Conn: c.id, SQL: sql, Args: args})
	return resp.Changes, err
}

// Query runs one statement and returns all its rows. A value is nil, int64, float64 or string; a blob
// comes as upper-case hexadecimal digits.
func (c *Conn) Query(ctx context.Context, sql string, args ...any) ([][]any, error) {
	resp, err := c.p.call(ctx, request{Op: opQuery, Conn: c.id, SQL: sql, Args: args})
	if err != nil {
		return nil, err
	}
	for _, row := range resp.Rows {
		for i := range row {
			if row[i], err = fromJSON(row[i]); err != nil {
				return nil, fmt.Errorf("value of %q: %w", sql, err)
			}
		}
	}
	return resp.Rows, nil
}

// Repeat runs a sequence of prepared statements over and over in the child, without a word on the
// pipe: until rounds sequences are done or d has passed, whichever comes first (0: no such bound).
func (c *Conn) Repeat(ctx context.Context, steps []Step, rounds int, d time.Duration) (Repeated, error) {
	return c.repeat(ctx, request{Op: opRepeat, Conn: c.id, Steps: steps, Rounds: rounds, Millis: int(d / time.Millisecond)})
}

// Pace is Repeat with a sequence each interval, and tells when each of them ended. A sequence that comes
// late is made up for: the next one follows at once. An interval of 0 is Repeat's pace.
func (c *Conn) Pace(ctx context.Context, steps []Step, rounds int, d, every time.Duration) (Repeated, error) {
	return c.repeat(ctx, request{
		Op: opRepeat, Conn: c.id, Steps: steps, Rounds: rounds, Millis: int(d / time.Millisecond),
		EveryMicros: int(every / time.Microsecond), Stamp: true,
	})
}

func (c *Conn) repeat(ctx context.Context, req request) (Repeated, error) {
	resp, err := c.p.call(ctx, req)
	if resp.Repeated == nil {
		return Repeated{}, err
	}
	return *resp.Repeated, err
}

// Watch runs a query of one integer over and over, a look each interval, until the value is at least
// until or d has passed. It returns each new value, with when it was first seen. A query without a row,
// or with NULL, is 0.
func (c *Conn) Watch(ctx context.Context, sql string, until int64, every, d time.Duration) ([]Seen, error) {
	resp, err := c.p.call(ctx, request{
		Op: opWatch, Conn: c.id, SQL: sql, Until: until, EveryMicros: int(every / time.Microsecond), Millis: int(d / time.Millisecond),
	})
	return resp.Seen, err
}

// PersistWAL sets whether the -wal stays when the last connection closes (SQLITE_FCNTL_PERSIST_WAL).
func (c *Conn) PersistWAL(ctx context.Context, on bool) error {
	_, err := c.p.call(ctx, request{Op: opPersistWAL, Conn: c.id, On: on})
	return err
}

// Close closes the connection as an application does: the last one checkpoints and removes the -wal.
func (c *Conn) Close(ctx context.Context) error {
	_, err := c.p.call(ctx, request{Op: opClose, Conn: c.id})
	return err
}

// call sends one request and waits for its answer, until ctx ends.
func (p *Process) call(ctx context.Context, req request) (response, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.broken != nil {
		return response{}, p.mu.broken
	}
	line, err := json.Marshal(req)
	if err != nil {
		return response{}, fmt.Errorf("encode request: %w", err)
	}
	// Only one answer is read at a time, so the deadline is this call's own.
	stop := context.AfterFunc(ctx, func() { _ = p.out.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	answer, err := p.roundTrip(append(line, '\n'))
	if err != nil {
		switch {
		case ctx.Err() != nil:
			p.mu.broken = fmt.Errorf("SQLite child %d gave no answer to %s %q: %w", p.PID(), req.Op, req.SQL, context.Cause(ctx))
		default:
			p.mu.broken = fmt.Errorf("%w (pid %d): %s %q: %w", ErrGone, p.PID(), req.Op, req.SQL, err)
		}
		return response{}, p.mu.broken
	}
	var resp response
	dec := json.NewDecoder(answer)
	dec.UseNumber()
	if err := dec.Decode(&resp); err != nil {
		p.mu.broken = fmt.Errorf("decode answer to %s: %w", req.Op, err)
		return response{}, p.mu.broken
	}
	if resp.Fault != "" {
		return resp, fmt.Errorf("SQLite child: %s", resp.Fault)
	}
	if resp.Err != nil {
		return resp, resp.Err
	}
	return resp, nil
}

// roundTrip writes one line and reads one.
func (p *Process) roundTrip(line []byte) (io.Reader, error) {
	if _, err := p.stdin.Write(line); err != nil {
		return nil, err
	}
	answer, err := p.mu.lines.ReadBytes('\n')
	return bytes.NewReader(answer), err
}

// fromJSON turns a decoded JSON value into the Go value of an SQLite column.
func fromJSON(v any) (any, error) {
	n, ok := v.(json.Number)
	if !ok {
		return v, nil
	}
	if i, err := n.Int64(); err == nil {
		return i, nil
	}
	return n.Float64()
}
