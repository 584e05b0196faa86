package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/leaseserver"
)

// script is the blocks of commands of a page, in their order. A command that ends in "# => TEXT" has to print TEXT.
func script(t *testing.T, page string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../docs", page))
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	prints := regexp.MustCompile(`^(.*\S)\s+# => ?(.*)$`)
	for _, block := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllSubmatch(b, -1) {
		for line := range strings.Lines(string(block[1])) {
			line = strings.TrimRight(line, "\n")
			if m := prints.FindStringSubmatch(line); m != nil {
				line = fmt.Sprintf("check %q < <(%s)", m[2], m[1])
			}
			fmt.Fprintln(&out, line)
		}
	}
	return out.String()
}

// shell runs commands of pages in a directory, with what stands in the pages replaced by what is here.
type shell struct {
	dir          string
	words, ports *strings.Replacer
}

// newShell is for pages that name the lease server, the port of the nodes, and further pairs.
func newShell(t *testing.T, replace ...string) shell {
	t.Helper()
	server, err := leaseserver.ConsulDev(t.Context(), leaseserver.Options{Dir: t.TempDir(), Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Kill(); err != nil {
			t.Error(err)
		}
	})
	var ports []string
	for _, port := range []string{"20202", "8080", "8081"} {
		addr, err := childnode.FreeAddr()
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, ":"+port, strings.TrimPrefix(addr, "127.0.0.1"), " "+port, strings.Replace(addr, "127.0.0.1:", " ", 1))
	}
	ports = append(ports, "http://127.0.0.1:8500", server.URL)
	s := shell{dir: t.TempDir(), words: strings.NewReplacer(replace...), ports: strings.NewReplacer(ports...)}
	t.Cleanup(func() {
		mounts, err := filepath.Glob(filepath.Join(s.dir, "*"))
		if err != nil {
			t.Error(err)
		}
		for _, m := range mounts {
			if err := childnode.Detach(m); mounted(t, m) && err != nil {
				t.Error(err)
			}
		}
	})
	return s
}

func (s shell) here(text string) string { return s.ports.Replace(s.words.Replace(text)) }

// command is bash in the directory, in a group of its own. One that hangs says where.
func (s shell) command(t *testing.T, text string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(timeout(t), "bash", "-c", s.here(text))
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(binary(t))+":"+filepath.Join(s.dir, "bin")+":"+os.Getenv("PATH"), "HOME="+s.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGQUIT) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// run runs commands to their end, and ends what they have left.
func (s shell) run(t *testing.T, text string) {
	t.Helper()
	text = `set -eu
began=${EPOCHREALTIME/./}
check() { local out; out=$(cat); printf '%s\n' "$out"; [[ $out == *"$1"* ]] || { echo "want: $1"; exit 1; }
	printf 'after %d ms: %s\n' $(( (${EPOCHREALTIME/./} - began) / 1000 )) "$1"; }
trap 'echo "line $LINENO: $BASH_COMMAND"' ERR
trap 'for p in $(jobs -p); do kill $p || true; done; wait || true' EXIT
` + text
	cmd := s.command(t, text)
	out, err := cmd.CombinedOutput()
	if kill := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); kill != nil && kill != syscall.ESRCH {
		t.Error(kill)
	}
	if err != nil {
		t.Fatalf("%v\n%s\n--- script\n%s", err, out, s.here(text))
	}
	for _, line := range regexp.MustCompile(`(?m)^after \d+ ms: .+$`).FindAll(out, -1) {
		t.Logf("%s", line)
	}
}

// serve starts a node that runs until the test ends.
func (s shell) serve(t *testing.T, text string) {
	t.Helper()
	cmd := s.command(t, "exec "+text)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	})
}

// A newcomer's path works as it is written.
func TestGettingStarted(t *testing.T) {
	t.Parallel()
	newShell(t, "litefs mount app ", "litefs mount -set http.addr=127.0.0.1:20202 app ").run(t, script(t, "getting-started.md"))
}

// Every command of a page works as it is written, on a cluster that all pages share.
func TestDocuments(t *testing.T) {
	fixture, err := filepath.Abs("../adopt/testdata/litefs-0.5.14.tar.gz")
	if err != nil {
		t.Fatal(err)
	}
	s := newShell(t, "/var/lib/litefs", "litefs-0.5", "/etc/litefs.yml", "adopted.yml", "mnt=/litefs", "mnt=adopted")
	if err := os.Mkdir(filepath.Join(s.dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(litestream(t, litestreamVersion()), filepath.Join(s.dir, "bin", "litestream")); err != nil {
		t.Fatal(err)
	}
	s.run(t, `mkdir one two three old adopted litefs-0.5
for n in one two; do cat > $n.yml <<END; done
fuse: {dir: $n}
http: {addr: "127.0.0.$([ $n = one ] && echo 2 || echo 3):20202"}
lease:
  type: consul
  hostname: $n
  demote-delay: 100ms
  advertise-url: http://127.0.0.$([ $n = one ] && echo 2 || echo 3):20202
  consul: {url: "http://127.0.0.1:8500", key: "documents/primary"}
END
cat > three.yml <<END
fuse: {dir: three, guardian: true}
http: {addr: "127.0.0.5:20202"}
END
cat > adopted.yml <<END
fuse: {dir: adopted}
data: {dir: litefs-0.5}
http: {addr: "127.0.0.6:20202"}
END
tar -C litefs-0.5 -xzf `+fixture+`
sqlite3 old/shop.db "CREATE TABLE orders (a); INSERT INTO orders VALUES ('first'), ('second')"
cat > litestream.yml <<END
dbs:
  - path: $PWD/old/shop.db
    replica: {type: file, path: $PWD/backup/shop.db}
END
litestream replicate -config litestream.yml &
until [ -d backup/shop.db/ltx/0 ]; do sleep 0.1; done
kill $!; wait
`)
	s.serve(t, "litefs mount -config one.yml")
	s.serve(t, "litefs mount -config three.yml")
	s.run(t, "until mountpoint -q one; do sleep 0.1; done")
	s.serve(t, "litefs mount -config two.yml")
	s.run(t, `until mountpoint -q two && mountpoint -q three; do sleep 0.1; done
sqlite3 one/app.db "PRAGMA journal_mode=wal; CREATE TABLE t (a); INSERT INTO t VALUES ('x')"
sqlite3 three/app.db "CREATE TABLE t (a); INSERT INTO t VALUES ('still there')"
litefs wait -config two.yml app.db $(cat one/app.db-pos)
`)
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		name := filepath.Base(page)
		commands := script(t, name)
		if name == "getting-started.md" || commands == "" {
			continue
		}
		t.Run(name, func(t *testing.T) { s.run(t, commands) })
	}
}
