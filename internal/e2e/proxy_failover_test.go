package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/http/cookiejar"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// startWebApp starts a node with a web application in Python as its child, and a proxy in front of it, whose
// URL it returns.
func startWebApp(t *testing.T, c *cluster) (n *node, url string) {
	t.Helper()
	front, err := childnode.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	target, err := childnode.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	n = newNode(t, c.lease, func(cfg *childnode.Config) {
		cfg.Proxy = []string{
			fmt.Sprintf("addr: %q", front), fmt.Sprintf("target: %q", target), "db: app.db",
			"wait-timeout: 60s", "primary-redirect-timeout: 60s",
		}
	})
	_, port, err := net.SplitHostPort(target)
	if err != nil {
		t.Fatal(err)
	}
	script, err := filepath.Abs("testdata/webapp.py")
	if err != nil {
		t.Fatal(err)
	}
	n.args = []string{"--", "python3", script, port, n.path("app.db")}
	n.start()
	return n, "http://" + front
}

// webClient writes numbered rows through any of the proxies and reads them through any.
type webClient struct {
	t      *testing.T
	id     int
	urls   []string
	client *http.Client

	acked   []int // answered 200
	refused []int // answered 503: nothing was done
	lost    []int // no answer, or 502: it may have been done
}

// run goes on until stop is closed, and for so long that it has written some.
func (w *webClient) run(stop <-chan struct{}) {
	for n := 1; ; n++ {
		select {
		case <-stop:
			return
		default:
		}
		at := fmt.Sprintf("%s/?client=%d&n=%d", w.urls[n%len(w.urls)], w.id, n)
		code, body, err := send(w.client, http.MethodPost, at, strings.Repeat("x", n%7*1000))
		switch {
		case err == nil && code == http.StatusOK:
			w.acked = append(w.acked, n)
		case err == nil && code == http.StatusServiceUnavailable:
			w.refused = append(w.refused, n)
			continue
		case err == nil && code != http.StatusBadGateway:
			w.t.Errorf("client %d: write %d: %d %s", w.id, n, code, body)
			return
		default:
			w.lost = append(w.lost, n)
			time.Sleep(10 * time.Millisecond) // nobody listens, perhaps
			continue
		}
		at = fmt.Sprintf("%s/?client=%d", w.urls[(n/2)%len(w.urls)], w.id)
		code, body, err = send(w.client, http.MethodGet, at, "")
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
	c := newCluster(t, 5*time.Second)
	a, urlA := startWebApp(t, c)
	becomesPrimary(a)
	setup := sqlitetest.Start(t)
	conn := openPatient(setup, a.path("app.db"), "journal_mode=wal")
	conn.MustExec("CREATE TABLE t(client, n, v)")
	b, urlB := startWebApp(t, c)
	samePosition(a, b, "app.db")
	setup.Exit()

	stop := make(chan struct{})
	var g sync.WaitGroup
	clients := make([]*webClient, 4)
	for i := range clients {
		jar, err := cookiejar.New(nil)
		if err != nil {
			t.Fatal(err)
		}
		clients[i] = &webClient{t: t, id: i, urls: []string{urlA, urlB}, client: &http.Client{Jar: jar}}
		g.Go(func() { clients[i].run(stop) })
	}
	rows := func(n *node) string {
		out, err := sqlitetest.TryCLI(n.path("app.db"), "SELECT count(*) FROM t;")
		if err != nil {
			return err.Error()
		}
		return strings.TrimSpace(out)
	}
	// Each reign takes writes before the next one begins.
	reign := func(n *node) {
		before := rows(n)
		var first, now int
		fmt.Sscan(before, &first)
		eventually(t, "the clients write", func() (bool, string) {
			text := rows(n)
			_, err := fmt.Sscan(text, &now)
			return err == nil && now > first+40, fmt.Sprintf("%s rows, %d before", text, first)
		})
	}
	reign(a)
	for _, next := range []*node{b, a} {
		eventually(t, "the role moves", func() (bool, string) {
			err := next.move("/promote")
			return err == nil, fmt.Sprint(err)
		})
		becomesPrimary(next)
		reign(next)
	}
	close(stop)
	g.Wait()
	samePosition(a, b, "app.db")

	check := openPatient(sqlitetest.Start(t), a.path("app.db"))
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
	for _, n := range []*node{a, b} {
		n.stop()
		if out, err := litefs(t, "verify", "-config", n.configPath()); err != nil {
			t.Errorf("verify: %s, %v", out, err)
		}
	}
}
