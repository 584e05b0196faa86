package litefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/litefs/litefs/internal/role"
)

// StreamWriter is what a StreamReader may be beside: the way back to the
// primary. Without it nothing is acknowledged and no database can be resumed.
type StreamWriter interface {
	// WriteFrames sends frames in one piece. It is called by one goroutine.
	WriteFrames(frames ...StreamFrame) error
}

// upstream is one connection to the primary at work. The goroutine that reads
// it never touches a database: it hands what it reads to one worker for each
// database. The workers and the goroutine that acknowledges belong to the
// connection and are waited for at its end.
type upstream struct {
	store  *Store
	url    string // of the primary
	stream StreamReader
	ctx    context.Context
	end    context.CancelCauseFunc
	wg     sync.WaitGroup

	// structure is held by the worker that creates, renames or drops a
	// database: such a change may concern the database of another worker.
	// Order: structure, then worker.op.
	structure semaphore

	// rejoining is held by the worker that compares pages with the primary: it
	// reads a whole database, and the primary answers only a few at a time.
	// Order: worker.op, then rejoining.
	rejoining semaphore

	mu      sync.Mutex // guards everything below
	workers map[uint32]*worker
	pending map[uint32]*worker // have something to acknowledge
	beat    bool               // tell the primary that this node lives
	fresh   *freshness         // the last moment that a heartbeat told of

	caught atomic.Bool // the role loop knows that this node has had everything

	buffers pageBuffers // memory of pages of bases
	pace    pace        // of what is shown

	notify chan struct{} // capacity 1: something is pending
	urgent chan struct{} // capacity 1: and the primary waits for it
}

// ackInterval is how long acknowledgements wait for company.
const ackInterval = 5 * time.Millisecond

// semaphore is a mutex whose wait ends with a context.
type semaphore chan struct{}

func newSemaphore() semaphore { return make(semaphore, 1) }

func (s semaphore) acquire(ctx context.Context) error {
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s semaphore) release() { <-s }

