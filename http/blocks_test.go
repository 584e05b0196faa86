package http

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"testing"

	"github.com/litefs/litefs"
)

// sent returns what a blockWriter makes of writes.
func sent(tb testing.TB, writes ...[]byte) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := newBlockWriter(&buf)
	for _, b := range writes {
		if n, err := w.Write(b); n != len(b) || err != nil {
			tb.Fatalf("%d of %d bytes, %v", n, len(b), err)
		}
	}
	return buf.Bytes()
}

func TestBlocks_RoundTrip(t *testing.T) {
	large := make([]byte, 3*maxBlock+17)
	for i := range large {
		large[i] = byte(i * 7 / 3)
	}
	wire := sent(t, []byte("a"), nil, large, []byte("b"))
	got, err := io.ReadAll(newBlockReader(bytes.NewReader(wire)))
	if want := append(append([]byte("a"), large...), 'b'); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes (%v), want %d", len(got), err, len(want))
	}
}

// Whatever bit is another, whatever is missing, doubled or in another order: what is read is a beginning of
// what was sent, in whole blocks, and then an error that stays.
func TestBlocks_Faults(t *testing.T) {
	one, two, three := []byte("the first"), []byte("the second!"), []byte("the third one")
	wire := sent(t, one, two, three)
	a, b := blockHeader+len(one), 2*blockHeader+len(one)+len(two)
	prefixes := []string{"", string(one), string(one) + string(two)}

	faults := map[string][]byte{
		"doubled":    append(wire[:b:b], wire[a:]...),
		"lost":       append(wire[:a:a], wire[b:]...),
		"swapped":    append(append(wire[a:b:b], wire[:a]...), wire[b:]...),
		"again":      append(wire[:len(wire):len(wire)], wire...),
		"short size": {0, 0, 0, 0, 0, 0, 0, 0},
		"huge size":  {0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0},
	}
	for i := range 8 * len(wire) {
		c := bytes.Clone(wire)
		c[i/8] ^= 1 << (i % 8)
		faults["bit "+string(rune('0'+i%8))+" of "+string(rune(i/8))] = c
	}
	for name, c := range faults {
		r := newBlockReader(bytes.NewReader(c))
		got, err := io.ReadAll(r)
		ok := name == "again" && string(got) == prefixes[2]+string(three)
		for _, p := range prefixes {
			ok = ok || string(got) == p
		}
		if !ok || err == nil {
			t.Errorf("%q: read %q, %v", name, got, err)
		}
		if _, again := r.Read(make([]byte, 1)); !errors.Is(again, err) {
			t.Errorf("%q: %v and then %v", name, err, again)
		}
	}
	for n := range wire {
		got, err := io.ReadAll(newBlockReader(bytes.NewReader(wire[:n])))
		whole := n == 0 || n == a || n == b
		if whole != (err == nil) || !bytes.HasPrefix([]byte(prefixes[2]), got) {
			t.Errorf("cut to %d bytes: read %q, %v", n, got, err)
		}
	}
}

func TestHandshakeSum(t *testing.T) {
	h := http.Header{}
	for k, v := range goodHeaders() {
		h.Set(k, v)
	}
	sum := handshakeSum(h)
	for _, name := range []string{headerProtocol, headerLTX, headerClusterID, headerID, headerEpoch, headerDatabases} {
		c := h.Clone()
		c.Add(name, "x")
		if handshakeSum(c) == sum {
			t.Errorf("%s is not in the checksum", name)
		}
	}
}

// A bit that is another on the way ends the stream, and names no database.
func TestClient_ChangedFrame(t *testing.T) {
	url := faultyServer(t, func(w http.ResponseWriter, r *http.Request) {
		welcome(w)
		b := sent(t, frameBytes(t, &litefs.DBStreamFrame{DBID: 1, Name: "a.db"}))
		b[len(b)-4] ^= 1
		if _, err := w.Write(b); err != nil {
			t.Error(err)
		}
	})
	if got, err := tryNext(testStream(t, url, nil)); !errors.Is(err, errCorrupt) {
		t.Fatalf("%q, %v, want errCorrupt", got, err)
	}
}

