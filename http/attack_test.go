package http_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	nethttp "net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/http"
	"github.com/litefs/litefs/internal/faultnet"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// frames returns frames, and bytes between them, as they are on the wire.
func frames(t *testing.T, parts ...any) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, part := range parts {
		switch part := part.(type) {
		case litefs.StreamFrame:
			if err := litefs.WriteStreamFrame(&b, part); err != nil {
				t.Fatal(err)
			}
		case []byte:
			b.Write(part)
		case string:
			b.WriteString(part)
		}
	}
	return b.Bytes()
}

// evilPrimary answers every request for a stream as a good node of the cluster does, sends what attack
// holds, and then heartbeats. It counts the streams that it began.
type evilPrimary struct {
	url     string
	mu      sync.Mutex
	attack  func(w io.Writer) error
	streams int
}

func startEvilPrimary(t *testing.T, clusterID, epoch string) *evilPrimary {
	e := &evilPrimary{}
	var protocols nethttp.Protocols
	protocols.SetUnencryptedHTTP2(true)
	protocols.SetHTTP1(true)
	srv := httptest.NewUnstartedServer(nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) {
		if r.URL.Path != "/stream" {
			nethttp.Error(w, "no", nethttp.StatusNotFound)
			return
		}
		if err := nethttp.NewResponseController(w).EnableFullDuplex(); err != nil {
			nethttp.Error(w, err.Error(), nethttp.StatusInternalServerError)
			return
		}
		http.Handshake(w.Header(), clusterID, "evil", epoch)
		e.mu.Lock()
		attack := e.attack
		e.streams++
		e.mu.Unlock()
		out := http.NewBlockWriter(w)
		err := attack(out)
		for err == nil {
			w.(nethttp.Flusher).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-time.After(20 * time.Millisecond):
			}
			err = litefs.WriteStreamFrame(out, &litefs.HeartbeatStreamFrame{UnixMilli: time.Now().UnixMilli(), Epoch: 1})
		}
	}))
	srv.Config.Protocols = &protocols
	srv.Start()
	e.url = srv.URL
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	return e
}

func (e *evilPrimary) set(attack func(io.Writer) error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.attack, e.streams = attack, 0
}

func (e *evilPrimary) begun() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.streams
}

