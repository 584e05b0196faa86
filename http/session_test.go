package http

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs"
)

func TestStream_FromTheStart(t *testing.T) {
	src := newFakeSource("a.db", "sub/b.db", "empty.db")
	src.commit(1, "a1", "a2", "a3")
	src.commit(2, "b1")
	s := testStream(t, testServer(t, src, "", fastLimits()).URL(), nil)

	if s.ClusterID() != "c1" || s.NodeID() != "primary1" || s.Epoch() != 3 {
		t.Fatalf("peer is %q, %q, %d", s.ClusterID(), s.NodeID(), s.Epoch())
	}
	if beat := wantBeat(t, s); beat.Epoch != 3 || time.Since(beat.Time()).Abs() > time.Hour {
		t.Fatalf("heartbeat %+v", beat)
	}
	// The databases take turns: no backlog holds another up, and each LTX frame is of the database
	// named last.
	wantNext(t, s,
		"db 1 a.db", "ltx a1",
		"db 2 sub/b.db", "ltx b1",
		"db 3 empty.db",
		"db 1 a.db", "ltx a2",
		"ltx a3")
}

func TestStream_Live(t *testing.T) {
	src := newFakeSource("a.db", "b.db")
	src.commit(1, "a1")
	src.commit(2, "b1", "b2")
	posMap := map[uint32]litefs.Pos{1: posAt(1, 1), 2: posAt(2, 1), 77: posAt(77, 5)}
	s := testStream(t, testServer(t, src, "", fastLimits()).URL(), posMap)

	wantNext(t, s, "db 1 a.db", "db 2 b.db", "ltx b2")
	src.commit(2, "b3")
	wantNext(t, s, "ltx b3")
	src.commit(1, "a2")
	wantNext(t, s, "db 1 a.db", "ltx a2")

	// A rename is a new name for the same database.
	src.change(1, func() { src.dbs[1].name = "renamed.db" })
	wantNext(t, s, "db 1 renamed.db")

	// A new database.
	src.change(3, func() { src.dbs[3] = &fakeDB{src: src, id: 3, name: "new.db"} })
	wantNext(t, s, "db 3 new.db")
	src.commit(3, "n1")
	wantNext(t, s, "ltx n1")

	// A dropped one. Then the last name is void, also for a database of the same id.
	src.change(3, func() { delete(src.dbs, 3); src.dropped[3] = true })
	wantNext(t, s, "drop 3")
	src.commit(1, "a3")
	wantNext(t, s, "db 1 renamed.db", "ltx a3")
}

// A database that the primary does not have is only taken from the replica if it was dropped: one that
// could not be opened is the replica's to keep.
func TestStream_DropOnlyWhatWasDropped(t *testing.T) {
	src := newFakeSource("a.db")
	src.dropped[7] = true
	s := testStream(t, testServer(t, src, "", fastLimits()).URL(), map[uint32]litefs.Pos{7: posAt(7, 1), 8: posAt(8, 1)})

	got := map[string]bool{next(t, s): true, next(t, s): true}
	if !got["db 1 a.db"] || !got["drop 7"] {
		t.Fatalf("got %v, want the database's name and the drop of 7", got)
	}
	src.commit(1, "a1")
	if got := next(t, s); got == "drop 8" {
		t.Fatal("8 was not dropped")
	}
}

func TestStream_Snapshot(t *testing.T) {
	for name, pos := range map[string]litefs.Pos{
		"fresh":         {},
		"too old":       posAt(1, 3),
		"ahead":         posAt(1, 99),
		"other history": {TXID: 6, Chksum: 1},
	} {
		t.Run(name, func(t *testing.T) {
			src := newFakeSource("a.db")
			src.dbs[1].first = 5
			src.commit(1, "a6")
			s := testStream(t, testServer(t, src, "", fastLimits()).URL(), map[uint32]litefs.Pos{1: pos})
			wantNext(t, s, "db 1 a.db")
			if !pos.IsZero() {
				// It has files, of which most may be right: it is asked first.
				wantNext(t, s, "off the log 1")
				src.commit(1, "not sent yet")
				if err := s.WriteFrames(&litefs.ResumeStreamFrame{DBID: 1, Ask: 1, Pos: litefs.Pos{TXID: pos.TXID}}); err != nil {
					t.Fatal(err)
				}
				wantNext(t, s, "resumed 1 1")
			}
			wantNext(t, s, "file 1 snapshot of a.db")
			src.commit(1, "a7")
			wantNext(t, s, "ltx a7")
		})
	}
}

