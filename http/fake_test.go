package http

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/litefs/litefs"
)

// patience is how long a test waits for what should be quick.
const patience = 30 * time.Second

var discard = slog.New(slog.DiscardHandler)

// fakeSource is a node in memory.
type fakeSource struct {
	mu         sync.Mutex
	cluster    string
	node       string
	epoch      uint64
	primary    bool
	primaryURL string
	mount      string
	dbs        map[uint32]*fakeDB
	dropped    map[uint32]bool
	subs       map[*fakeSub]bool
	noSubs     chan struct{} // closed when the last subscription is
	open       int           // LTX files not closed
	lag        time.Duration // below zero: never synced
	replicas   litefs.ReplicaRegistry
	stats      litefs.Stats
}

func (s *fakeSource) Stats() *litefs.Stats { return &s.stats }

func (s *fakeSource) Status() litefs.Status {
	role := litefs.RoleReplica
	if s.IsPrimary() {
		role = litefs.RolePrimary
	}
	st := litefs.Status{Role: role, Hostname: "host1", PrimaryURL: s.PrimaryURL(), Lag: s.lag, Synced: s.lag >= 0, Replicas: s.replicas.List(), Subscribers: 2}
	for _, db := range s.Databases() {
		st.Databases = append(st.Databases, litefs.DBStatus{ID: db.ID(), Name: db.Name(), Pos: db.Pos(), Received: db.Pos(),
			Commits: 7, Reaped: 5, ApplyLatency: 2 * time.Millisecond})
	}
	return st
}

func (s *fakeSource) MountDir() string { return locked(s, func() string { return s.mount }) }
func (s *fakeSource) Lag() (time.Duration, bool) {
	lag := locked(s, func() time.Duration { return s.lag })
	return lag, lag >= 0
}

func (s *fakeSource) Serving() bool                          { return s.IsPrimary() }
func (s *fakeSource) RoleState() (string, string)            { return "", "" }
func (s *fakeSource) PromoteNow(context.Context, bool) error { return nil }
func (s *fakeSource) DemoteNow(context.Context, string) error {
	return errors.New("this node is not the primary")
}
func (s *fakeSource) Position() litefs.NodePosition {
	return litefs.NodePosition{ID: s.NodeID(), Primary: s.IsPrimary()}
}

func (s *fakeSource) ReplicaRegistry() *litefs.ReplicaRegistry { return &s.replicas }

func newFakeSource(names ...string) *fakeSource {
	s := &fakeSource{
		cluster: "c1", node: "primary1", epoch: 3, primary: true,
		dbs: make(map[uint32]*fakeDB), dropped: make(map[uint32]bool), subs: make(map[*fakeSub]bool),
	}
	for i, name := range names {
		id := uint32(i + 1)
		s.dbs[id] = &fakeDB{src: s, id: id, name: name}
	}
	return s
}

func locked[T any](s *fakeSource, f func() T) T {
	s.mu.Lock()
	defer s.mu.Unlock()
	return f()
}

func (s *fakeSource) ClusterID() string  { return locked(s, func() string { return s.cluster }) }
func (s *fakeSource) NodeID() string     { return locked(s, func() string { return s.node }) }
func (s *fakeSource) Epoch() uint64      { return locked(s, func() uint64 { return s.epoch }) }
func (s *fakeSource) IsPrimary() bool    { return locked(s, func() bool { return s.primary }) }
func (s *fakeSource) PrimaryURL() string { return locked(s, func() string { return s.primaryURL }) }

func (s *fakeSource) Databases() []Database {
	s.mu.Lock()
	defer s.mu.Unlock()
	var a []Database
	for _, id := range slices.Sorted(maps.Keys(s.dbs)) {
		a = append(a, s.dbs[id])
	}
	return a
}

func (s *fakeSource) Database(id uint32) (Database, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	db, ok := s.dbs[id]
	return db, ok
}

func (s *fakeSource) Dropped(id uint32) bool { return locked(s, func() bool { return s.dropped[id] }) }

func (s *fakeSource) Subscribe() Subscription {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.subs) == 0 {
		s.noSubs = make(chan struct{})
	}
	sub := &fakeSub{src: s, notify: make(chan struct{}, 1), dirty: make(map[uint32]struct{})}
	s.subs[sub] = true
	return sub
}

// change runs f and marks the database dirty.
func (s *fakeSource) change(id uint32, f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	for sub := range s.subs {
		sub.dirty[id] = struct{}{}
		select {
		case sub.notify <- struct{}{}:
		default:
		}
	}
}

