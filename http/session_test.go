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
			wantNext(t, s, "db 1 a.db", "ltx snapshot of a.db")
			src.commit(1, "a7")
			wantNext(t, s, "ltx a7")
		})
	}
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
	wantNext(t, s, "db 1 slow.db", "ltx snapshot of slow.db")
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
	wantNext(t, s, "db 3 nosnap.db", "ltx snapshot of nosnap.db")
}

// A file that turns out shorter than announced cannot be mended within the stream.
func TestStream_ShortFile(t *testing.T) {
	src := newFakeSource("a.db")
	src.dbs[1].cut = 1
	src.commit(1, "a1")
	s := testStream(t, testServer(t, src, "", fastLimits()).URL(), nil)
	wantNext(t, s, "db 1 a.db")
	if _, err := tryNext(s); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("%v, want an unexpected EOF", err)
	}
	src.waitNoSubs(t)
}

func TestStream_LargeFileSkipped(t *testing.T) {
	src := newFakeSource("a.db")
	big := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB: many writes and reads
	src.commit(1, big, "small", big)
	s := testStream(t, testServer(t, src, "", fastLimits()).URL(), nil)
	wantNext(t, s, "db 1 a.db")
	for { // skip the first file whole
		f, err := s.NextFrame()
		if err != nil {
			t.Fatal(err)
		}
		if ltx, ok := f.(*litefs.LTXStreamFrame); ok && ltx.Size == 5 {
			break
		}
	}
	if b, err := io.ReadAll(s); err != nil || string(b) != "small" {
		t.Fatalf("read %q, %v", b, err)
	}
	if got := next(t, s); got != "ltx "+big {
		t.Fatalf("read %d bytes, want the third file", len(got))
	}
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
