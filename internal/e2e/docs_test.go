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

// runPage runs a page's commands in a directory of their own, with the port and the server of the page replaced.
func runPage(t *testing.T, before, page string, replace ...string) {
	t.Helper()
	dir := t.TempDir()
	addr, err := childnode.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := strings.Cut(addr, ":")
	text := strings.NewReplacer(replace...).Replace(before + script(t, page))
	text = strings.ReplaceAll(text, "20202", port)
	text = `set -eu
check() { local out; out=$(cat); printf '%s\n' "$out"; [[ $out == *"$1"* ]] || { echo "want: $1"; exit 1; }; }
trap 'echo "line $LINENO: $BASH_COMMAND"' ERR
trap 'for p in $(jobs -p); do kill $p || true; done; wait || true' EXIT
` + text
	cmd := exec.CommandContext(timeout(t), "bash", "-c", text)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(binary(t))+":"+os.Getenv("PATH"), "HOME="+dir)
	// What the page starts is in one group. One that hangs says where.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGQUIT) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if kill := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); kill != nil && kill != syscall.ESRCH {
		t.Error(kill)
	}
	mounts, globErr := filepath.Glob(filepath.Join(dir, "*"))
	if globErr != nil {
		t.Fatal(globErr)
	}
	for _, m := range mounts {
		if err := childnode.Detach(m); mounted(t, m) && err != nil {
			t.Error(err)
		}
	}
	if err != nil {
		t.Fatalf("%v\n%s\n--- script\n%s", err, out, text)
	}
}

// A newcomer's path works as it is written.
func TestGettingStarted(t *testing.T) {
	server, err := leaseserver.ConsulDev(t.Context(), leaseserver.Options{Dir: t.TempDir(), Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Kill(); err != nil {
			t.Error(err)
		}
	})
	runPage(t, "", "getting-started.md", "http://127.0.0.1:8500", server.URL,
		"litefs mount app ", "litefs mount -set http.addr=127.0.0.1:20202 app ")
}

// An operator's commands work as they are written.
func TestOperations(t *testing.T) {
	runPage(t, `mkdir one two
cat > one.yml <<END
fuse: {dir: one}
http: {addr: "127.0.0.2:20202"}
lease: {type: static, candidate: true, advertise-url: "http://127.0.0.2:20202"}
END
cat > two.yml <<END
fuse: {dir: two}
http: {addr: "127.0.0.3:20202"}
lease: {type: static, candidate: false, advertise-url: "http://127.0.0.2:20202"}
END
litefs mount -config one.yml &
litefs mount -config two.yml &
until mountpoint -q one && mountpoint -q two; do sleep 0.1; done
sqlite3 one/app.db "PRAGMA journal_mode=wal; CREATE TABLE t (a); INSERT INTO t VALUES ('x')"
litefs wait -config two.yml app.db $(cat one/app.db-pos)
`, "operations.md")
}
