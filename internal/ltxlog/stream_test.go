package ltxlog

import (
	"errors"
	"os"
	"testing"
)

// Stream gives the pages that Pages gives, and a damaged entry ends in an error, whatever was seen.
func TestStream(t *testing.T) {
	for name, spill := range map[string]int{"in memory": 1 << 20, "larger": 100} {
		m := newModel(7, 4096)
		l := open(t, t.TempDir(), Options{spillSize: spill})
		var e Entry
		for range 5 {
			e = m.append(t, l, false)
		}
		sum := func(read func(Entry, func(uint32, []byte) error) error) (n int, err error) {
			err = read(e, func(pgno uint32, data []byte) error {
				n += int(pgno) * int(data[0])
				return nil
			})
			return n, err
		}
		want, err := sum(l.Pages)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := sum(l.Stream); err != nil || got != want || got == 0 {
			t.Errorf("%s: %d, %v, want %d", name, got, err, want)
		}
		refuse := errors.New("refused")
		if err := l.Stream(e, func(uint32, []byte) error { return refuse }); !errors.Is(err, refuse) || errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want what the function returned", name, err)
		}
		b, err := os.ReadFile(l.entryPath(e))
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 1
		if err := os.WriteFile(l.entryPath(e), b, 0o600); err != nil {
			t.Fatal(err)
		}
		l.live.age()
		l.live.age() // nothing of it is in memory any more
		if _, err := sum(l.Stream); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s, damaged: %v, want ErrCorrupt", name, err)
		}
	}
}