// tree returns the content of every file below the directories that hold what a node was given.
func tree(t *testing.T, store *litefs.Store) map[string]string {
	t.Helper()
	files := make(map[string]string)
	for _, dir := range []string{store.FilesDir(), filepath.Join(store.Path(), "dbs")} {
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			// The wal-index is memory of the readers; the page checksums carry stamps.
			if err != nil || !d.Type().IsRegular() || strings.HasSuffix(path, "-shm") || strings.HasSuffix(path, "checksums") {
				return err
			}
			b, err := os.ReadFile(path)
			files[path] = string(b)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// logLines keeps what a node has logged.
type logLines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// take returns what came since the last call.
func (l *logLines) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.b.String()
	l.b.Reset()
	return s
}

// A node that calls itself the primary, has the token and the cluster's id, and sends what it must not:
// the replica refuses it and says why, changes nothing, does not grow, and follows a good primary again.
func TestEvilPrimary(t *testing.T) {
	app := sqlitetest.Start(t)
	primary, srv := startPrimary(t, t.TempDir())
	c := create(t, primary, app, "a.db")
	write(t, c, 5, 1000)
	good := srv.URL()[len("http://"):]
	proxy, err := faultnet.Listen(good, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := proxy.Close(); err != nil {
			t.Error(err)
		}
	})
	log := &logLines{}
	replica := startReplica(t, t.TempDir(), "http://"+proxy.Addr(), func(s *litefs.Store) {
		s.Logger = slog.New(slog.NewTextHandler(io.MultiWriter(log, t.Output()), nil))
	})
	settled := func() bool {
		db := replica.DBByName("a.db")
		return db != nil && !db.Pos().IsZero() && db.Pos() == primary.DBByName("a.db").Pos()
	}
	eventually(t, "a.db is on the replica", settled)
	id := primary.DBByName("a.db").ID()
	named := &litefs.DBStreamFrame{DBID: id, Name: "a.db"}
	old := nextFile(t, primary, litefs.Pos{}, "a.db", 2)
	var next []byte // the file that the replica is to get: each attack is made with it
	evil := startEvilPrimary(t, primary.ClusterID(), fmt.Sprint(primary.Epoch()))

	bytesOf := func(parts ...any) func(io.Writer) error {
		b := frames(t, parts...)
		return func(w io.Writer) error { _, err := w.Write(b); return err }
	}
	// file sends the files that change makes of the next one, as files of a.db.
	file := func(change func(b []byte) [][]byte) func(io.Writer) error {
		return func(w io.Writer) error {
			parts := []any{named}
			for _, b := range change(bytes.Clone(next)) {
				parts = append(parts, &litefs.LTXStreamFrame{Size: int64(len(b))}, b)
			}
			_, err := w.Write(frames(t, parts...))
			return err
		}
	}
	head := func(typ uint32, rest ...byte) []byte {
		return append(binary.BigEndian.AppendUint32(nil, typ), rest...)
	}
	ff := bytes.Repeat([]byte{0xff}, 40)

	for _, attack := range []struct {
		name string
		do   func(io.Writer) error
		says string // in the replica's log
	}{
		{"parent", bytesOf(&litefs.DBStreamFrame{DBID: 7, Name: "../x"}, &litefs.LTXStreamFrame{Size: int64(len(old))}, old), "invalid database name"},
		{"parent within", bytesOf(&litefs.DBStreamFrame{DBID: 7, Name: "a/../../x"}), "invalid database name"},
		{"absolute", bytesOf(&litefs.DBStreamFrame{DBID: 7, Name: "/etc/passwd"}), "invalid database name"},
		{"log of a database", bytesOf(&litefs.DBStreamFrame{DBID: 7, Name: "a.db-wal"}), "invalid database name"},
		{"a zero byte", bytesOf(&litefs.DBStreamFrame{DBID: 7, Name: "a\x00b"}), "invalid database name"},
		{"rename to the parent", bytesOf(&litefs.DBStreamFrame{DBID: id, Name: "../a.db"}), "invalid database name"},
		{"endless name", bytesOf(head(1, ff...)), "name of 4294967295 bytes"},
		{"endless file", bytesOf(named, head(2, ff...)), "invalid LTX stream frame"},
		{"file as large as a disk", bytesOf(named, &litefs.LTXStreamFrame{Size: litefs.MaxStreamFrameLTXSize}, make([]byte, 1<<20)), "in one piece"},
		{"endless piece", bytesOf(named, head(5, append(binary.BigEndian.AppendUint32(nil, id), ff...)...)), "size of -1 bytes"},
		{"piece of a database that has no name", bytesOf(&litefs.ChunkStreamFrame{DBID: 99, Size: 1, Len: 1}, "x"), "before it names it"},
		{"unknown frame", bytesOf(head(0xdeadbeef)), "invalid stream frame type"},
		{"a replica's words", bytesOf(&litefs.AckStreamFrame{DBID: id, Taken: 1}), "for primaries"},
		{"more than was asked for", func(w io.Writer) error {
			if _, err := w.Write(frames(t, named)); err != nil {
				return err
			}
			piece := make([]byte, litefs.MaxStreamChunkSize)
			for i := int64(0); ; i++ {
				f := &litefs.ChunkStreamFrame{DBID: id, Size: 1 << 40, Offset: i * int64(len(piece)), Len: uint32(len(piece))}
				if _, err := w.Write(frames(t, f, piece)); err != nil {
					return err
				}
			}
		}, "corrupt LTX entry"},
		{"drops of what is not there", bytesOf(&litefs.DropDBStreamFrame{DBID: id + 1}, &litefs.DropDBStreamFrame{DBID: id - 1}, head(0xdead)), "invalid stream frame type"},
		{"no file", file(func(b []byte) [][]byte { return [][]byte{bytes.Repeat([]byte("this is no LTX file. "), 20)} }), "corrupt LTX entry"},
		{"a file with another bit", file(func(b []byte) [][]byte { b[len(b)/2] ^= 1; return [][]byte{b} }), "corrupt LTX entry"},
		{"a file with another bit in its head", file(func(b []byte) [][]byte { b[9] ^= 1; return [][]byte{b} }), "import entry: "},
		{"a truncated file", file(func(b []byte) [][]byte { return [][]byte{b[:len(b)-9]} }), "corrupt LTX entry"},
		{"a file with more at its end", file(func(b []byte) [][]byte { return [][]byte{append(b, "more"...)} }), "corrupt LTX entry"},
		{"the same file again", file(func(b []byte) [][]byte { return [][]byte{b, b} }), "does not join the transaction log"},
		{"an old file", file(func([]byte) [][]byte { return [][]byte{old} }), "does not join the transaction log"},
		{"noise", func(w io.Writer) error { _, err := w.Write(noise(1 << 20)); return err }, "invalid stream frame type"},
	} {
		t.Run(attack.name, func(t *testing.T) {
			before := tree(t, replica)
			pos := replica.DBByName("a.db").Pos()
			evil.set(func(io.Writer) error { return nil })
			proxy.Redirect(evil.url[len("http://"):])
			proxy.Cut()
			eventually(t, "the replica follows the evil one", func() bool { return evil.begun() > 0 })
			rows := write1(t, c)
			next = nextFile(t, primary, pos, "a.db", 1)
			log.take()
			evil.set(attack.do)
			proxy.Cut()
			said := ""
			eventually(t, "the replica says "+attack.says, func() bool {
				said += log.take()
				return strings.Contains(said, attack.says)
			})
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			if m.HeapAlloc > 512<<20 {
				t.Errorf("%d bytes are in use", m.HeapAlloc)
			}
			proxy.Redirect(good)
			proxy.Cut()
			eventually(t, "the replica follows again", func() bool { return settled() && hasRows(t, app, replica, "a.db", rows) })
			after := tree(t, replica)
			for path := range after {
				rel, err := filepath.Rel(replica.Path(), path)
				if err != nil {
					t.Fatal(err)
				}
				_, was := before[path]
				if !was && !strings.HasPrefix(rel, filepath.Join("dbs", litefs.FormatDBID(id), "ltx")) {
					t.Errorf("there is a new file %s", rel)
				}
			}
			if n := len(replica.DBs()); n != 1 {
				t.Errorf("the replica has %d databases", n)
			}
		})
	}
	app.Exit()
}

