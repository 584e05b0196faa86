package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/http/cookiejar"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// newWebNode makes a node with a proxy in front of a web application in Python, and does not start it. url is the
// proxy's; command runs the application.
func newWebNode(t *testing.T, c *cluster, options ...option) (n *node, url string, command []string) {
	t.Helper()
	front, err := childnode.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	target, err := childnode.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	n = newNode(t, append(options, c.lease, func(cfg *childnode.Config) {
		cfg.Proxy = []string{
			fmt.Sprintf("addr: %q", front), fmt.Sprintf("target: %q", target), "db: app.db",
			"wait-timeout: 60s", "primary-redirect-timeout: 60s",
		}
	})...)
	_, port, err := net.SplitHostPort(target)
	if err != nil {
		t.Fatal(err)
	}
	script, err := filepath.Abs("testdata/webapp.py")
	if err != nil {
		t.Fatal(err)
	}
	return n, "http://" + front, []string{"python3", script, port, n.path("app.db")}
}

// startWebApp starts a node whose child is the application.
func startWebApp(t *testing.T, c *cluster) (n *node, url string) {
	t.Helper()
	n, url, command := newWebNode(t, c)
	n.args = append([]string{"--"}, command...)
	n.start()
	return n, url
}

// webClient writes numbered rows through any of the proxies and reads them through any.
type webClient struct {
	t      *testing.T
	id     int
	urls   []string
	client *http.Client

	acked   []int // answered 200
	refused []int // answered 503: nothing was done
	lost    []int // no answer, 502, or an I/O error of the disk: it may have been done
}

// write sends row n and notes what became of it. true: it was answered with a success.
func (w *webClient) write(n int) bool {
	at := fmt.Sprintf("%s/?client=%d&n=%d", w.urls[n%len(w.urls)], w.id, n)
	code, body, err := send(w.client, http.MethodPost, at, strings.Repeat("x", n%7*1000))
	switch {
	case err == nil && code == http.StatusOK:
		w.acked = append(w.acked, n)
		return true
	case err == nil && code == http.StatusServiceUnavailable && !strings.Contains(body, "I/O"):
		w.refused = append(w.refused, n)
	case err == nil && code != http.StatusBadGateway && code != http.StatusServiceUnavailable:
		w.t.Errorf("client %d: write %d: %d %s", w.id, n, code, body)
	default:
		w.lost = append(w.lost, n)
	}
	return false
}

// run goes on until stop is closed, and for so long that it has written some.
func (w *webClient) run(stop <-chan struct{}) {
	for n := 1; ; n++ {
		select {
		case <-stop:
			return
		default:
		}
		if !w.write(n) {
			time.Sleep(10 * time.Millisecond) // nobody listens, perhaps
			continue
		}
		at := fmt.Sprintf("%s/?client=%d", w.urls[(n/2)%len(w.urls)], w.id)
		code, body, err := send(w.client, http.MethodGet, at, "")
		if err != nil || code != http.StatusOK {
			continue // it has got no answer, which is no wrong one
		}
		highest, count := 0, 0
		if _, err := fmt.Sscan(body, &highest, &count); err != nil || highest < n || count < len(w.acked) {
			w.t.Errorf("client %d: after write %d, its %dth, it reads %q", w.id, n, len(w.acked), body)
			return
		}
	}
}

// TestProxyFailover: the role moves, and moves back, under clients that write and read through the proxies of
// both nodes. What was answered with a success is there once, what was refused is not there, what was not
// answered is there once at most, and each client reads its own writes all the time.
func TestProxyFailover(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 5*time.Second)
	a, urlA := startWebApp(t, c)
	becomesPrimary(a)
	setup := sqlitetest.Start(t)
	conn := openPatient(setup, a.path("app.db"), "journal_mode=wal")
	conn.MustExec("CREATE TABLE t(client, n, v)")
	b, urlB := startWebApp(t, c)
	samePosition(a, b, "app.db")
	setup.Exit()

	clients, stop := startClients(t, urlA, urlB)
	takesWrites(a)
	for _, next := range []*node{b, a} {
		eventually(t, "the role moves", func() (bool, string) {
			err := next.move("/promote")
			return err == nil, fmt.Sprint(err)
		})
		becomesPrimary(next)
		takesWrites(next)
	}
	stop()
	samePosition(a, b, "app.db")
	checkClients(t, a, clients)
	for _, n := range []*node{a, b} {
		n.stop()
		if out, err := litefs(t, "verify", "-config", n.configPath()); err != nil {
			t.Errorf("verify: %s, %v", out, err)
		}
	}
}

// startClients starts clients of the proxies. stop waits until they have ended.
func startClients(t *testing.T, urls ...string) (clients []*webClient, stop func()) {
	t.Helper()
	end := make(chan struct{})
	var g sync.WaitGroup
	for i := range 4 {
		jar, err := cookiejar.New(nil)
		if err != nil {
			t.Fatal(err)
		}
		w := &webClient{t: t, id: i, urls: urls, client: &http.Client{Jar: jar}}
		clients = append(clients, w)
		g.Go(func() { w.run(end) })
	}
	stop = sync.OnceFunc(func() {
		close(end)
		g.Wait()
	})
	t.Cleanup(stop)
	return clients, stop
}

