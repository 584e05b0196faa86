package seal

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
)

func testKeys(t *testing.T, text string) *Keys {
	t.Helper()
	k, err := ParseKeys(text)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func dataKey(t *testing.T) (DataKey, func([16]byte) (DataKey, error)) {
	t.Helper()
	d, err := NewDataKey()
	if err != nil {
		t.Fatal(err)
	}
	return d, func(id [16]byte) (DataKey, error) {
		if id != d.ID {
			return DataKey{}, errors.New("another key")
		}
		return d, nil
	}
}

// sizes are those around the ends of chunks.
var sizes = []int{0, 1, 100, FirstChunk - 1, FirstChunk, FirstChunk + 1, FirstChunk + chunkSize - 1, FirstChunk + chunkSize, FirstChunk + chunkSize + 1, 3*chunkSize + 5}

func content(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(uint64(n), 1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func sealed(t *testing.T, d DataKey, name string, plain []byte) []byte {
	t.Helper()
	body, err := NewBody(d, name, bytes.NewReader(plain))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func opened(b []byte, name string, find func([16]byte) (DataKey, error)) ([]byte, error) {
	r, err := NewReader(iotest.HalfReader(bytes.NewReader(b)), name, find)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// TestRoundTrip: contents of all sizes come back, whole and by their first bytes; sizes are known beforehand;
// what is sealed is the same each time it is read, wherever the reading begins.
func TestRoundTrip(t *testing.T) {
	d, find := dataKey(t)
	for _, size := range sizes {
		plain := content(size)
		body, err := NewBody(d, "n", bytes.NewReader(plain))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(body)
		if err != nil || int64(len(b)) != SealedSize(int64(size)) || PlainSize(int64(len(b))) != int64(size) {
			t.Fatalf("%d bytes: %d sealed, %v, want %d; back %d", size, len(b), err, SealedSize(int64(size)), PlainSize(int64(len(b))))
		}
		for _, at := range []int64{0, 1, int64(headerSize), int64(len(b)) / 2, int64(len(b)) - 1, int64(len(b))} {
			if _, err := body.Seek(at, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			if rest, err := io.ReadAll(iotest.OneByteReader(body)); err != nil || !bytes.Equal(rest, b[at:]) {
				t.Fatalf("%d bytes: read again from %d: other bytes, %v", size, at, err)
			}
		}
		if got, err := opened(b, "n", find); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("%d bytes: %d come back, %v", size, len(got), err)
		}
		head, err := OpenHead(b[:min(len(b), HeadSize)], int64(len(b)), "n", find)
		if err != nil || !bytes.Equal(head, plain[:min(size, FirstChunk)]) {
			t.Fatalf("%d bytes: the first are %d, %v", size, len(head), err)
		}
		if size > 32 && bytes.Contains(b, plain[:32]) {
			t.Fatal("the content can be read")
		}
		if again := sealed(t, d, "n", plain); bytes.Equal(again[headerSize:], b[headerSize:]) {
			t.Fatal("two seals of one content are the same")
		}
	}
}

// TestTampering: a bit that changed, anywhere, bytes that are missing or too many, chunks that change places,
// another name and another key are found out, and what was read before that is a beginning of the content.
func TestTampering(t *testing.T) {
	d, find := dataKey(t)
	plain := content(2*chunkSize + FirstChunk + 100)
	b := sealed(t, d, "history/1", plain)
	wrong := map[string][]byte{}
	for _, at := range []int{0, 9, 30, headerSize, headerSize + FirstChunk, len(b) / 2, len(b) - 1} {
		c := bytes.Clone(b)
		c[at] ^= 1
		wrong["bit "+strings.Repeat("i", at%7)+string(rune('a'+at%26))] = c
	}
	first := headerSize + FirstChunk + tagSize
	for name, n := range map[string]int{"nothing": 0, "header": headerSize, "first chunk": first, "a chunk": first + chunkSize + tagSize, "all but the last": first + 2*(chunkSize+tagSize), "one byte": len(b) - 1} {
		wrong["cut after "+name] = b[:n]
	}
	wrong["longer"] = append(bytes.Clone(b), 0)
	swapped := bytes.Clone(b)
	copy(swapped[first:], b[first+chunkSize+tagSize:first+2*(chunkSize+tagSize)])
	copy(swapped[first+chunkSize+tagSize:], b[first:first+chunkSize+tagSize])
	wrong["swapped"] = swapped
	other := sealed(t, d, "history/1", plain)
	wrong["end of another"] = append(bytes.Clone(b[:first]), other[first:]...)
	for name, c := range wrong {
		if got, err := opened(c, "history/1", find); err == nil || !bytes.HasPrefix(plain, got) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	for name, n := range map[string]int{"first chunk": first, "all but the last": first + 2*(chunkSize+tagSize)} {
		if _, err := opened(b[:n], "history/1", find); !errors.Is(err, ErrDamaged) {
			t.Errorf("cut after %s: %v", name, err)
		}
	}
	if _, err := opened(b, "history/2", find); !errors.Is(err, ErrDamaged) {
		t.Errorf("another name: %v", err)
	}
	if _, err := OpenHead(b[:HeadSize], int64(len(b)), "history/2", find); !errors.Is(err, ErrDamaged) {
		t.Errorf("another name: %v", err)
	}
	if _, err := OpenHead(b[:HeadSize], int64(HeadSize), "history/1", find); !errors.Is(err, ErrDamaged) {
		t.Errorf("the first chunk as all there is: %v", err)
	}
	if _, err := opened(plain, "history/1", find); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "not encrypted") {
		t.Errorf("not sealed: %v", err)
	}
	if _, find2 := dataKey(t); true {
		if _, err := opened(b, "history/1", find2); err == nil {
			t.Error("another key opens it")
		}
	}
}

const (
	key1 = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	key2 = "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100"
)

// TestKeys: a data key is wrapped with the first key and unwrapped with any, for its owner alone.
func TestKeys(t *testing.T) {
	d, _ := dataKey(t)
	old, both, other := testKeys(t, "# old\n"+key1+"\n"), testKeys(t, key2+"\n\n"+key1), testKeys(t, key2)
	record, err := old.Wrap(d, "app.db/")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []*Keys{old, both} {
		got, by, err := k.Unwrap(record, "app.db/")
		if err != nil || got != d || by != old.Current() {
			t.Fatalf("%v, by %s", err, by)
		}
	}
	if _, _, err := other.Unwrap(record, "app.db/"); !errors.Is(err, ErrWrongKey) {
		t.Errorf("without the key: %v", err)
	}
	if _, _, err := old.Unwrap(record, "other.db/"); !errors.Is(err, ErrDamaged) {
		t.Errorf("for another owner: %v", err)
	}
	for i := range record {
		c := bytes.Clone(record)
		c[i] ^= 1
		if got, _, err := old.Unwrap(c, "app.db/"); err == nil && got != d {
			t.Errorf("byte %d changed: another key", i)
		}
	}
	if bytes.Contains(record, []byte(key1[:16])) {
		t.Error("the record shows a key")
	}
	for _, text := range []string{"", "# none\n", "abc", key1 + "00", strings.Repeat("g", 64)} {
		if _, err := ParseKeys(text); err == nil || len(text) > 8 && strings.Contains(err.Error(), text[:8]) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
