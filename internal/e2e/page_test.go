//go:build browser

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/litefs/litefs/internal/browser"
	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/sqlitetest"
)

const pageAdminToken = "the-operators-token"

// pageTest is a browser that looks at a node.
type pageTest struct {
	t *testing.T
	b *browser.Browser
}

func newPageTest(t *testing.T) pageTest {
	b, err := browser.Start(timeout(t), "chromium")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return pageTest{t, b}
}

func (p pageTest) do(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// text is what a user reads in the element.
func (p pageTest) text(selector string) (s string) {
	p.t.Helper()
	// innerText of what is hidden is all of its text.
	p.do(p.b.Eval(timeout(p.t), fmt.Sprintf("(e => e && e.checkVisibility() ? e.innerText : '')(document.querySelector(%q))", selector), &s))
	return s
}

// reads waits until the element says want.
func (p pageTest) reads(selector, want string) {
	p.t.Helper()
	eventually(p.t, selector+" reads "+want, func() (bool, string) {
		got := p.text(selector)
		return strings.Contains(got, want), got
	})
}

// shot keeps a picture in $LITEFS_SCREENSHOTS, to be looked at.
func (p pageTest) shot(name string) {
	p.t.Helper()
	png, err := p.b.Screenshot(timeout(p.t))
	p.do(err)
	if dir := os.Getenv("LITEFS_SCREENSHOTS"); dir != "" {
		p.do(os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644))
	}
}

// login types a token, with keys alone.
func (p pageTest) login(token string) {
	p.t.Helper()
	p.reads("#login", "Token")
	p.do(p.b.Eval(timeout(p.t), "document.activeElement.blur(); document.querySelector('#token').focus()", nil))
	p.do(p.b.Type(timeout(p.t), token))
	p.do(p.b.Key(timeout(p.t), "Enter"))
}

// The page asks for a credential, shows the cluster, and an operator hands the role over with keys alone.
func TestPageHandOver(t *testing.T) {
	c := newCluster(t, patience)
	operated := func(n *node) { n.args = append(n.args, "-set", "http.admin-token="+pageAdminToken) }
	start := func() *node {
		n := newNode(t, c.lease, func(c *childnode.Config) { c.Durability = []string{"{match: kept.db, level: quorum}"} })
		operated(n)
		n.start()
		return n
	}
	first := start()
	becomesPrimary(first)
	second := start()
	db := sqlitetest.Open(t, first.path("app.db"))
	db.MustExec("PRAGMA journal_mode=wal")
	db.MustExec("CREATE TABLE t (a)")
	db.MustExec("INSERT INTO t VALUES (1)")

	kept := sqlitetest.Open(t, first.path("kept.db"))
	kept.MustExec("PRAGMA journal_mode=truncate")
	kept.MustExec("CREATE TABLE t (a)")

	p := newPageTest(t)
	p.do(p.b.Show(timeout(t), 1200, 900, false))
	p.do(p.b.Open(timeout(t), "http://"+first.cfg.Addr+"/"))
	p.login("a-wrong-token")
	p.reads("#notice", "not a token")
	p.shot("login")
	p.login(pageAdminToken)
	p.reads("#role", "primary")
	p.reads("#dbs", "app.db")
	info, _ := second.info()
	p.reads("#nodes", info.NodeID)
	p.reads("#nodes", "Hand over")
	p.reads("#nodes", "replica, in sync")
	p.reads("#node", "In sync")
	p.reads("#dbs", "quorum:1,durable,5s")
	db.MustExec("INSERT INTO t VALUES (2)")
	p.reads("#events", "app.db")
	p.shot("primary")

	p.do(p.b.Eval(timeout(t), "document.querySelector('#nodes button').focus()", nil))
	p.do(p.b.Key(timeout(t), "Enter"))
	p.reads("dialog[open]", info.NodeID)
	p.shot("confirm")
	p.do(p.b.Key(timeout(t), "Tab"))
	p.do(p.b.Key(timeout(t), "Enter"))
	becomesPrimary(second)
	p.reads("#role", "replica")
	p.reads("#notice", "is the primary")
	if got := p.text("#nodes"); strings.Contains(got, info.NodeID) {
		t.Errorf("the node that is the primary now is listed as the replica that it was:\n%s", got)
	}
	p.shot("handed-over")

	// Every control has a name that is read out.
	var nameless []string
	p.do(p.b.Eval(timeout(t), `[...document.querySelectorAll('button, input, a')]
		.filter(e => !(e.innerText || e.getAttribute('aria-label') || e.labels && e.labels.length)).map(e => e.outerHTML)`, &nameless))
	if len(nameless) > 0 {
		t.Errorf("no name: %q", nameless)
	}
}