// consume applies the frames of a stream until it ends, and closes it.
func (s *Store) consume(ctx context.Context, primary string, stream StreamReader) (err error) {
	defer func() { err = errors.Join(err, stream.Close()) }()
	if p, ok := stream.(StreamPeer); ok {
		if err := s.joinCluster(p.ClusterID(), p.Epoch()); err != nil {
			return err
		}
		if err := s.reigns.note(p.Epoch(), p.NodeID()); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.primaryURL = primary
	s.mu.Unlock()
	s.roleChanged()
	s.Logger.Info("connected to the primary", "url", primary)

	f := &upstream{
		store:     s,
		url:       primary,
		stream:    stream,
		structure: newSemaphore(),
		rejoining: newSemaphore(),
		workers:   make(map[uint32]*worker),
		pending:   make(map[uint32]*worker),
		notify:    make(chan struct{}, 1),
		urgent:    make(chan struct{}, 1),
	}
	f.ctx, f.end = context.WithCancelCause(ctx)
	defer f.wg.Wait()
	s.upstream.Store(f)
	defer s.upstream.Store(nil)
	defer f.hangUp(errors.New("the stream has ended"))
	if w, ok := stream.(StreamWriter); ok {
		f.wg.Go(func() { f.acknowledge(w) })
	}
	if p, ok := stream.(StreamPromises); !ok || !p.Promises() {
		for _, db := range s.DBs() {
			db.hold.Store(AllDecided) // it will not tell what is decided: all is
		}
	}
	// What a last connection left in the logs, or could not apply, is taken up
	// before the primary says anything of it.
	for _, db := range s.DBs() {
		f.workerOf(db.ID(), db.Name())
	}
	err = f.read()
	if cause := context.Cause(f.ctx); cause != nil {
		err = cause // what ended it, not what reading it said then
	}
	return fmt.Errorf("stream from %s: %w", primary, err)
}

// read hands out frames until the stream ends.
func (f *upstream) read() error {
	var last *worker // of the database named last
	for {
		frame, err := f.stream.NextFrame()
		if errors.Is(err, io.EOF) {
			return errors.New("the primary ended it")
		}
		if err != nil {
			return err
		}
		switch fr := frame.(type) {
		case *DBStreamFrame:
			if err := ValidateName(fr.Name); err != nil {
				return fmt.Errorf("name from the primary: %w", err)
			}
			last = f.workerOf(fr.DBID, fr.Name)
		case *LTXStreamFrame:
			if last == nil {
				return errors.New("a transaction before any database was named")
			}
			if fr.Size > MaxStreamFileSize {
				return fmt.Errorf("a file of %d bytes in one piece, at most %d are allowed", fr.Size, MaxStreamFileSize)
			}
			if err := f.readPiece(last, &ChunkStreamFrame{Size: fr.Size, Len: uint32(fr.Size)}); err != nil {
				return err
			}
		case *ChunkStreamFrame:
			w := f.worker(fr.DBID)
			if w == nil {
				return fmt.Errorf("a piece of database %s, which was not named", FormatDBID(fr.DBID))
			}
			if err := f.readPiece(w, fr); err != nil {
				return err
			}
		case *BaseStreamFrame, *PagesStreamFrame, *BaseEndStreamFrame:
			if err := f.readBase(fr); err != nil {
				return err
			}
		case *DecidedStreamFrame:
			w := f.worker(fr.DBID)
			if w == nil {
				return fmt.Errorf("what is decided of database %s, which was not named", FormatDBID(fr.DBID))
			}
			if err := w.push(piece{decided: fr}); err != nil {
				return err
			}
		case *LevelStreamFrame:
			w := f.worker(fr.DBID)
			if w == nil {
				return fmt.Errorf("the level of database %s, which was not named", FormatDBID(fr.DBID))
			}
			if own := f.store.Epoch(); fr.Epoch < own {
				return fmt.Errorf("the level of database %s from a primary of epoch %d: it was replaced, epoch %d is known", FormatDBID(fr.DBID), fr.Epoch, own)
			}
			if err := w.push(piece{level: fr}); err != nil {
				return err
			}
		case *ResumedStreamFrame:
			if w := f.worker(fr.DBID); w != nil {
				w.resumed(fr.Ask)
			}
		case *OffLogStreamFrame:
			if w := f.worker(fr.DBID); w != nil {
				w.offLog()
			}
		case *DropDBStreamFrame:
			// Each database that is here has a worker: of another one there is nothing to drop.
			if w := f.worker(fr.DBID); w != nil {
				w.drop()
			}
			if last != nil && last.id == fr.DBID {
				last = nil
			}
		case *HeartbeatStreamFrame:
			f.heartbeat(fr)
		case *NodesStreamFrame:
			f.store.noteNodes(fr.Nodes)
		case *HandoffStreamFrame:
			if fr.NodeID == f.store.nodeID && f.store.roles != nil {
				f.store.roles.send(role.Handoff{})
			}
		}
	}
}

// readPiece reads the bytes of a piece and gives them to its database.
func (f *upstream) readPiece(w *worker, fr *ChunkStreamFrame) error {
	p := piece{size: fr.Size, offset: fr.Offset, data: make([]byte, fr.Len)}
	if _, err := io.ReadFull(f.stream, p.data); err != nil {
		return err
	}
	return w.push(p)
}

// readBase gives a part of a base to its database.
func (f *upstream) readBase(frame StreamFrame) error {
	var id uint32
	var p piece
	switch fr := frame.(type) {
	case *BaseStreamFrame:
		id, p.start = fr.DBID, fr
	case *PagesStreamFrame:
		id, p.pages, p.data = fr.DBID, fr, f.buffers.get(int(fr.Size))
		if _, err := io.ReadFull(f.stream, p.data); err != nil {
			return err
		}
	case *BaseEndStreamFrame:
		id, p.end = fr.DBID, fr
	}
	w := f.worker(id)
	if w == nil {
		return fmt.Errorf("a piece of database %s, which was not named", FormatDBID(id))
	}
	return w.push(p)
}

// pageBuffers lends memory for pages of bases: a first copy of some gigabytes goes through the same few of
// them. What is not put back is left to the collector.
type pageBuffers struct{ pool sync.Pool }

// get returns size bytes of any content.
func (b *pageBuffers) get(size int) []byte {
	if p, ok := b.pool.Get().(*[MaxStreamChunkSize]byte); ok {
		return p[:size]
	}
	return new([MaxStreamChunkSize]byte)[:size]
}

// put takes back what get has returned.
func (b *pageBuffers) put(data []byte) {
	b.pool.Put((*[MaxStreamChunkSize]byte)(data[:MaxStreamChunkSize]))
}

// heartbeat takes the primary's time and answers it.
func (f *upstream) heartbeat(fr *HeartbeatStreamFrame) {
	s := f.store
	if fr.Epoch > s.Epoch() {
		s.epoch.Store(fr.Epoch)
	}
	f.mu.Lock()
	f.beat = true
	for id, w := range f.workers {
		f.pending[id] = w // the log may have become durable meanwhile
		if db := s.DB(id); db != nil && fr.Behind == 0 && w.idle() {
			db.setTrouble(nil, 0) // there is nothing that it lacks
		}
	}
	var m *freshness
	if fr.Behind == 0 {
		m = f.heardFresh(fr.UnixMilli)
	}
	f.mu.Unlock()
	if m != nil {
		f.there(m)
	}
	signal(f.notify)
}

// worker returns the worker of a database that was named, nil if it was not.
func (f *upstream) worker(id uint32) *worker {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.workers[id]
}

// workerOf returns the worker of a database, started if need be, and tells it
// the database's name; "" leaves it as it is.
func (f *upstream) workerOf(id uint32, name string) *worker {
	f.mu.Lock()
	w := f.workers[id]
	if w == nil {
		w = newWorker(f, id)
		f.workers[id] = w
		f.wg.Go(w.run)
	}
	f.mu.Unlock()
	if name != "" {
		w.rename(name)
	}
	return w
}

// note says that w has something to tell the primary; urgent, that the primary
// may be waiting for it.
func (f *upstream) note(w *worker, urgent bool) {
	f.mu.Lock()
	f.pending[w.id] = w
	f.mu.Unlock()
	if urgent {
		signal(f.urgent)
	} else {
		signal(f.notify)
	}
}

// acknowledge tells the primary how far each database is, several at a time.
func (f *upstream) acknowledge(out StreamWriter) {
	for {
		select {
		case <-f.ctx.Done():
			return
		case <-f.urgent:
		case <-f.notify:
			select {
			case <-f.ctx.Done():
				return
			case <-f.urgent:
			case <-time.After(ackInterval):
			}
		}
		runtime.Gosched() // others whose entries shared a write are about to say so
		f.mu.Lock()
		pending := slices.Collect(maps.Values(f.pending))
		clear(f.pending)
		beat := f.beat
		f.beat = false
		f.mu.Unlock()

		var frames []StreamFrame
		for _, w := range pending {
			frames = append(frames, w.report()...)
		}
		if beat {
			frames = append(frames, &HeartbeatStreamFrame{UnixMilli: time.Now().UnixMilli(), Epoch: f.store.Epoch()})
		}
		if len(frames) == 0 {
			continue
		}
		if err := out.WriteFrames(frames...); err != nil {
			// The reader waits for a frame: the end of the stream wakes it.
			f.hangUp(fmt.Errorf("acknowledge: %w", err))
			return
		}
	}
}

// hangUp ends the connection under whoever reads or writes it.
func (f *upstream) hangUp(cause error) {
	f.end(cause)
	if err := f.stream.Close(); err != nil {
		f.store.Logger.Debug("stream closed", "error", err)
	}
}

// signal leaves a value in ch, which has a capacity of 1.
func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
