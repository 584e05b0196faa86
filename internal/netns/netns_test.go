package netns

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// listener prints the bytes that come to the port 9 of the namespace, of one connection.
const listener = `import socket
s = socket.create_server(("", 9))
print("ready", flush=True)
c, _ = s.accept()
while True:
    b = c.recv(1000)
    if not b:
        break
    print(b.decode().strip(), flush=True)
    c.sendall(b)
`

// sender sends lines of its input to the address of its argument, and prints what comes back.
const sender = `import socket, sys, threading
c = socket.create_connection((sys.argv[1], 9))
def back():
    while True:
        b = c.recv(1000)
        if not b:
            break
        print(b.decode().strip(), flush=True)
threading.Thread(target=back, daemon=True).start()
for line in sys.stdin:
    c.sendall(line.encode())
`

// process runs Python in a namespace; lines are what it prints.
func process(t *testing.T, nw *Network, i int, args ...string) (in io.Writer, lines chan string) {
	t.Helper()
	args = nw.Command(i, append([]string{"python3", "-c"}, args...)...)
	cmd := exec.Command(args[0], args[1:]...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines = make(chan string, 100)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return in, lines
}

func want(t *testing.T, lines chan string, text string) {
	t.Helper()
	select {
	case line := <-lines:
		if line != text {
			t.Fatalf("got %q, want %q", line, text)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("no %q in time", text)
	}
}

func silent(t *testing.T, lines chan string) {
	t.Helper()
	select {
	case line := <-lines:
		t.Fatalf("got %q through a cut", line)
	case <-time.After(500 * time.Millisecond):
	}
}

// One direction of a connection is cut, and the other; what was sent comes when it is healed. Nothing is
// left of the network. It is one of the long tests, for CI need not have such a kernel.
func TestCutOneWay(t *testing.T) {
	if os.Getenv("LITEFS_SOAK") == "" {
		return
	}
	nw, err := New(2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := nw.Close(); err != nil {
			t.Error(err)
		}
		left, err := exec.Command("sh", "-c", "ip -brief link; ip netns list").CombinedOutput()
		if err != nil || strings.Contains(string(left), nw.id) {
			t.Errorf("left behind (%v):\n%s", err, left)
		}
	})
	_, there := process(t, nw, 1, listener)
	want(t, there, "ready")
	in, back := process(t, nw, 0, sender, nw.Addr(1))
	say := func(line string) {
		t.Helper()
		if _, err := io.WriteString(in, line+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	say("one")
	want(t, there, "one")
	want(t, back, "one")

	if err := nw.Cut(0, 1); err != nil {
		t.Fatal(err)
	}
	say("two")
	silent(t, there)
	if err := nw.Heal(); err != nil {
		t.Fatal(err)
	}
	want(t, there, "two")
	want(t, back, "two")

	if err := nw.Cut(1, 0); err != nil {
		t.Fatal(err)
	}
	say("three")
	want(t, there, "three")
	silent(t, back)
	if err := nw.Heal(); err != nil {
		t.Fatal(err)
	}
	want(t, back, "three")

	if err := nw.Part(0); err != nil {
		t.Fatal(err)
	}
	say("four")
	silent(t, there)
	if err := nw.Heal(); err != nil {
		t.Fatal(err)
	}
	want(t, there, "four")
	if err := nw.Delay(0, time.Millisecond); err != nil {
		t.Logf("no delays here: %v", err)
	}
}
