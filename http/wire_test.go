package http

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"strings"
	"testing"

	"github.com/litefs/litefs"
)

func TestPosMap_RoundTrip(t *testing.T) {
	for _, posMap := range []map[uint32]litefs.Pos{
		{},
		{1: {TXID: 2, Chksum: 3}},
		{0: {}, 0xffffffff: {TXID: 1<<64 - 1, Chksum: 1 << 63}},
	} {
		var buf bytes.Buffer
		if err := WritePosMap(&buf, posMap); err != nil {
			t.Fatal(err)
		}
		wire := buf.Bytes()
		got, err := ReadPosMap(bytes.NewReader(wire))
		if err != nil || !maps.Equal(got, posMap) {
			t.Fatalf("read %v, %v, want %v", got, err, posMap)
		}
		for i := range wire {
			if _, err := ReadPosMap(bytes.NewReader(wire[:i])); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%v cut to %d bytes: %v, want an unexpected EOF", posMap, i, err)
			}
		}
		if _, err := ReadPosMap(bytes.NewReader(append(wire, 0))); err == nil || !strings.Contains(err.Error(), "bytes after the last") {
			t.Fatalf("a byte too many: %v", err)
		}
	}
}

func TestReadPosMap_Invalid(t *testing.T) {
	one := make([]byte, posSize)
	twice := append(append([]byte{0, 0, 0, 2}, one...), one...)
	if _, err := ReadPosMap(bytes.NewReader(twice)); err == nil || !strings.Contains(err.Error(), "comes twice") {
		t.Errorf("a database twice: %v", err)
	}
	many := binary.BigEndian.AppendUint32(nil, maxPositions+1)
	if _, err := ReadPosMap(bytes.NewReader(many)); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("too many databases: %v", err)
	}
	posMap := make(map[uint32]litefs.Pos)
	for id := range uint32(maxPositions + 1) {
		posMap[id] = litefs.Pos{}
	}
	if err := WritePosMap(io.Discard, posMap); err == nil {
		t.Error("too many databases are written")
	}
}

func FuzzReadPosMap(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0})
	f.Add(append([]byte{0, 0, 0, 1}, make([]byte, posSize)...))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		posMap, err := ReadPosMap(bytes.NewReader(data))
		if err != nil {
			return
		}
		var buf bytes.Buffer
		if err := WritePosMap(&buf, posMap); err != nil {
			t.Fatal(err)
		}
		again, err := ReadPosMap(&buf)
		if err != nil || !maps.Equal(again, posMap) {
			t.Fatalf("read %v, written and read again %v, %v", posMap, again, err)
		}
	})
}

// A node that names databases without an end is not remembered without an end.
func TestFrameReader_Names(t *testing.T) {
	var b bytes.Buffer
	for id := range uint32(maxPositions + 1) {
		b.Write(frameBytes(t, &litefs.DBStreamFrame{DBID: id, Name: "n"}))
	}
	fr := newFrameReader(&b)
	for n := 0; ; n++ {
		_, err := fr.NextFrame()
		if err == nil {
			continue
		}
		if n != maxPositions || !strings.Contains(err.Error(), "names more than") {
			t.Errorf("after %d names: %v", n, err)
		}
		return
	}
}

// Whatever a node sends: no panic, only valid names, no file without a database, and an end.
func FuzzFrameReader(f *testing.F) {
	var buf bytes.Buffer
	for _, frame := range []litefs.StreamFrame{
		&litefs.HeartbeatStreamFrame{UnixMilli: 1, Epoch: 2},
		&litefs.DBStreamFrame{DBID: 1, Name: "app.db"},
		&litefs.LTXStreamFrame{Size: 3},
	} {
		if err := litefs.WriteStreamFrame(&buf, frame); err != nil {
			f.Fatal(err)
		}
	}
	buf.WriteString("abc")
	f.Add(buf.Bytes())
	f.Add([]byte{0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		fr := newFrameReader(bytes.NewReader(data))
		named := false
		for {
			frame, err := fr.NextFrame()
			if err != nil {
				return
			}
			switch frame := frame.(type) {
			case *litefs.DBStreamFrame:
				if err := litefs.ValidateName(frame.Name); err != nil {
					t.Fatal(err)
				}
				named = true
			case *litefs.LTXStreamFrame:
				if !named {
					t.Fatal("a file without a database")
				}
				n, err := io.Copy(io.Discard, fr)
				if err == nil && n != frame.Size {
					t.Fatalf("read %d bytes without an error, want %d", n, frame.Size)
				}
			}
		}
	})
}
