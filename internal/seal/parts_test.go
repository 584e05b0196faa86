package seal

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

// written seals a content with a Writer, in writes of step bytes.
func written(t *testing.T, d DataKey, plain []byte, step int) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, d, "n")
	for rest := plain; err == nil && len(rest) > 0; {
		n := min(step, len(rest))
		_, err = w.Write(rest[:n])
		rest = rest[n:]
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// partsOf reads a sealed content with a ReaderAt that has seen its first ahead bytes.
func partsOf(b []byte, ahead int, find func([16]byte) (DataKey, error)) ([]byte, error) {
	size := PlainSize(int64(len(b)))
	r, err := NewReaderAt(bytes.NewReader(b), b[:min(ahead, len(b))], size, "n", find)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(iotest.HalfReader(io.NewSectionReader(r, 0, size)))
}

// TestParts: what is sealed at once and what is sealed while it is written has the one form that Reader opens, and any part of it
// can be read by itself.
func TestParts(t *testing.T) {
	d, find := dataKey(t)
	for _, size := range sizes {
		plain := content(size)
		whole, err := Append([]byte("before"), d, "n", plain)
		if err != nil {
			t.Fatal(err)
		}
		for what, b := range map[string][]byte{
			"Append": whole[len("before"):], "Writer": written(t, d, plain, 1<<20), "Writer in parts": written(t, d, plain, 1000),
		} {
			if got, err := opened(b, "n", find); err != nil || !bytes.Equal(got, plain) {
				t.Fatalf("%s of %d bytes: %d come back, %v", what, size, len(got), err)
			}
			for _, ahead := range []int{HeadSize, 64 << 10, len(b)} {
				if got, err := partsOf(b, ahead, find); err != nil || !bytes.Equal(got, plain) {
					t.Fatalf("%s of %d bytes, %d of them ahead: %d come back in parts, %v", what, size, ahead, len(got), err)
				}
			}
			r, err := NewReaderAt(bytes.NewReader(b), b[:min(HeadSize, len(b))], int64(size), "n", find)
			if err != nil {
				t.Fatal(err)
			}
			for from := size - 1; from >= 0; from -= 4999 {
				part := make([]byte, min(300, size-from))
				if _, err := r.ReadAt(part, int64(from)); err != nil || !bytes.Equal(part, plain[from:from+len(part)]) {
					t.Fatalf("%s of %d bytes: the part at %d: %v", what, size, from, err)
				}
			}
		}
	}
}

// TestPartsTampering: no part of what was changed, cut, or sealed under another name is given out for good.
func TestPartsTampering(t *testing.T) {
	d, find := dataKey(t)
	good := written(t, d, content(2*chunkSize), 1<<20)
	for at := 0; at < len(good); at += 997 {
		bad := bytes.Clone(good)
		bad[at] ^= 4
		if _, err := partsOf(bad, HeadSize, find); err == nil {
			t.Fatalf("byte %d changed: nothing is found out", at)
		}
		if _, err := partsOf(good[:at], HeadSize, find); !errors.Is(err, ErrDamaged) {
			t.Fatalf("cut at %d: %v, want ErrDamaged", at, err)
		}
	}
	r, err := NewReaderAt(bytes.NewReader(good), good, PlainSize(int64(len(good))), "m", find)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrDamaged) {
		t.Fatalf("under another name: %v, want ErrDamaged", err)
	}
}
