//go:build cgo

package sqlapp

import (
	"bufio"
	"context"
	"database/sql/driver"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"runtime"
	"strings"
	"time"

	"github.com/mattn/go-sqlite3"
	"golang.org/x/sys/unix"
)

// Available reports whether this binary has SQLite in it.
const Available = true

// Serve answers requests until the input ends, then closes every connection. It is the whole of a
// child's main: a request that cannot be served is an answer, not an error.
func Serve(r io.Reader, w io.Writer) error {
	s := server{conns: map[int]*sqlite3.SQLiteConn{}}
	dec := json.NewDecoder(bufio.NewReader(r))
	dec.UseNumber()
	enc := json.NewEncoder(w)
	for {
		var req request
		err := dec.Decode(&req)
		if errors.Is(err, io.EOF) {
			return s.close()
		}
		if err != nil {
			return errors.Join(fmt.Errorf("read request: %w", err), s.close())
		}
		if err := enc.Encode(s.answer(req)); err != nil {
			return errors.Join(fmt.Errorf("write answer: %w", err), s.close())
		}
	}
}

// server is the child's side.
type server struct {
	conns map[int]*sqlite3.SQLiteConn
}

func (s *server) close() error {
	var err error
	for id, conn := range s.conns {
		err = errors.Join(err, conn.Close())
		delete(s.conns, id)
	}
	return err
}

// answer serves one request.
func (s *server) answer(req request) response {
	resp, err := s.do(req)
	if err == nil {
		return resp
	}
	var se sqlite3.Error
	if errors.As(err, &se) {
		resp.Err = &Error{Code: int(se.Code), Extended: int(se.ExtendedCode), Message: se.Error()}
	} else {
		resp.Fault = err.Error()
	}
	return resp
}

func (s *server) do(req request) (response, error) {
	if req.Op == opOpen {
		return response{}, s.open(req)
	}
	conn, ok := s.conns[req.Conn]
	if !ok {
		return response{}, fmt.Errorf("no connection %d", req.Conn)
	}
	switch req.Op {
	case opClose:
		delete(s.conns, req.Conn)
		return response{}, conn.Close()
	case opExec:
		return execute(conn, req)
	case opQuery:
		return query(conn, req)
	case opRepeat:
		done, err := repeat(conn, req)
		return response{Repeated: &done}, err
	case opWatch:
		seen, err := watch(conn, req)
		return response{Seen: seen}, err
	case opPersistWAL:
		on := 0
		if req.On {
			on = 1
		}
		return response{}, conn.SetFileControlInt("main", sqlite3.SQLITE_FCNTL_PERSIST_WAL, on)
	default:
		return response{}, fmt.Errorf("unknown request %q", req.Op)
	}
}

func (s *server) open(req request) error {
	dsn := "file:" + (&url.URL{Path: req.Path}).EscapedPath() + fmt.Sprintf("?_busy_timeout=%d", req.BusyMS)
	conn, err := (&sqlite3.SQLiteDriver{}).Open(dsn)
	if err != nil {
		return err
	}
	sc, ok := conn.(*sqlite3.SQLiteConn)
	if !ok {
		return errors.Join(fmt.Errorf("driver opened a %T", conn), conn.Close())
	}
	s.conns[req.Conn] = sc
	return nil
}

func execute(conn *sqlite3.SQLiteConn, req request) (response, error) {
	args, err := values(req.Args)
	if err != nil {
		return response{}, err
	}
	res, err := conn.Exec(req.SQL, args)
	if err != nil {
		return response{}, err
	}
	changes, err := res.RowsAffected()
	return response{Changes: changes}, err
}

