package http

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/litefs/litefs"
)

// ackSource is the replica's half of a stream, after its positions.
type ackSource struct {
	r     *bufio.Reader
	rc    *http.ResponseController
	stall time.Duration // a replica that says nothing for so long is gone
	conn  *litefs.ReplicaConn
	pages bool // the replica fetches pages that differ

	promises bool   // the replica keeps what is not decided
	levels   bool   // and levels that were set
	id       string // node id of the replica
	remote   string // address of the replica
}

// maxAcked bounds how many databases a replica may speak of between two looks at it.
const maxAcked = maxPositions

// acks is what a replica has told and the session has not looked at. One goroutine reads the replica;
// it never waits for the session.
type acks struct {
	src    ackSource
	notify chan struct{} // capacity 1
	done   chan struct{} // closed when the replica says no more

	mu     sync.Mutex
	taken  map[uint32]int64                        // newest for each database
	resume map[uint32]litefs.ResumeBaseStreamFrame // newest for each database; Next 0: of no base
	err    error                                   // why no more is read
	over   bool                                    // nobody listens any more
}

func newAcks(src ackSource) *acks {
	return &acks{
		src: src, notify: make(chan struct{}, 1), done: make(chan struct{}),
		taken: make(map[uint32]int64), resume: make(map[uint32]litefs.ResumeBaseStreamFrame),
	}
}

var errReplicaEnded = errors.New("the replica has ended the stream")

// read reads frames until the replica, or the request, ends.
func (a *acks) read(ctx context.Context) {
	defer close(a.done)
	err := a.readFrames()
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		err = errReplicaEnded
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = ErrStalled
	}
	a.mu.Lock()
	a.err = err
	a.mu.Unlock()
	a.wake()
}

// arm gives the replica its time again, unless nobody listens any more.
func (a *acks) arm(now time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over {
		return net.ErrClosed
	}
	return a.src.rc.SetReadDeadline(now.Add(a.src.stall))
}

// end ends the reading, and waits until it has ended. A deadline alone would not do: the reader sets its own.
func (a *acks) end() {
	a.mu.Lock()
	a.over = true
	// An error means that the stream is closed, and that ends the reading too.
	_ = a.src.rc.SetReadDeadline(time.Now())
	a.mu.Unlock()
	<-a.done
}

func (a *acks) readFrames() error {
	var armed time.Time
	for {
		// Setting a deadline costs more than reading most frames.
		if now := time.Now(); now.Sub(armed) > a.src.stall/32 {
			if err := a.arm(now); err != nil {
				return fmt.Errorf("read deadline: %w", err)
			}
			armed = now
		}
		f, err := litefs.ReadStreamFrame(a.src.r)
		if err != nil {
			return err
		}
		if err := a.take(f); err != nil {
			return err
		}
	}
}

func (a *acks) take(f litefs.StreamFrame) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch f := f.(type) {
	case *litefs.HeartbeatStreamFrame:
		a.src.conn.Alive()
		return nil
	case *litefs.AckStreamFrame:
		if f.Taken < a.taken[f.DBID] {
			return fmt.Errorf("the replica takes back what it acknowledged of database %s", litefs.FormatDBID(f.DBID))
		}
		a.src.conn.Acked(*f)
		a.taken[f.DBID] = f.Taken
	case *litefs.ResumeStreamFrame:
		a.resume[f.DBID] = litefs.ResumeBaseStreamFrame{DBID: f.DBID, Ask: f.Ask, Pos: f.Pos}
	case *litefs.ResumeBaseStreamFrame:
		a.resume[f.DBID] = *f
	default:
		return fmt.Errorf("the replica sends a frame of type %d, which is for replicas", f.Type())
	}
	if len(a.taken) > maxAcked || len(a.resume) > maxAcked {
		return fmt.Errorf("the replica speaks of more than %d databases", maxAcked)
	}
	a.wake()
	return nil
}

func (a *acks) wake() {
	select {
	case a.notify <- struct{}{}:
	default:
	}
}

// collect returns what came since the last call.
func (a *acks) collect() (taken map[uint32]int64, resume map[uint32]litefs.ResumeBaseStreamFrame, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	taken, resume, err = a.taken, a.resume, a.err
	a.taken, a.resume = make(map[uint32]int64), make(map[uint32]litefs.ResumeBaseStreamFrame)
	return taken, resume, err
}