// noise is what random bytes are, but never a frame that exists.
func noise(n int) []byte {
	rng := rand.New(rand.NewPCG(3, 4))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	b[0] = 0xff
	return b
}

// write1 commits one more transaction and returns how many there are.
func write1(t *testing.T, c *sqlitetest.Conn) int64 {
	t.Helper()
	write(t, c, 1, 1000)
	return c.MustInt("SELECT count(*) FROM t")
}

// nextFile returns the nth file that a replica at pos is sent, once there is one.
func nextFile(t *testing.T, primary *litefs.Store, pos litefs.Pos, name string, nth int) (b []byte) {
	t.Helper()
	for range nth {
		eventually(t, "there is a transaction after "+pos.String(), func() bool {
			r, err := primary.DBByName(name).NextLTX(pos)
			if err != nil {
				return false
			}
			b, err = io.ReadAll(r)
			if cerr := r.Close(); err != nil || cerr != nil {
				t.Fatal(err, cerr)
			}
			pos = r.Pos()
			return true
		})
	}
	return b
}

// A client that speaks nonsense, or as a replica and says what cannot be: it loses its own connection, and
// a good replica beside it follows on.
func TestEvilReplica(t *testing.T) {
	app := sqlitetest.Start(t)
	primary, srv := startPrimary(t, t.TempDir())
	c := create(t, primary, app, "a.db")
	replica := startReplica(t, t.TempDir(), srv.URL())
	addr := srv.URL()[len("http://"):]
	id := primary.DBByName("a.db").ID()

	// stream opens a stream as the node "evil" and sends body after an empty list of positions.
	stream := func(body func(w io.Writer) error) func(t *testing.T) {
		return func(t *testing.T) {
			transport := &nethttp.Transport{}
			defer transport.CloseIdleConnections()
			r, w := io.Pipe()
			defer r.Close()
			go func() {
				err := http.WritePosMap(http.NewBlockWriter(w), nil)
				if err == nil {
					err = body(w)
				}
				if err != nil {
					_ = w.CloseWithError(err)
				}
			}()
			req, err := nethttp.NewRequestWithContext(t.Context(), nethttp.MethodPost, srv.URL()+"/stream", struct {
				io.Reader
				io.Closer
			}{r, r})
			if err != nil {
				t.Fatal(err)
			}
			http.Handshake(req.Header, primary.ClusterID(), "evil", "1")
			client := nethttp.Client{Transport: transport, Timeout: patience}
			resp, err := client.Do(req)
			if err != nil {
				return // refused as early as that
			}
			defer resp.Body.Close()
			if _, err := io.Copy(io.Discard, resp.Body); err != nil && strings.Contains(err.Error(), "Timeout") {
				t.Errorf("the stream goes on: %v", err)
			}
		}
	}
	// said sends frames in good blocks; the positions were block 0.
	said := func(parts ...any) func(w io.Writer) error {
		return func(w io.Writer) error {
			var all bytes.Buffer
			bw := http.NewBlockWriter(&all)
			if err := http.WritePosMap(bw, nil); err != nil {
				return err
			}
			skip := all.Len()
			if _, err := bw.Write(frames(t, parts...)); err != nil {
				return err
			}
			_, err := w.Write(all.Bytes()[skip:])
			return err
		}
	}
	raw := func(b []byte) func(t *testing.T) {
		return func(t *testing.T) {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			_, _ = conn.Write(b) // the server may end it in the middle
			if tcp, ok := conn.(*net.TCPConn); ok {
				_ = tcp.CloseWrite()
			}
			if _, err := io.Copy(io.Discard, conn); err != nil && strings.Contains(err.Error(), "timeout") {
				t.Errorf("the connection goes on: %v", err)
			}
		}
	}
	many := make([]any, 0, 2000)
	for i := range uint32(2000) {
		many = append(many, &litefs.AckStreamFrame{DBID: 1_000_000 + i})
	}
	const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	rows := int64(0)
	for _, attack := range []struct {
		name string
		do   func(t *testing.T)
	}{
		{"noise", raw(noise(1 << 20))},
		{"HTTP/2 and then noise", raw(append([]byte(preface), noise(1<<20)...))},
		{"HTTP/2 with a huge frame", raw([]byte(preface + "\xff\xff\xff\x00\x00\x00\x00\x00\x01"))},
		{"endless headers", raw([]byte("GET /info HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 1<<20)))},
		{"endless request line", raw([]byte("GET /" + strings.Repeat("x", 1<<20)))},
		{"a block of 4 GB", stream(func(w io.Writer) error { _, err := w.Write(bytes.Repeat([]byte{0xff}, 8)); return err })},
		{"a block with another checksum", stream(func(w io.Writer) error { _, err := w.Write([]byte{0, 0, 0, 1, 0, 0, 0, 0, 9}); return err })},
		{"the first block again", stream(func(w io.Writer) error { return http.WritePosMap(http.NewBlockWriter(w), nil) })},
		{"an unknown frame", stream(said("\xff\xff\xff\xff"))},
		{"a primary's frame", stream(said(&litefs.DropDBStreamFrame{DBID: id}))},
		{"a file", stream(said(&litefs.DBStreamFrame{DBID: id, Name: "a.db"}, &litefs.LTXStreamFrame{Size: 3}, "abc"))},
		{"what was not sent", stream(said(&litefs.AckStreamFrame{DBID: id, Taken: 1 << 62}))},
		{"less than before", stream(said(append(binary.BigEndian.AppendUint32([]byte{0, 0, 0, 16}, id), bytes.Repeat([]byte{0xff}, 88)...)))},
		{"databases that are not there", stream(said(append(many, "\xff\xff\xff\xff")...))},
		{"asks for databases that are not there", stream(said(&litefs.ResumeStreamFrame{DBID: 77}, &litefs.ResumeStreamFrame{DBID: 78}, "\xff\xff\xff\xff"))},
	} {
		t.Run(attack.name, func(t *testing.T) {
			attack.do(t)
			write(t, c, 2, 1000)
			rows += 2
			eventually(t, "the good replica follows", func() bool { return hasRows(t, app, replica, "a.db", rows) })
			for _, r := range primary.Replicas() {
				if len(r.Databases) > 1 {
					t.Errorf("the primary remembers %d databases of %s", len(r.Databases), r.NodeID)
				}
			}
			if n := len(primary.DBs()); n != 1 {
				t.Errorf("the primary has %d databases", n)
			}
		})
	}
	app.Exit()
}
