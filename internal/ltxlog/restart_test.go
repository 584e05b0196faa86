package ltxlog

import (
	"bytes"
	"testing"

	"github.com/litefs/litefs/internal/vfs"
)

// A log that was begun anew with an entry from elsewhere has it after a power cut, though it follows nothing.
func TestRestartIsDurable(t *testing.T) {
	for name, o := range map[string]func(vfs.FS) Options{"copies": recentOptions, "packs": inPacks(recentOptions)} {
		disk, m, l := preparedWith(t, 1, o, func(int) bool { return true })
		c := m.next()
		b := c.bytes()
		if _, err := l.Restart(bytes.NewReader(b), int64(len(b))); err != nil {
			t.Fatal(err)
		}
		checkCuts(t, disk, o, m.txid, m.txid)
		m.append(t, l, true)
		checkCuts(t, disk, o, m.txid, m.txid)
		if t.Failed() {
			t.Fatal(name)
		}
	}
}
