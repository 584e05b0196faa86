package walwrite

import (
	"errors"
	"strings"
	"testing"

	"github.com/litefs/litefs/sqlitefile"
)

const ps = 512

func walHeader() []byte {
	b := make([]byte, sqlitefile.WALHeaderSize)
	sqlitefile.WALHeader{Version: 3007000, PageSize: ps, Salt1: 1, Salt2: 2}.Encode(b)
	return b
}

func header(pgno, commit uint32) []byte {
	b := make([]byte, sqlitefile.FrameHeaderSize)
	sqlitefile.Frame{Pgno: pgno, Commit: commit, Salt1: 1, Salt2: 2}.Encode(b)
	return b
}

// script writes what its words say and returns the verdicts, one word each: hN header of frame N, HN that of a commit
// frame, pN its page, qN and rN the two parts of a page, aN bN AN BN the two parts of a header, w the log's header.
func script(t *testing.T, l *Log, words string) string {
	t.Helper()
	var out []string
	page := make([]byte, ps)
	for _, w := range strings.Fields(words) {
		if w == "w" {
			v, err := l.Write(0, walHeader())
			if err != nil || v.Action != Restart {
				t.Fatalf("%+v, %v", v, err)
			}
			continue
		}
		n := uint32(w[1] - '0')
		off, data := sqlitefile.FrameOffset(n, ps), page
		switch w[0] {
		case 'h':
			data = header(n, 0)
		case 'H':
			data = header(n, 9)
		case 'a':
			data = header(n, 0)[:6]
		case 'A':
			data = header(n, 9)[:6]
		case 'b':
			off, data = off+6, header(n, 0)[6:]
		case 'B':
			off, data = off+6, header(n, 9)[6:]
		case 'p':
			off += 24
		case 'q':
			off, data = off+24, page[:100]
		case 'r':
			off, data = off+124, page[100:]
		}
		v, err := l.Write(off, data)
		switch {
		case errors.Is(err, ErrUnknown):
			out = append(out, "unknown")
		case err != nil:
			t.Fatal(err)
		case v.Frame != n || v.Offset != sqlitefile.FrameOffset(n, ps):
			t.Fatalf("%s: %+v", w, v)
		case v.Again:
			out = append(out, "again")
		case v.Action == Commit:
			if len(v.Bytes) != 24+ps || string(v.Bytes[:24]) != string(header(n, 9)) {
				t.Fatalf("commit frame %x", v.Bytes)
			}
			out = append(out, "commit"+string(rune('0'+v.Lowest)))
			l.Mark()
		default:
			out = append(out, [...]string{"pass", "keep", "flush"}[v.Action])
		}
	}
	return strings.Join(out, " ")
}

func TestWrites(t *testing.T) {
	for _, c := range []struct{ name, words, want string }{
		{"one frame", "w H1 p1", "keep commit1"},
		{"three frames", "w h1 p1 h2 p2 H3 p3", "pass pass pass pass keep commit1"},
		{"the next transaction", "w H1 p1 h2 p2 H3 p3", "keep commit1 pass pass keep commit2"},
		{"died before it published", "w h1 p1 H2 p2 h1 p1 H2 p2", "pass pass keep commit1 pass pass keep commit1"},
		{"cut off between header and page", "w h1 p1 H2 h1 p1 H2 p2", "pass pass keep pass pass keep commit1"},
		{"spill: a page over an earlier one", "w h1 p1 h2 p2 p1 H3 p3", "pass pass pass pass pass keep commit1"},
		{"checksums written again", "w h1 p1 h2 p2 p1 H3 p3 h1 h2 H3 H4 p4", "pass pass pass pass pass keep commit1 pass pass again keep commit4"},
		{"padding", "w h1 p1 H2 p2 H3 p3 H4 q4 r4", "pass pass keep commit1 keep commit3 keep keep commit4"},
		{"in pieces", "w a1 b1 q1 r1 A2 B2 q2 r2", "keep flush pass pass keep keep keep commit1"},
		{"single frame, then single frame in its place", "w H1 p1 H1 p1", "keep commit1 keep commit1"},
		{"cut off at the header, then a single frame there", "w H1 H1 p1", "keep keep commit1"},
		{"restart", "w h1 p1 H2 p2 w H1 p1", "pass pass keep commit1 keep commit1"},
	} {
		if got := script(t, New(0), c.words); got != c.want {
			t.Errorf("%s: %s\ngot  %s\nwant %s", c.name, c.words, got, c.want)
		}
	}
}

// Whoever has not seen a transaction begin lets nothing of it pass that has no header of its own.
func TestBeginningNotSeen(t *testing.T) {
	for words, want := range map[string]string{
		"p3":          "unknown",
		"p3 h4 p4":    "unknown pass pass",
		"r3":          "unknown",
		"b3 h3 p3 p2": "unknown pass pass pass",
	} {
		if got := script(t, New(ps), words); got != want {
			t.Errorf("%s: got %s, want %s", words, got, want)
		}
	}
	if _, err := New(0).Write(32, header(1, 0)); !errors.Is(err, ErrUnknown) {
		t.Errorf("no header of the log: %v", err)
	}
}

func TestForeign(t *testing.T) {
	for _, w := range []struct {
		off  int64
		size int
	}{{0, 10}, {0, 4096}, {32, 25}, {32, 24 + ps}, {31, 1}, {32 + 24, ps + 1}, {40, 0}, {32 + 20, 10}} {
		if _, err := New(ps).Write(w.off, make([]byte, w.size)); !errors.Is(err, ErrForeign) {
			t.Errorf("%d bytes at %d: %v", w.size, w.off, err)
		}
	}
}