func FuzzBlockReader(f *testing.F) {
	f.Add(sent(f, []byte("abc"), []byte("d")))
	f.Add([]byte{0xff, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := io.ReadAll(newBlockReader(bytes.NewReader(data)))
		if err != nil {
			return
		}
		again, err := io.ReadAll(newBlockReader(bytes.NewReader(sent(t, got))))
		if err != nil || !bytes.Equal(again, got) {
			t.Fatalf("%q was read, and again %q (%v)", got, again, err)
		}
	})
}

// writes counts and keeps what is handed on.
type writes struct {
	sizes []int
	all   bytes.Buffer
	fail  error
}

func (w *writes) Write(p []byte) (int, error) {
	if w.fail != nil {
		return 0, w.fail
	}
	w.sizes = append(w.sizes, len(p))
	return w.all.Write(p)
}

// The pages of a base are 128 KiB after a frame of 20 bytes. They fill their blocks, and go out in as few
// writes as there may be.
func TestBlockBuffer_Writes(t *testing.T) {
	var out writes
	w := &blockBuffer{w: &out}
	var want bytes.Buffer
	for i := range 16 {
		for _, n := range []int{4, 16, litefs.MaxStreamChunkSize} {
			b := bytes.Repeat([]byte{byte(i + n)}, n)
			want.Write(b)
			if m, err := w.Write(b); m != n || err != nil {
				t.Fatalf("%d of %d bytes, %v", m, n, err)
			}
		}
	}
	for range 2 { // the second has nothing to send
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	total := 16 * (20 + litefs.MaxStreamChunkSize)
	blocks := (total + maxBlock - 1) / maxBlock
	if w.n != uint64(blocks) {
		t.Errorf("%d blocks, want %d", w.n, blocks)
	}
	if got := (blocks + 3) / 4; len(out.sizes) != got {
		t.Errorf("%d writes, want %d: %v", len(out.sizes), got, out.sizes)
	}
	for _, n := range out.sizes[:len(out.sizes)-1] {
		if n != maxWrite {
			t.Errorf("a write of %d bytes, want %d", n, maxWrite)
		}
	}

	in := &reads{r: &out.all}
	r := newBlockReaderSize(in, maxWrite)
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, want.Bytes()) {
		t.Fatalf("read %d bytes (%v), want %d", len(got), err, want.Len())
	}
	// Full buffers but for the part of a block that is kept, and the end.
	if most := len(out.sizes)*4/3 + 2; in.n > most {
		t.Errorf("%d reads, want at most %d", in.n, most)
	}
}

// reads counts reads.
type reads struct {
	r io.Reader
	n int
}

func (r *reads) Read(p []byte) (int, error) {
	r.n++
	return r.r.Read(p)
}

func TestBlockBuffer_Error(t *testing.T) {
	full := errors.New("full")
	out := &writes{}
	w := &blockBuffer{w: out}
	if _, err := w.Write([]byte("a")); err != nil {
		t.Fatal(err)
	}
	out.fail = full
	if err := w.Flush(); !errors.Is(err, full) {
		t.Fatalf("flush: %v", err)
	}
	out.fail = nil
	if n, err := w.Write([]byte("b")); n != 0 || !errors.Is(err, full) {
		t.Errorf("a write after the error: %d, %v", n, err)
	}
	if err := w.Flush(); !errors.Is(err, full) || len(out.sizes) > 0 {
		t.Errorf("a flush after the error: %v, %d writes", err, len(out.sizes))
	}
}

// Whatever pieces are written, and flushed between, are read as they were.
func FuzzBlockBuffer(f *testing.F) {
	f.Add([]byte{1, 0, 2, 255, 0})
	f.Add([]byte{255, 255, 0, 0, 254, 7})
	f.Fuzz(func(t *testing.T, script []byte) {
		var out, want bytes.Buffer
		w := &blockBuffer{w: &out}
		for i, c := range script[:min(len(script), 64)] {
			if c == 0 {
				if err := w.Flush(); err != nil {
					t.Fatal(err)
				}
				continue
			}
			b := bytes.Repeat([]byte{byte(i)}, int(c)*int(c)*5)
			want.Write(b)
			if n, err := w.Write(b); n != len(b) || err != nil {
				t.Fatalf("%d of %d bytes, %v", n, len(b), err)
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(newBlockReader(&out))
		if err != nil || !bytes.Equal(got, want.Bytes()) {
			t.Fatalf("read %d bytes (%v), want %d", len(got), err, want.Len())
		}
	})
}
