package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openTerminal returns both ends of a terminal: what is written to tty is read from master.
func openTerminal(t *testing.T) (master, tty *os.File) {
	t.Helper()
	t.Setenv("TERM", "xterm")
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	return master, tty
}

// On a terminal a bar is drawn in one line, and is gone at the end.
func TestProgressBar(t *testing.T) {
	master, tty := openTerminal(t)
	p := newProgress(tty, "exporting app.db")
	p.report(1<<20, 4<<20)
	p.report(2<<20, 4<<20) // too soon after the first
	p.next = time.Time{}
	p.report(4<<20, 4<<20)
	p.end()
	if err := tty.Close(); err != nil {
		t.Fatal(err)
	}
	shown, err := io.ReadAll(master)
	if err != nil && !strings.Contains(err.Error(), "input/output error") { // how a terminal says that the other end is closed
		t.Fatal(err)
	}
	want := "\rexporting app.db [=======                       ]  25%, 1.0 MiB of 4.0 MiB\x1b[K" +
		"\rexporting app.db [==============================] 100%, 4.0 MiB of 4.0 MiB\x1b[K" + "\r\x1b[K"
	if string(shown) != want {
		t.Errorf("the terminal shows %q, want %q", shown, want)
	}
}

// Elsewhere there are lines, and none of what is quick.
func TestProgressLines(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := newProgress(f, "verifying app.db")
	p.report(1, 2<<20)
	p.next = time.Now() // as after linePause
	p.report(1<<20, 2<<20)
	p.report(2<<20, 2<<20)
	p.end()
	if got, err := os.ReadFile(f.Name()); err != nil || string(got) != "litefs: verifying app.db: 1.0 MiB of 2.0 MiB\n" {
		t.Errorf("the log has %q, %v", got, err)
	}
}