// waitSubs waits until somebody has subscribed.
func (s *fakeSource) waitSubs(tb testing.TB) {
	tb.Helper()
	for deadline := time.Now().Add(patience); locked(s, func() int { return len(s.subs) }) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatal("nobody subscribes")
		}
	}
}

// waitNoSubs waits for the end of all sessions.
func (s *fakeSource) waitNoSubs(tb testing.TB) {
	tb.Helper()
	s.mu.Lock()
	ch := s.noSubs
	s.mu.Unlock()
	select {
	case <-ch:
	case <-time.After(patience):
		tb.Fatal("the session does not end")
	}
}

type fakeSub struct {
	src    *fakeSource
	notify chan struct{}
	dirty  map[uint32]struct{}
}

func (s *fakeSub) NotifyCh() <-chan struct{} { return s.notify }

func (s *fakeSub) DirtySet() map[uint32]struct{} {
	s.src.mu.Lock()
	defer s.src.mu.Unlock()
	dirty := s.dirty
	s.dirty = make(map[uint32]struct{})
	return dirty
}

func (s *fakeSub) Close() error {
	s.src.mu.Lock()
	defer s.src.mu.Unlock()
	if !s.src.subs[s] {
		return errors.New("subscription closed twice")
	}
	delete(s.src.subs, s)
	if len(s.src.subs) == 0 {
		close(s.src.noSubs)
	}
	return nil
}

// fakeDB has a log of made-up files. Its fields are guarded by src.mu.
type fakeDB struct {
	src      *fakeSource
	id       uint32
	name     string
	first    uint64 // transactions up to it are not in the log any more
	log      [][]byte
	err      error                       // of NextLTX
	snapshot func(context.Context) error // runs before a snapshot
	cut      int64                       // bytes that files are shorter than they claim
}

// chksum makes positions checkable without pages.
func chksum(id uint32, txid uint64) uint64 {
	if txid == 0 {
		return 0
	}
	return 1<<63 | uint64(id)<<32 | txid
}

func posAt(id uint32, txid uint64) litefs.Pos {
	return litefs.Pos{TXID: txid, Chksum: chksum(id, txid)}
}

func (db *fakeDB) ID() uint32 { return db.id }

func (db *fakeDB) Name() string { return locked(db.src, func() string { return db.name }) }

func (db *fakeDB) Pos() litefs.Pos {
	return locked(db.src, func() litefs.Pos { return posAt(db.id, db.head()) })
}

func (db *fakeDB) Settle() error { return nil }

func (db *fakeDB) head() uint64 { return db.first + uint64(len(db.log)) }

func (db *fakeDB) Decided(uint64) uint64 { return litefs.AllDecided }
func (db *fakeDB) LevelNoted() string    { return litefs.LevelOfRule }

func (db *fakeDB) EventsAfter(txid uint64) (events []litefs.TxEvent) {
	first := locked(db.src, func() uint64 { return db.first })
	for head := db.Pos().TXID; txid < head; {
		txid++
		if txid <= first {
			continue
		}
		events = append(events, litefs.TxEvent{Min: txid, Pos: posAt(db.id, txid), Before: posAt(db.id, txid-1), Epoch: 3, Origin: "n1", Pages: 1, PageSize: 4096, Commit: 2, Timestamp: time.Unix(1, 0)})
	}
	return events
}

func (db *fakeDB) NextLTX(pos litefs.Pos) (*litefs.LTXReader, error) {
	db.src.mu.Lock()
	defer db.src.mu.Unlock()
	switch {
	case db.err != nil:
		return nil, db.err
	case pos != posAt(db.id, pos.TXID) || pos.TXID < db.first || pos.TXID > db.head():
		return nil, litefs.ErrSnapshotNeeded
	case pos.TXID == db.head():
		return nil, io.EOF
	}
	return db.reader(db.log[pos.TXID-db.first], pos.TXID+1, pos.TXID+1), nil
}

// Base gives no base: the log is sent.
func (db *fakeDB) Base(context.Context, litefs.Pos, uint32, func()) (litefs.BaseReader, error) {
	return nil, nil
}

func (db *fakeDB) SnapshotLTX(ctx context.Context) (*litefs.LTXReader, error) {
	if db.snapshot != nil {
		if err := db.snapshot(ctx); err != nil {
			return nil, err
		}
	}
	db.src.mu.Lock()
	defer db.src.mu.Unlock()
	return db.reader([]byte("snapshot of "+db.name), 1, db.head()), nil
}