// takesWrites waits until clients have added rows while the node is the primary.
func takesWrites(n *node) {
	n.t.Helper()
	rows := func() string {
		out, err := sqlitetest.TryCLI(n.path("app.db"), "SELECT count(*) FROM t;")
		if err != nil {
			return err.Error()
		}
		return strings.TrimSpace(out)
	}
	before := rows()
	var first, now int
	fmt.Sscan(before, &first)
	eventually(n.t, "the clients write", func() (bool, string) {
		text := rows()
		_, err := fmt.Sscan(text, &now)
		return err == nil && now > first+40, fmt.Sprintf("%s rows, %d before", text, first)
	})
}

// checkClients compares what the clients were told with what is in the database.
func checkClients(t *testing.T, at *node, clients []*webClient) {
	t.Helper()
	check := openPatient(sqlitetest.Start(t), at.path("app.db"))
	acked := 0
	for _, w := range clients {
		count := map[int]int64{}
		for _, row := range check.MustQuery("SELECT n, count(*) FROM t WHERE client = ? GROUP BY n", fmt.Sprint(w.id)) {
			count[int(row[0].(int64))] = row[1].(int64)
		}
		for _, n := range w.acked {
			if count[n] != 1 {
				t.Errorf("client %d: write %d was answered and is there %d times", w.id, n, count[n])
			}
			delete(count, n)
		}
		for _, n := range w.lost {
			if count[n] > 1 {
				t.Errorf("client %d: write %d is there %d times", w.id, n, count[n])
			}
			delete(count, n)
		}
		for n, times := range count {
			t.Errorf("client %d: write %d was refused, and is there %d times", w.id, n, times)
		}
		t.Logf("client %d: %d answered, %d refused, %d without an answer", w.id, len(w.acked), len(w.refused), len(w.lost))
		acked += len(w.acked)
	}
	if acked < 120 {
		t.Errorf("only %d writes were answered", acked)
	}
	check.Close()
}

// webMachine is a node and its application, which die together.
type webMachine struct {
	*node
	url     string
	command []string
	app     *exec.Cmd
}

func (m *webMachine) start() {
	m.t.Helper()
	m.node.start()
	m.app = exec.Command(m.command[0], m.command[1:]...)
	m.app.Stderr = m.log
	if err := m.app.Start(); err != nil {
		m.t.Fatal(err)
	}
}

func (m *webMachine) endApp() {
	m.t.Helper()
	if m.app == nil {
		return
	}
	if err := m.app.Process.Kill(); err != nil {
		m.t.Error(err)
	}
	_ = m.app.Wait() // killed
	m.app = nil
}

// TestProxyFailover_Kill: three machines whose commits wait for one replica. The primary's dies under clients of all
// three proxies, with its application; another one takes over, and the dead one comes back. What was answered with a
// success is there once on every node, what was not answered is there once at most, and each client reads its own
// writes all the time.
func TestProxyFailover_Kill(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3*time.Second)
	var machines []*webMachine
	var urls []string
	for range 3 {
		m := &webMachine{}
		m.node, m.url, m.command = newWebNode(t, c, quorum(1, "2s"))
		m.start()
		t.Cleanup(m.endApp)
		machines, urls = append(machines, m), append(urls, m.url)
	}
	primary := func() *webMachine {
		var p *webMachine
		eventually(t, "a node is the primary", func() (bool, string) {
			for _, m := range machines {
				if info, ok := m.info(); ok && info.IsPrimary {
					p = m
				}
			}
			return p != nil, "none"
		})
		return p
	}
	conn := openPatient(sqlitetest.Start(t), primary().path("app.db"), "journal_mode=wal")
	mustCommit(t, conn, "CREATE TABLE t(client, n, v)")
	conn.Close()
	for _, m := range machines[1:] {
		samePosition(machines[0].node, m.node, "app.db")
	}

	clients, stop := startClients(t, urls...)
	takesWrites(primary().node)
	dead := primary()
	// For a moment no replica hears of anything, so that what is answered now is on the primary alone.
	for _, m := range machines {
		if m != dead {
			if err := m.proc.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
		}
	}
	alone := &webClient{t: t, id: len(clients), urls: []string{dead.url}, client: &http.Client{}}
	alone.write(1)
	dead.endApp()
	dead.killAll()
	for _, m := range machines {
		if m != dead {
			if err := m.proc.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
		}
	}
	next := primary()
	takesWrites(next.node)
	dead.start()
	takesWrites(primary().node)
	stop()
	for _, m := range machines {
		samePosition(next.node, m.node, "app.db")
	}
	for _, m := range machines {
		checkClients(t, m.node, append(clients, alone))
	}
	for _, m := range machines {
		m.endApp()
		m.stop()
		if out, err := litefs(t, "verify", "-config", m.configPath()); err != nil {
			t.Errorf("verify: %s, %v", out, err)
		}
	}
}
