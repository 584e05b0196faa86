package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/litefs/litefs/internal/sqlapp"
)

// writers write on both nodes while the role moves. On each node two probes try all the time, with no
// patience: what is measured is the time in which none succeeds. Two, for one may be at work on a
// checkpoint, which holds up nobody else. Beside them goes an application as it
// should be: it has a busy time-out, writes on one node, and goes to the other one when its own is not the
// primary any more.
type writers struct {
	m     *moves
	wrote [2]chan struct{} // capacity 1: a commit on that node
	moved chan struct{}    // capacity 1: the application has written on the node that the role moves to
	all   []*writer

	apps [2][]*sqlapp.Process // on each node
	dead [2]atomic.Bool       // they were killed
	end  context.CancelFunc
	wg   sync.WaitGroup
	once sync.Once
	err  error // of stop

	mu      sync.Mutex
	to      int // where the role moves; -1: nowhere yet
	last    time.Time
	gap     time.Duration // the longest time between two commits since begin
	refused int
	faults  int
	said    []string // some of the faults
}

// writer is one of them. Its rows have numbers, so that each can be looked for.
type writer struct {
	id    int
	conns [2]*sqlapp.Conn // on each node; nil for a probe of the other one
	n     int64           // tried
	acked []int64
}

const (
	probes     = 2 // on each node
	probePause = time.Millisecond
	appTimeout = time.Second
	maxSaid    = 3 // a move
)

func (m *moves) startWriters(ctx context.Context, round int) (*writers, error) {
	ws := &writers{m: m, to: -1, moved: make(chan struct{}, 1)}
	running, end := context.WithCancel(ctx)
	ws.end = end
	open := func(i int, busy time.Duration) (*sqlapp.Conn, error) {
		app, err := sqlapp.Start(ctx, m.o.App)
		if err != nil {
			return nil, err
		}
		ws.apps[i] = append(ws.apps[i], app)
		return app.Open(ctx, m.nodes[i].path(movesDB), sqlapp.Options{BusyTimeout: busy, Pragmas: []string{"synchronous=normal"}})
	}
	all := 1 + probes*len(m.nodes)
	application := &writer{id: all * round}
	ws.all = []*writer{application}
	for i := range m.nodes {
		ws.wrote[i] = make(chan struct{}, 1)
		var err error
		if application.conns[i], err = open(i, appTimeout); err != nil {
			return nil, errors.Join(err, ws.stop())
		}
		for range probes {
			probe := &writer{id: all*round + len(ws.all)}
			ws.all = append(ws.all, probe)
			if probe.conns[i], err = open(i, 0); err != nil {
				return nil, errors.Join(err, ws.stop())
			}
			ws.wg.Go(func() { ws.probe(running, probe, i) })
		}
	}
	ws.wg.Go(func() { ws.application(running, application, round%2) })
	return ws, nil
}

// begin forgets the gaps so far: the role moves to that node from here on.
func (ws *writers) begin(to int) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.gap, ws.to = 0, to
}

// stop ends the writers and waits for them.
func (ws *writers) stop() error {
	ws.once.Do(func() {
		ws.end()
		ws.wg.Wait()
		ws.err = errors.Join(ws.kill(0), ws.kill(1))
	})
	return ws.err
}

// kill ends the writers' processes on a node.
func (ws *writers) kill(i int) (err error) {
	if ws.dead[i].Swap(true) {
		return nil
	}
	for _, app := range ws.apps[i] {
		err = errors.Join(err, app.Kill())
	}
	return err
}

func (ws *writers) count() (n int) {
	for _, w := range ws.all {
		n += len(w.acked)
	}
	return n
}

// write writes the next row on a node.
func (ws *writers) write(ctx context.Context, w *writer, i int) error {
	w.n++
	_, err := w.conns[i].Exec(ctx, "INSERT INTO t VALUES (?, ?, randomblob(100))", w.id, w.n)
	if err != nil {
		return err // without an answer it may be committed: not acknowledged
	}
	w.acked = append(w.acked, w.n)
	now := time.Now()
	ws.mu.Lock()
	if !ws.last.IsZero() {
		ws.gap = max(ws.gap, now.Sub(ws.last))
	}
	ws.last = now
	ws.mu.Unlock()
	select {
	case ws.wrote[i] <- struct{}{}:
	default:
	}
	return nil
}

func (ws *writers) probe(ctx context.Context, w *writer, i int) {
	for ctx.Err() == nil {
		err := ws.write(ctx, w, i)
		switch {
		case ctx.Err() != nil || ws.dead[i].Load():
			return
		case err != nil && !sqlapp.IsCode(err, sqlapp.CodeBusy):
			ws.fault("a probe on node %d: %v", i, err)
		}
		sleep(ctx, probePause)
	}
}

func (ws *writers) application(ctx context.Context, w *writer, at int) {
	elsewhere := 0 // refusals since the last success
	for ctx.Err() == nil {
		err := ws.write(ctx, w, at)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			elsewhere = 0
			ws.mu.Lock()
			arrived := at == ws.to
			ws.mu.Unlock()
			if arrived {
				select {
				case ws.moved <- struct{}{}:
				default:
				}
			}
		case ws.dead[at].Load():
			at = 1 - at
		case ws.dead[1-at].Load(): // nobody else is there: it tries until this node writes
			if !sqlapp.IsCode(err, sqlapp.CodeBusy) {
				ws.fault("the application on node %d: %v", at, err)
			}
		case ws.handedOver(ctx, at, err) && elsewhere == 0:
			elsewhere++
			at = 1 - at
		default:
			ws.fault("the application on node %d: %v", at, err)
			at, elsewhere = 1-at, 0
		}
		sleep(ctx, probePause)
	}
}

// handedOver reports whether err is what an application is told by a node that is not the primary.
func (ws *writers) handedOver(ctx context.Context, i int, err error) bool {
	primary, ierr := ws.m.isPrimary(ctx, i)
	if ierr != nil || primary || !sqlapp.IsCode(err, sqlapp.CodeBusy) {
		return false
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.refused++
	return true
}

func (ws *writers) fault(format string, args ...any) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.faults++
	if len(ws.said) < maxSaid {
		ws.said = append(ws.said, fmt.Sprintf(format, args...))
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
