package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// webApp is an application beside a node: POST / adds a row, GET / counts the rows of a client.
type webApp struct {
	server *httptest.Server

	mu   sync.Mutex
	conn *sqlitetest.Conn // nil until open
}

func newWebApp(t *testing.T) *webApp {
	a := &webApp{}
	a.server = httptest.NewServer(a)
	t.Cleanup(a.server.Close)
	return a
}

func (a *webApp) open(conn *sqlitetest.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.conn = conn
}

func (a *webApp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	client := r.URL.Query().Get("client")
	if r.Method == http.MethodPost {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			_, err = a.conn.Exec("INSERT INTO t(client, v) VALUES (?, ?)", client, string(body))
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
		return
	}
	rows, err := a.conn.Query("SELECT count(*) FROM t WHERE client = ?", client)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprint(w, rows[0][0])
}

// proxied puts a proxy in front of an application, with the node as its database.
func proxied(t *testing.T, a *webApp) (o option, url string) {
	t.Helper()
	addr, err := childnode.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	return func(c *childnode.Config) {
		c.Proxy = []string{
			fmt.Sprintf("addr: %q", addr),
			fmt.Sprintf("target: %q", strings.TrimPrefix(a.server.URL, "http://")),
			"db: app.db", "wait-timeout: 60s", "primary-redirect-timeout: 60s",
		}
	}, "http://" + addr
}

// TestProxyReadsYourWrites: clients of a replica write through it, and each sees its own rows in the
// next read, which the replica's own application answers.
func TestProxyReadsYourWrites(t *testing.T) {
	apps := []*webApp{newWebApp(t), newWebApp(t)}
	front, _ := proxied(t, apps[0])
	primary := startNode(t, front)
	front, url := proxied(t, apps[1])
	replica := startNode(t, front, follows(primary))

	app := sqlitetest.Start(t)
	conn := openPatient(app, primary.path("app.db"), "journal_mode=WAL")
	conn.MustExec("CREATE TABLE t(client, v)")
	caughtUp(primary, replica, "app.db")
	apps[0].open(conn)
	apps[1].open(openPatient(app, replica.path("app.db")))

	const clients, writes = 4, 60
	var g sync.WaitGroup
	for i := range clients {
		g.Go(func() {
			jar, err := cookiejar.New(nil)
			if err != nil {
				t.Error(err)
				return
			}
			client := &http.Client{Jar: jar}
			defer client.CloseIdleConnections()
			at := fmt.Sprintf("%s/?client=%d", url, i)
			for n := 1; n <= writes; n++ {
				if code, body, err := send(client, http.MethodPost, at, strings.Repeat("x", 100*n)); err != nil || code != 200 {
					t.Errorf("client %d: write %d: %d %s %v", i, n, code, body, err)
					return
				}
				if code, body, err := send(client, http.MethodGet, at, ""); err != nil || code != 200 || body != fmt.Sprint(n) {
					t.Errorf("client %d: after write %d it reads %d %q %v", i, n, code, body, err)
					return
				}
			}
		})
	}
	g.Wait()
	if n := conn.MustInt("SELECT count(*) FROM t"); n != clients*writes {
		t.Errorf("%d rows of %d", n, clients*writes)
	}
	if n := conn.MustInt("SELECT count(*) FROM t WHERE length(v) % 100 != 0"); n != 0 {
		t.Errorf("%d bodies are not what was sent", n)
	}
	app.Exit()
	sameEverywhere(t, primary, replica, "app.db")
}

// send sends one request and returns the answer.
func send(client *http.Client, method, url, body string) (code int, answer string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	resp, err := client.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, strings.TrimSpace(string(b)), err
}