func (db *fakeDB) reader(data []byte, minTXID, maxTXID uint64) *litefs.LTXReader {
	db.src.open++
	r := &fakeFile{Reader: bytes.NewReader(data[:int64(len(data))-db.cut]), src: db.src}
	return &litefs.LTXReader{ReadCloser: r, Size: int64(len(data)), MinTXID: minTXID, MaxTXID: maxTXID, Post: chksum(db.id, maxTXID)}
}

type fakeFile struct {
	io.Reader
	src *fakeSource
}

func (f *fakeFile) Close() error {
	f.src.mu.Lock()
	defer f.src.mu.Unlock()
	f.src.open--
	return nil
}

// commit appends transactions to a database.
func (s *fakeSource) commit(id uint32, files ...string) {
	s.change(id, func() {
		for _, f := range files {
			s.dbs[id].log = append(s.dbs[id].log, []byte(f))
		}
	})
}

// fakeIdentity is a replica's.
type fakeIdentity struct {
	cluster, node string
	epoch         uint64
}

func (i fakeIdentity) ClusterID() string { return i.cluster }
func (i fakeIdentity) NodeID() string    { return i.node }
func (i fakeIdentity) Epoch() uint64     { return i.epoch }

// fastLimits lets tests wait for heartbeats and retries, and not for anything else.
func fastLimits() limits {
	l := defaultLimits()
	l.heartbeat, l.retry, l.maxRetry = time.Millisecond, time.Millisecond, time.Millisecond
	return l
}

// testServer is a server of src on loopback, closed at the end of the test with nothing left of it.
func testServer(tb testing.TB, src *fakeSource, token string, l limits) *Server {
	tb.Helper()
	return serveTest(tb, src, Options{Token: token, Logger: slog.New(slog.DiscardHandler)}, l)
}

// serveTest serves src until the test ends, and then looks for what was left open.
func serveTest(tb testing.TB, src *fakeSource, opt Options, l limits) *Server {
	tb.Helper()
	opt.Addr = "127.0.0.1:0"
	s := newServer(src, opt, l)
	if err := s.Listen(); err != nil {
		tb.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background()) }()
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			tb.Errorf("close server: %v", err)
		}
		if err := <-served; err != nil {
			tb.Errorf("serve: %v", err)
		}
		src.mu.Lock()
		defer src.mu.Unlock()
		if len(src.subs) != 0 || src.open != 0 {
			tb.Errorf("left after close: %d subscriptions, %d open files", len(src.subs), src.open)
		}
	})
	return s
}

func testClient(token string) *Client {
	c := NewClient(fakeIdentity{cluster: "c1", node: "replica1", epoch: 3}, token)
	c.timeouts.stall, c.timeouts.handshake = patience, patience
	return c
}

// testStream starts a stream that the end of the test closes.
func testStream(tb testing.TB, url string, posMap map[uint32]litefs.Pos) *fakeReplica {
	tb.Helper()
	r, err := testClient("").Stream(tb.Context(), url, posMap)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := r.Close(); err != nil {
			tb.Errorf("close stream: %v", err)
		}
	})
	return &fakeReplica{Stream: r.(*Stream), parts: make(map[uint32][]byte), taken: make(map[uint32]int64)}
}

// fakeReplica puts chunks together, and acknowledges what it has read.
type fakeReplica struct {
	*Stream
	id    uint32 // the database named last
	parts map[uint32][]byte
	taken map[uint32]int64
}

// take acknowledges n bytes of a database.
func (r *fakeReplica) take(id uint32, n int) error {
	r.taken[id] += int64(n)
	return r.WriteFrames(&litefs.AckStreamFrame{DBID: id, Taken: r.taken[id], Applied: posAt(id, uint64(r.taken[id]))})
}

// addPart adds a piece, and returns the file when it is whole.
func (r *fakeReplica) addPart(f *litefs.ChunkStreamFrame) (file []byte, whole bool, err error) {
	b, err := io.ReadAll(r)
	switch {
	case err != nil:
		return nil, false, err
	case len(b) != int(f.Len):
		return nil, false, errors.New("piece of another size than announced")
	case f.Len == 0:
		delete(r.parts, f.DBID)
		return nil, true, nil
	case f.Offset != int64(len(r.parts[f.DBID])):
		return nil, false, errors.New("pieces out of order")
	}
	file = append(r.parts[f.DBID], b...)
	r.parts[f.DBID] = file
	if f.Last() {
		delete(r.parts, f.DBID)
	}
	return file, f.Last(), r.take(f.DBID, len(b))
}