// One node with three databases, in light and dark; then one that follows and stops, and how far it is behind.
func TestPageOne(t *testing.T) {
	n := startNode(t)
	var db *sqlitetest.Conn
	for _, name := range []string{"orders.db", "sub/users.db", "wal.db"} {
		if err := os.MkdirAll(filepath.Dir(n.path(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		db = sqlitetest.Open(t, n.path(name))
		db.MustExec("CREATE TABLE t (a)")
	}
	p := newPageTest(t)
	for _, view := range []struct {
		name string
		dark bool
	}{{"light", false}, {"dark", true}} {
		p.do(p.b.Show(timeout(t), 1200, 900, view.dark))
		p.do(p.b.Open(timeout(t), "http://"+n.cfg.Addr+"/"))
		p.reads("#dbs", "sub/users.db")
		p.reads("#lag-now", "No replica is connected.")
		p.shot("one-" + view.name)
	}
	f := startNode(t, follows(n))
	p.reads("#lag-now", ": 0 tx")
	if err := f.proc.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	const behind = 20
	for range behind {
		db.MustExec("INSERT INTO t VALUES (1)")
	}
	p.reads("#lag-now", fmt.Sprintf(": %d tx", behind))
	p.shot("lag")
}

// Five nodes and a thousand databases, in light and dark, on a desk and on a phone: nothing runs over.
func TestPageMany(t *testing.T) {
	primary := startNode(t)
	for range 4 {
		startNode(t, follows(primary))
	}
	seed := primary.path("db-0000.db")
	db := sqlitetest.Open(t, seed)
	db.MustExec("CREATE TABLE t (a)")
	db.MustExec("INSERT INTO t VALUES (1)")
	db.Close()
	const many = 1000
	content, err := os.ReadFile(seed)
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i < many; i++ {
		if err := os.WriteFile(primary.path(fmt.Sprintf("db-%04d.db", i)), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p := newPageTest(t)
	for _, view := range []struct {
		name          string
		width, height int
		dark          bool
	}{{"light", 1200, 1000, false}, {"dark", 1200, 1000, true}, {"phone", 390, 1600, false}, {"phone-dark", 390, 1600, true}} {
		p.do(p.b.Show(timeout(t), view.width, view.height, view.dark))
		p.do(p.b.Open(timeout(t), "http://"+primary.cfg.Addr+"/"))
		p.reads("#db-count", fmt.Sprint(many))
		eventually(t, "four replicas", func() (bool, string) {
			got := p.text("#lag-now")
			return strings.Count(got, " tx") == 4, got
		})
		p.reads("#dbs", "db-0042.db")
		var over []string
		p.do(p.b.Eval(timeout(t), `document.documentElement.scrollWidth > innerWidth ? ['page'] : []`, &over))
		if len(over) > 0 {
			t.Errorf("%s: wider than the window", view.name)
		}
		p.shot("many-" + view.name)
	}
	p.do(p.b.Eval(timeout(t), "document.querySelector('#filter').focus()", nil))
	p.do(p.b.Type(timeout(t), "db-0777"))
	p.reads("#dbs", "db-0777.db")
	p.reads("#db-count", "1 of 1000")
}