func query(conn *sqlite3.SQLiteConn, req request) (response, error) {
	args, err := values(req.Args)
	if err != nil {
		return response{}, err
	}
	rows, err := conn.Query(req.SQL, args)
	if err != nil {
		return response{}, err
	}
	var resp response
	row := make([]driver.Value, len(rows.Columns()))
	for err = rows.Next(row); err == nil; err = rows.Next(row) {
		out := make([]any, len(row))
		for i, v := range row {
			out[i] = toJSON(v)
		}
		resp.Rows = append(resp.Rows, out)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return resp, errors.Join(err, rows.Close())
}

// repeat runs the steps as prepared statements until a bound is met.
func repeat(conn *sqlite3.SQLiteConn, req request) (done Repeated, err error) {
	if req.Rounds <= 0 && req.Millis <= 0 {
		return done, errors.New("repeat without a bound")
	}
	stmts := make([]*sqlite3.SQLiteStmt, len(req.Steps))
	defer func() {
		for _, stmt := range stmts {
			if stmt != nil {
				err = errors.Join(err, stmt.Close())
			}
		}
	}()
	for i, step := range req.Steps {
		stmt, err := conn.Prepare(step.SQL)
		if err != nil {
			return done, err
		}
		var ok bool
		if stmts[i], ok = stmt.(*sqlite3.SQLiteStmt); !ok {
			return done, errors.Join(fmt.Errorf("driver prepared a %T", stmt), stmt.Close())
		}
	}
	runtime.LockOSThread() // whose processor time is asked for
	defer runtime.UnlockOSThread()
	before, err := threadCPU()
	if err != nil {
		return done, err
	}
	start := time.Now()
	limit := time.Duration(req.Millis) * time.Millisecond
	for (req.Rounds <= 0 || done.Rounds < req.Rounds) && (limit <= 0 || time.Since(start) < limit) {
		for i, step := range req.Steps {
			if err := runStep(stmts[i], step); err != nil {
				done.Nanos = int64(time.Since(start))
				return done, fmt.Errorf("%s: %w", step.SQL, err)
			}
		}
		done.Rounds++
		if req.Stamp {
			done.Ends = append(done.Ends, time.Now().UnixNano())
		}
		pause(start.Add(time.Duration(done.Rounds) * time.Duration(req.EveryMicros) * time.Microsecond))
	}
	done.Nanos = int64(time.Since(start))
	after, err := threadCPU()
	done.CPU = after - before
	return done, err
}

// threadCPU is the processor time of this thread until now, in nanoseconds.
func threadCPU() (int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0, fmt.Errorf("processor time of the thread: %w", err)
	}
	return ts.Nano(), nil
}

// pause waits until t. This process does nothing else, and its end is the parent's to order. Timers of
// the runtime are late by up to a millisecond, which is what is to be measured.
func pause(t time.Time) {
	if d := time.Until(t); d > 0 {
		ts := unix.NsecToTimespec(int64(d))
		_ = unix.Nanosleep(&ts, nil) // cut short by a signal: the next one is longer
	}
}

// watch runs one prepared query until a bound is met.
func watch(conn *sqlite3.SQLiteConn, req request) (seen []Seen, err error) {
	prepared, err := conn.Prepare(req.SQL)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, prepared.Close()) }()
	stmt, ok := prepared.(*sqlite3.SQLiteStmt)
	if !ok {
		return nil, fmt.Errorf("driver prepared a %T", prepared)
	}
	every, limit := time.Duration(req.EveryMicros)*time.Microsecond, time.Duration(req.Millis)*time.Millisecond
	for start := time.Now(); ; {
		value, err := readInteger(stmt)
		if err != nil {
			return seen, fmt.Errorf("%s: %w", req.SQL, err)
		}
		now := time.Now()
		if len(seen) == 0 || value != seen[len(seen)-1].Value {
			seen = append(seen, Seen{value, now.UnixNano()})
		}
		if value >= req.Until || now.Sub(start) >= limit {
			return seen, nil
		}
		pause(now.Add(every))
	}
}

// readInteger returns the first column of the first row.
func readInteger(stmt *sqlite3.SQLiteStmt) (value int64, err error) {
	rows, err := stmt.QueryContext(context.Background(), nil)
	if err != nil {
		return 0, err
	}
	row := make([]driver.Value, len(rows.Columns()))
	if err = rows.Next(row); errors.Is(err, io.EOF) {
		err = nil
	} else if err == nil {
		value, _ = row[0].(int64) // NULL is none
	}
	return value, errors.Join(err, rows.Close())
}

// runStep executes one prepared statement step.Times times; rows are read to the last.
func runStep(stmt *sqlite3.SQLiteStmt, step Step) error {
	// A statement with a row left is still running, and one that may write keeps the transactions of
	// the statements after it from being committed: whatever gives rows is read to its end.
	text := strings.ToUpper(strings.TrimSpace(step.SQL))
	reads := strings.HasPrefix(text, "SELECT") || strings.HasPrefix(text, "PRAGMA")
	for range max(1, step.Times) {
		if !reads {
			if _, err := stmt.ExecContext(context.Background(), nil); err != nil {
				return err
			}
			continue
		}
		rows, err := stmt.QueryContext(context.Background(), nil)
		if err != nil {
			return err
		}
		row := make([]driver.Value, len(rows.Columns()))
		for err == nil {
			err = rows.Next(row)
		}
		if !errors.Is(err, io.EOF) {
			return errors.Join(err, rows.Close())
		}
		if err := rows.Close(); err != nil {
			return err
		}
	}
	return nil
}

// values turns decoded JSON arguments into what the driver binds.
func values(args []any) ([]driver.Value, error) {
	out := make([]driver.Value, len(args))
	for i, arg := range args {
		v, err := fromJSON(arg)
		if err != nil {
			return nil, fmt.Errorf("argument %d: %w", i+1, err)
		}
		out[i] = v
	}
	return out, nil
}

func toJSON(v driver.Value) any {
	switch v := v.(type) {
	case []byte:
		return strings.ToUpper(hex.EncodeToString(v))
	case time.Time:
		return v.Format(time.RFC3339Nano)
	default:
		return v
	}
}
