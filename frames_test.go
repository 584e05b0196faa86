package litefs_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/litefs/litefs"
)

// streamFrames pairs each kind of frame with its bytes on the wire, type included.
var streamFrames = []struct {
	frame litefs.StreamFrame
	wire  string
}{
	{&litefs.DBStreamFrame{DBID: 1000, Name: "test.db"}, "00000001 000003e8 00000007 746573742e6462"},
	{&litefs.DBStreamFrame{}, "00000001 00000000 00000000"},
	{&litefs.LTXStreamFrame{Size: 1000}, "00000002 00000000000003e8"},
	{&litefs.HeartbeatStreamFrame{UnixMilli: -2, Epoch: 5, Behind: 6}, "00000003 fffffffffffffffe 0000000000000005 00000006"},
	{&litefs.DropDBStreamFrame{DBID: 0xdeadbeef}, "00000004 deadbeef"},
	{&litefs.ChunkStreamFrame{DBID: 1, Size: 1 << 32, Offset: 256, Len: 1000}, "00000005 00000001 0000000100000000 0000000000000100 000003e8"},
	{&litefs.ChunkStreamFrame{DBID: 1, Size: 5, Offset: 5}, "00000005 00000001 0000000000000005 0000000000000005 00000000"},
	{&litefs.ResumedStreamFrame{DBID: 1, Ask: 2}, "00000006 00000001 00000002"},
	{&litefs.DecidedStreamFrame{DBID: 0xdeadbeef, TXID: 9}, "0000000f deadbeef 0000000000000009"},
	{&litefs.LevelStreamFrame{DBID: 1, Epoch: 2, Level: "rule"}, "0000000a 00000001 0000000000000002 00000004 72756c65"},
	{&litefs.OffLogStreamFrame{DBID: 0xdeadbeef}, "00000009 deadbeef"},
	{&litefs.NodesStreamFrame{}, "00000007 00000004 6e756c6c"},
	{&litefs.HandoffStreamFrame{NodeID: "abc"}, "00000008 00000003 616263"},
	{&litefs.AckStreamFrame{
		DBID: 1, Taken: 2, Received: litefs.Pos{TXID: 3, Chksum: 4}, Durable: litefs.Pos{TXID: 5, Chksum: 6},
		Applied: litefs.Pos{TXID: 7, Chksum: 8}, Prepared: litefs.Pos{TXID: 9}, Decided: litefs.Pos{Chksum: 10},
	}, "00000010 00000001 0000000000000002 0000000000000003 0000000000000004 0000000000000005 0000000000000006" +
		"0000000000000007 0000000000000008 0000000000000009 0000000000000000 0000000000000000 000000000000000a"},
	{&litefs.ResumeStreamFrame{DBID: 1, Ask: 2, Pos: litefs.Pos{TXID: 3, Chksum: 4}}, "00000011 00000001 00000002 0000000000000003 0000000000000004"},
	{&litefs.BaseStreamFrame{DBID: 1, Pos: litefs.Pos{TXID: 2, Chksum: 3}, Epoch: 4, UnixMilli: 5, PageSize: 4096, Count: 6, First: 7},
		"0000000c 00000001 0000000000000002 0000000000000003 0000000000000004 0000000000000005 00001000 00000006 00000007"},
	{&litefs.PagesStreamFrame{DBID: 1, Pgno: 2, Size: 8192, Len: 100}, "0000000d 00000001 00000002 00002000 00000064"},
	{&litefs.BaseEndStreamFrame{DBID: 1, TXID: 2}, "0000000e 00000001 0000000000000002"},
	{&litefs.ResumeBaseStreamFrame{DBID: 1, Ask: 2, Pos: litefs.Pos{TXID: 3, Chksum: 4}, Next: 5}, "00000018 00000001 00000002 0000000000000003 0000000000000004 00000005"},
}

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func TestStreamFrame_RoundTrip(t *testing.T) {
	for _, tt := range streamFrames {
		wire := unhex(t, tt.wire)
		var buf bytes.Buffer
		if err := litefs.WriteStreamFrame(&buf, tt.frame); err != nil {
			t.Fatalf("%#v: %v", tt.frame, err)
		}
		if !bytes.Equal(buf.Bytes(), wire) {
			t.Fatalf("%#v: wrote %x, want %x", tt.frame, buf.Bytes(), wire)
		}

		buf.WriteString("next")
		got, err := litefs.ReadStreamFrame(&buf)
		if err != nil {
			t.Fatalf("%#v: %v", tt.frame, err)
		}
		if !reflect.DeepEqual(got, tt.frame) {
			t.Fatalf("read %#v, want %#v", got, tt.frame)
		}
		if buf.String() != "next" {
			t.Fatalf("%#v: read beyond the frame, %q left", tt.frame, buf.String())
		}

		var body bytes.Buffer
		if n, err := tt.frame.WriteTo(&body); err != nil || n != int64(len(wire)-4) {
			t.Fatalf("%#v: WriteTo=%d, %v", tt.frame, n, err)
		}
		if n, err := got.ReadFrom(&body); err != nil || n != int64(len(wire)-4) {
			t.Fatalf("%#v: ReadFrom=%d, %v", tt.frame, n, err)
		}
	}
}