// next returns the next frame but heartbeats, as "db ID NAME", "ltx CONTENT", "file ID CONTENT" of one
// that came in pieces, "given up ID", "drop ID", "off the log ID" or "resumed ID ASK".
func next(tb testing.TB, s litefs.StreamReader) string {
	tb.Helper()
	line, err := tryNext(s)
	if err != nil {
		tb.Fatalf("next frame: %v", err)
	}
	return line
}

func tryNext(s litefs.StreamReader) (string, error) {
	for {
		f, err := s.NextFrame()
		if err != nil {
			return "", err
		}
		switch f := f.(type) {
		case *litefs.ChunkStreamFrame:
			r, ok := s.(*fakeReplica)
			if !ok {
				return "", errors.New("pieces for one who does not put them together")
			}
			file, whole, err := r.addPart(f)
			switch {
			case err != nil:
				return "", err
			case whole && file == nil:
				return "given up " + strconv.Itoa(int(f.DBID)), nil
			case whole:
				return "file " + strconv.Itoa(int(f.DBID)) + " " + string(file), nil
			}
		case *litefs.OffLogStreamFrame:
			return "off the log " + strconv.Itoa(int(f.DBID)), nil
		case *litefs.ResumedStreamFrame:
			return "resumed " + strconv.Itoa(int(f.DBID)) + " " + strconv.Itoa(int(f.Ask)), nil
		case *litefs.DBStreamFrame:
			if r, ok := s.(*fakeReplica); ok {
				r.id = f.DBID
			}
			return "db " + strconv.Itoa(int(f.DBID)) + " " + f.Name, nil
		case *litefs.DropDBStreamFrame:
			return "drop " + strconv.Itoa(int(f.DBID)), nil
		case *litefs.LTXStreamFrame:
			b, err := io.ReadAll(s)
			if err != nil {
				return "", err
			}
			if int64(len(b)) != f.Size {
				return "", errors.New("file of another size than announced")
			}
			if r, ok := s.(*fakeReplica); ok {
				if err := r.take(r.id, len(b)); err != nil {
					return "", err
				}
			}
			return "ltx " + string(b), nil
		}
	}
}

func wantNext(tb testing.TB, s litefs.StreamReader, want ...string) {
	tb.Helper()
	for _, w := range want {
		if got := next(tb, s); got != w {
			tb.Fatalf("next frame is %q, want %q", got, w)
		}
	}
}

func wantBeat(tb testing.TB, s litefs.StreamReader) *litefs.HeartbeatStreamFrame {
	tb.Helper()
	f, err := s.NextFrame()
	if err != nil {
		tb.Fatal(err)
	}
	beat, ok := f.(*litefs.HeartbeatStreamFrame)
	if !ok {
		tb.Fatalf("next frame is %#v, want a heartbeat", f)
	}
	return beat
}

// post sends a stream request with headers and body as they are, and returns status, first line and
// headers of the answer.
func post(tb testing.TB, url string, h map[string]string, body io.Reader) (int, string, http.Header) {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), http.MethodPost, url+"/stream", body)
	if err != nil {
		tb.Fatal(err)
	}
	for k, v := range h {
		req.Header.Set(k, v)
	}
	if _, given := h[headerSum]; !given {
		req.Header.Set(headerSum, handshakeSum(req.Header))
	}
	conn := testClient("").newStreamConnection(func() {})
	defer conn.close()
	client := http.Client{Transport: conn.transport, Timeout: patience}
	resp, err := client.Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	defer resp.Body.Close()
	b := make([]byte, 4096)
	n, err := resp.Body.Read(b)
	if err != nil && err != io.EOF {
		tb.Fatal(err)
	}
	line, _, _ := strings.Cut(string(b[:n]), "\n")
	return resp.StatusCode, line, resp.Header
}

// inBlocks returns what r gives, as the body of a stream is sent.
func inBlocks(r io.Reader) io.Reader {
	b := &blocks{src: r}
	b.w = newBlockWriter(&b.out)
	return b
}

type blocks struct {
	src io.Reader
	out bytes.Buffer
	w   *blockWriter
}

func (b *blocks) Read(p []byte) (int, error) {
	if b.out.Len() == 0 {
		data := make([]byte, 32<<10)
		n, err := b.src.Read(data)
		if n == 0 {
			return 0, err // io.EOF itself
		}
		if _, err := b.w.Write(data[:n]); err != nil {
			return 0, err
		}
	}
	return b.out.Read(p)
}

// goodHeaders are those of a replica that is welcome.
func goodHeaders() map[string]string {
	return map[string]string{
		headerProtocol: protocolVersion, headerLTX: ltxVersion,
		headerClusterID: "c1", headerID: "replica1", headerEpoch: "3",
	}
}