// A replica that has fetched the pages that differ goes on from where they lead.
func TestStream_GoesOnAfterPages(t *testing.T) {
	src := newFakeSource("a.db")
	src.dbs[1].first = 5
	src.commit(1, "a6", "a7")
	s := testStream(t, testServer(t, src, "", fastLimits()).URL(), map[uint32]litefs.Pos{1: posAt(1, 3)})
	wantNext(t, s, "db 1 a.db", "off the log 1")
	if err := s.WriteFrames(&litefs.ResumeStreamFrame{DBID: 1, Ask: 1, Pos: posAt(1, 6)}); err != nil {
		t.Fatal(err)
	}
	wantNext(t, s, "resumed 1 1", "ltx a7")
	src.commit(1, "a8")
	wantNext(t, s, "ltx a8")
}

// A snapshot that takes long stops neither the heartbeats nor other databases, and ends with the stream.
func TestStream_SlowSnapshot(t *testing.T) {
	src := newFakeSource("slow.db", "b.db")
	src.dbs[1].first = 5
	started, goOn := make(chan struct{}), make(chan struct{})
	src.dbs[1].snapshot = func(ctx context.Context) error {
		close(started)
		select {
		case <-goOn:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s := testStream(t, testServer(t, src, "", fastLimits()).URL(), nil)
	wantNext(t, s, "db 1 slow.db", "db 2 b.db")
	<-started
	src.commit(2, "b1")
	wantNext(t, s, "ltx b1")
	src.commit(1, "a6") // what comes meanwhile comes with the snapshot
	wantBeat(t, s)
	wantBeat(t, s)
	close(goOn)
	wantNext(t, s, "file 1 snapshot of slow.db")
}

func TestStream_EndDuringSnapshot(t *testing.T) {
	src := newFakeSource("slow.db")
	src.dbs[1].first = 5
	started := make(chan struct{})
	src.dbs[1].snapshot = func(ctx context.Context) error {
		close(started)
		<-ctx.Done()
		return nil // a snapshot that was ready in the last moment is closed too
	}
	s := testStream(t, testServer(t, src, "", fastLimits()).URL(), nil)
	wantNext(t, s, "db 1 slow.db")
	<-started
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	src.waitNoSubs(t)
}

// One database that cannot be read stops no other, and is tried again without being marked.
func TestStream_DatabaseError(t *testing.T) {
	src := newFakeSource("bad.db", "b.db", "nosnap.db")
	src.dbs[1].err = errors.New("disk on fire")
	src.commit(1, "a1")
	src.commit(2, "b1", "b2")
	src.dbs[3].first = 5
	broken := true
	src.dbs[3].snapshot = func(context.Context) error {
		return locked(src, func() error {
			if broken {
				return errors.New("no space")
			}
			return nil
		})
	}
	s := testStream(t, testServer(t, src, "", fastLimits()).URL(), nil)
	wantNext(t, s, "db 1 bad.db", "db 2 b.db", "ltx b1", "db 3 nosnap.db", "db 2 b.db", "ltx b2")
	src.mu.Lock()
	src.dbs[1].err = nil
	src.mu.Unlock()
	wantNext(t, s, "db 1 bad.db", "ltx a1")
	src.mu.Lock()
	broken = false
	src.mu.Unlock()
	wantNext(t, s, "file 3 snapshot of nosnap.db")
}

// A file that turns out shorter than announced is given up, and its database is tried again.
func TestStream_ShortFile(t *testing.T) {
	src := newFakeSource("small.db", "large.db")
	large := strings.Repeat("x", litefs.MaxStreamFileSize+1)
	src.dbs[1].cut, src.dbs[2].cut = 1, 1
	src.commit(1, "s1")
	src.commit(2, large)
	s := testStream(t, testServer(t, src, "", fastLimits()).URL(), nil)
	wantNext(t, s, "db 1 small.db", "db 2 large.db", "given up 2")
	src.mu.Lock()
	src.dbs[1].cut, src.dbs[2].cut = 0, 0
	src.mu.Unlock()
	got := map[string]bool{}
	for !got["ltx s1"] || !got["file 2 "+large] {
		got[next(t, s)] = true
	}
}

// Large files of several databases come in turns, and small ones between them.
func TestStream_LargeFilesTakeTurns(t *testing.T) {
	src := newFakeSource("a.db", "b.db", "c.db")
	big := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	src.commit(1, big)
	src.commit(2, big)
	src.commit(3, "c1")
	s := testStream(t, testServer(t, src, "", fastLimits()).URL(), nil)
	wantNext(t, s, "db 1 a.db", "db 2 b.db", "db 3 c.db", "ltx c1", "file 1 "+big, "file 2 "+big)
}

// A replica that does not acknowledge a database gets a window of it, and all of the others.
func TestStream_Window(t *testing.T) {
	src := newFakeSource("a.db", "b.db")
	src.commit(1, string(make([]byte, 3*litefs.StreamWindow)))
	l := fastLimits()
	l.stall = patience
	s := testStream(t, testServer(t, src, "", l).URL(), nil)
	wantNext(t, s, "db 1 a.db", "db 2 b.db")
	got := s.taken[1] // pieces came between the names
	for f := (litefs.StreamFrame)(nil); got-s.taken[1] < litefs.StreamWindow; {
		var err error
		if f, err = s.NextFrame(); err != nil {
			t.Fatal(err)
		}
		if c, ok := f.(*litefs.ChunkStreamFrame); ok {
			got += int64(c.Len)
		}
	}
	src.commit(2, "b1", "b2")
	wantNext(t, s, "ltx b1", "ltx b2") // a piece of 1 would not be put together
	for deadline := time.Now().Add(patience); ; {
		list := src.replicas.List()
		if len(list) == 1 && list[0].Connected && list[0].NodeID == "replica1" && !list[0].Databases[2].Applied.IsZero() {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the primary knows %+v", list)
		}
		wantBeat(t, s)
	}
	for f := (litefs.StreamFrame)(nil); got < 3*litefs.StreamWindow; {
		if err := s.take(1, int(got-s.taken[1])); err != nil {
			t.Fatal(err)
		}
		var err error
		if f, err = s.NextFrame(); err != nil {
			t.Fatal(err)
		}
		if c, ok := f.(*litefs.ChunkStreamFrame); ok {
			got += int64(c.Len)
		}
	}
}

// A replica may ask for a database anew, also in the middle of a file.
func TestStream_Resume(t *testing.T) {
	src := newFakeSource("a.db")
	big := strings.Repeat("x", 2*litefs.StreamWindow)
	src.commit(1, "a1", big, "a3")
	s := testStream(t, testServer(t, src, "", fastLimits()).URL(), nil)
	wantNext(t, s, "db 1 a.db", "ltx a1")
	got := 0
	for got == 0 {
		f, err := s.NextFrame()
		if err != nil {
			t.Fatal(err)
		}
		if c, ok := f.(*litefs.ChunkStreamFrame); ok {
			got += int(c.Len)
		}
	}
	if err := s.WriteFrames(&litefs.ResumeStreamFrame{DBID: 1, Ask: 7, Pos: posAt(1, 2)}); err != nil {
		t.Fatal(err)
	}
	for {
		f, err := s.NextFrame()
		if err != nil {
			t.Fatal(err)
		}
		if r, ok := f.(*litefs.ResumedStreamFrame); ok {
			if r.DBID != 1 || r.Ask != 7 {
				t.Fatalf("%+v", r)
			}
			break
		}
		if c, ok := f.(*litefs.ChunkStreamFrame); ok {
			got += int(c.Len)
		}
	}
	// What is thrown away is acknowledged too.
	if err := s.take(1, got); err != nil {
		t.Fatal(err)
	}
	wantNext(t, s, "ltx a3")
	if err := s.WriteFrames(&litefs.ResumeStreamFrame{DBID: 1, Ask: 8, Pos: litefs.Pos{TXID: 2}}); err != nil {
		t.Fatal(err)
	}
	wantNext(t, s, "resumed 1 8", "file 1 snapshot of a.db")
}

// What is not an acknowledgement, or cannot be true, ends the stream of that replica.
func TestStream_BadAcks(t *testing.T) {
	for name, f := range map[string]litefs.StreamFrame{
		"of what was not sent": &litefs.AckStreamFrame{DBID: 1, Taken: 1 << 40},
		"a primary's frame":    &litefs.DropDBStreamFrame{DBID: 1},
	} {
		t.Run(name, func(t *testing.T) {
			src := newFakeSource("a.db")
			srv := testServer(t, src, "", fastLimits())
			s := testStream(t, srv.URL(), nil)
			wantNext(t, s, "db 1 a.db")
			if err := s.WriteFrames(f); err != nil {
				t.Fatal(err)
			}
			src.waitNoSubs(t)
			wantNext(t, testStream(t, srv.URL(), nil), "db 1 a.db")
		})
	}
}

// A replica that falls silent loses its stream.
func TestStream_SilentReplica(t *testing.T) {
	src := newFakeSource("a.db")
	l := fastLimits()
	l.stall = 50 * time.Millisecond
	s := testStream(t, testServer(t, src, "", l).URL(), nil)
	wantNext(t, s, "db 1 a.db")
	src.waitNoSubs(t)
}

func TestStream_Demoted(t *testing.T) {
	src := newFakeSource("a.db")
	s := testStream(t, testServer(t, src, "", fastLimits()).URL(), nil)
	wantNext(t, s, "db 1 a.db")
	src.mu.Lock()
	src.primary = false
	src.mu.Unlock()
	if got, err := tryNext(s); err != io.EOF {
		t.Fatalf("%q, %v, want EOF", got, err)
	}
}

func TestStream_ServerCloses(t *testing.T) {
	src := newFakeSource("a.db")
	srv := testServer(t, src, "", fastLimits())
	s := testStream(t, srv.URL(), nil)
	wantNext(t, s, "db 1 a.db")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := srv.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if got, err := tryNext(s); err != io.EOF {
		t.Fatalf("%q, %v, want EOF", got, err)
	}
	if _, err := testClient("").Stream(t.Context(), srv.URL(), nil); err == nil {
		t.Fatal("a closed server accepts streams")
	}
}

// A replica that takes nothing in loses its stream, and nobody else theirs.
func TestStream_SlowReader(t *testing.T) {
	src := newFakeSource("a.db")
	src.commit(1, string(make([]byte, 32<<20))) // more than all buffers between the two hold
	l := fastLimits()
	l.stall = 100 * time.Millisecond
	srv := testServer(t, src, "", l)
	s := testStream(t, srv.URL(), nil)
	src.waitNoSubs(t)

	live := testStream(t, srv.URL(), map[uint32]litefs.Pos{1: posAt(1, 1)})
	wantNext(t, live, "db 1 a.db")

	wantNext(t, s, "db 1 a.db")
	if _, err := tryNext(s); err == nil {
		t.Fatal("the stream went on")
	}
}

func TestQueue(t *testing.T) {
	var q queue
	for _, id := range []uint32{3, 1, 3, 2, 1} {
		q.push(id)
	}
	var got bytes.Buffer
	for q.len() > 0 {
		id := q.pop()
		got.WriteByte(byte('0' + id))
		if id == 1 && got.Len() < 4 {
			q.push(1)
		}
	}
	if got.String() != "3121" {
		t.Fatalf("popped %s, want 3121", got.String())
	}
}

// A replica gets the databases that it wants, and is told to drop those that it does not want any more.
func TestStream_Filter(t *testing.T) {
	src := newFakeSource("a.db", "logs/b.db", "c.db")
	c := testClient("")
	if err := c.Follow([]string{"a*", "logs/?.db"}); err != nil {
		t.Fatal(err)
	}
	srv := testServer(t, src, "", fastLimits())
	s, err := c.Stream(t.Context(), srv.URL(), map[uint32]litefs.Pos{3: posAt(3, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	wantNext(t, s, "drop 3", "db 1 a.db", "db 2 logs/b.db")
	src.commit(3, "c1")
	src.commit(2, "b1")
	wantNext(t, s, "ltx b1")
	src.change(1, func() { src.dbs[1].name = "x.db" })
	wantNext(t, s, "drop 1")
	src.change(3, func() { src.dbs[3].name = "ac.db" })
	wantNext(t, s, "db 3 ac.db", "ltx c1")

	for _, bad := range [][]string{{"["}, {""}, make([]string, maxPatterns+1)} {
		if err := c.Follow(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
		if _, err := c.Stream(t.Context(), srv.URL(), nil); err == nil || !strings.Contains(err.Error(), "pattern") {
			t.Errorf("%.100q: %v, want a refusal", bad, err)
		}
	}
}