func TestReadStreamFrame_Truncated(t *testing.T) {
	for _, tt := range streamFrames {
		wire := unhex(t, tt.wire)
		for i := range wire {
			want := io.ErrUnexpectedEOF
			if i == 0 {
				want = io.EOF
			}
			if _, err := litefs.ReadStreamFrame(bytes.NewReader(wire[:i])); err != want {
				t.Errorf("%#v cut to %d bytes: %v, want %v", tt.frame, i, err, want)
			}
		}
	}
}

func TestReadStreamFrame_Invalid(t *testing.T) {
	for wire, want := range map[string]string{
		"01020304": "invalid stream frame type: 0x1020304",
		"00000000": "invalid stream frame type: 0x00",
		"0000000b": "invalid stream frame type: 0x0b",
		"0000000a 00000001 0000000000000002 00000041":                  "invalid level stream frame: 65 bytes, at most 64 are allowed",
		"00000005 00000001 0000000000000005 0000000000000004 00000002": "invalid chunk stream frame: 2 bytes at 4 of a file of 5, at most 131072 at once are allowed",
		"00000005 00000001 0000000000000005 ffffffffffffffff 00000001": "invalid chunk stream frame: 1 bytes at -1 of a file of 5, at most 131072 at once are allowed",
		"00000005 00000001 0000000000000005 7fffffffffffffff 00000001": "invalid chunk stream frame: 1 bytes at 9223372036854775807 of a file of 5, at most 131072 at once are allowed",
		"00000005 00000001 0000000000100000 0000000000000000 00020001": "invalid chunk stream frame: 131073 bytes at 0 of a file of 1048576, at most 131072 at once are allowed",
		"00000001 00000001 00001001":                                   "invalid DB stream frame: name of 4097 bytes, at most 4096 are allowed",
		"00000001 00000001 ffffffff":                                   "invalid DB stream frame: name of 4294967295 bytes, at most 4096 are allowed",
		"0000000d 00000001 00000000 00000001 00000001":                 "invalid pages stream frame: 1 bytes as 1 from page 0 on, at most 131072 are allowed",
		"0000000d 00000001 00000001 00020001 00000001":                 "invalid pages stream frame: 131073 bytes as 1 from page 1 on, at most 131072 are allowed",
		"0000000d 00000001 00000001 00000001 00000002":                 "invalid pages stream frame: 1 bytes as 2 from page 1 on, at most 131072 are allowed",
		"00000002 0000000000000000":                                    "invalid LTX stream frame: size of 0 bytes, want 1 to 281474976710656",
		"00000002 ffffffffffffffff":                                    "invalid LTX stream frame: size of -1 bytes, want 1 to 281474976710656",
		"00000002 0001000000000001":                                    "invalid LTX stream frame: size of 281474976710657 bytes, want 1 to 281474976710656",
	} {
		_, err := litefs.ReadStreamFrame(bytes.NewReader(unhex(t, wire)))
		if err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", wire, err, want)
		}
	}
}

// What would be refused by the reader is not written.
func TestWriteStreamFrame_Invalid(t *testing.T) {
	for _, f := range []litefs.StreamFrame{
		&litefs.DBStreamFrame{Name: strings.Repeat("x", litefs.MaxStreamFrameNameLen+1)},
		&litefs.LTXStreamFrame{},
		&litefs.LTXStreamFrame{Size: -1},
		&litefs.ChunkStreamFrame{Size: 1, Offset: 1, Len: 1},
		&litefs.AckStreamFrame{Taken: -1},
		&litefs.BaseStreamFrame{DBID: 1, Pos: litefs.Pos{TXID: 2, Chksum: 3}, PageSize: 4095, Count: 1, First: 1},
		&litefs.BaseStreamFrame{DBID: 1, Pos: litefs.Pos{TXID: 1, Chksum: 3}, PageSize: 4096, Count: 1, First: 1},
		&litefs.PagesStreamFrame{Pgno: 1, Size: 5},
	} {
		if err := litefs.WriteStreamFrame(io.Discard, f); err == nil {
			t.Errorf("%T: want an error", f)
		}
	}
}

// limitedWriter fails once n bytes were written.
type limitedWriter struct{ n int }

var errFull = errors.New("full")

func (w *limitedWriter) Write(p []byte) (int, error) {
	if len(p) > w.n {
		n := w.n
		w.n = 0
		return n, errFull
	}
	w.n -= len(p)
	return len(p), nil
}

func TestWriteStreamFrame_WriteError(t *testing.T) {
	for _, tt := range streamFrames {
		for i := range unhex(t, tt.wire) {
			if err := litefs.WriteStreamFrame(&limitedWriter{n: i}, tt.frame); !errors.Is(err, errFull) {
				t.Errorf("%#v, writer fails after %d bytes: %v", tt.frame, i, err)
			}
		}
	}
}

func FuzzReadStreamFrame(f *testing.F) {
	for _, tt := range streamFrames {
		f.Add(unhex(f, tt.wire))
	}
	f.Add(unhex(f, "00000001 00000001 ffffffff"))
	f.Add(unhex(f, "00000002 ffffffffffffffff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		frame, err := litefs.ReadStreamFrame(r)
		if err != nil {
			return
		}
		var buf bytes.Buffer
		if err := litefs.WriteStreamFrame(&buf, frame); err != nil {
			t.Fatalf("cannot write what was read: %#v: %v", frame, err)
		}
		if consumed := data[:len(data)-r.Len()]; !bytes.Equal(buf.Bytes(), consumed) {
			t.Fatalf("read %x, wrote %x", consumed, buf.Bytes())
		}
	})
}
