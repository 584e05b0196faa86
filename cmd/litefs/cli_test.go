package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// binary is the program, built once.
var binary string

func TestMain(m *testing.M) {
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "litefs-cli")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	// Other users must be able to run it.
	if err := os.Chmod(dir, 0o755); err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "litefs")
	cmd := exec.Command("go", "build", "-o", binary, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		panic(string(out))
	}
	return m.Run()
}

// litefs is one run of the program in an empty directory of its own.
type litefs struct {
	dir  string
	env  []string
	user uint32 // not 0: run as this user
}

func (l litefs) run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := exec.Command(binary, args...)
	cmd.Dir = l.dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + l.dir}, l.env...)
	if l.user != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: l.user, Gid: l.user, NoSetGroups: true}}
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// tree lists every path below dir with its mode.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		b.WriteString(d.Type().String() + " " + path + "\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// A fault of usage or configuration: one line, exit code 2, nothing touched.
func TestBadInput(t *testing.T) {
	const nobody = 65534
	for _, tt := range []struct {
		name string
		file string // litefs.yml; "" for none
		args string
		user uint32
		want string // DIR stands for the working directory
	}{
		{"no command at all", "", "", 0, "litefs: no command given: litefs help lists the commands"},
		{"no such command", "", "mout", 0, `litefs: unknown command "mout": litefs help lists the commands`},
		{"halt lock", "", "run -with-halt-lock-on app.db -halt-lock-timeout 0s -- true", 0, "litefs: -halt-lock-timeout 0s must be more than 0"},
		{"nothing to run", "", "run -promote", 0, "litefs: want: litefs run [flags] -- COMMAND ARGS"},
		{"import without a name", "", "import a.db", 0, "litefs: want: litefs import -name DB FILE"},
		{"import of nothing", "", "import -url http://127.0.0.1:1 -name a.db none.db", 0, "litefs: open none.db: no such file or directory"},
		{"no such shell", "", "completion csh", 0, "litefs: want: litefs completion bash, zsh or fish"},
		{"no such flag", "", "mount -confg x", 0, "litefs: mount: flag provided but not defined: -confg: see litefs help mount"},
		{"no such file", "", "mount -config x.yml", 0, "litefs: open x.yml: no such file or directory"},
		{"no file", "", "mount", 0, "litefs: no configuration file: name one with -config, or a directory to mount; looked for litefs.yml, DIR/litefs.yml, /etc/litefs.yml"},
		{"two directories", "", "mount mnt mnt", 0, "litefs: one directory at most, but there are 2: a command to start goes after --"},
		{"file and directory", "fuse: {dir: mnt}", "mount -config litefs.yml mnt", 0, "litefs: give -config litefs.yml or the directory mnt, not both: fuse.dir in the file names the directory"},
		{"no command", "", "mount mnt --", 0, "litefs: no command after --"},
		{"skip-unmount", "", "mount -skip-unmount mnt", 0, "litefs: -skip-unmount is not built: a stale mount is cleaned up only when nothing uses it; remove the flag"},

		{"missing directory", "", "mount none", 0, "litefs: fuse.dir DIR/none does not exist: make it with mkdir -p"},
		{"no directory", "", "mount file", 0, "litefs: fuse.dir DIR/file is not a directory"},
		{"data under a file", "", "mount -set data.dir=file/x mnt", 0, "litefs: data.dir DIR/file/x cannot be made: DIR/file is not a directory"},
		{"unwritable directory", "", "mount mnt", nobody, "litefs: fuse.dir DIR/mnt is not writable by this user (uid 65534): permission denied"},
		{"unwritable data", "", "mount -set data.dir=mnt/x open", nobody, "litefs: data.dir DIR/mnt/x cannot be made: DIR/mnt is not writable by this user (uid 65534): permission denied"},
		{"data in the mount", "", "mount -set data.dir=mnt/x mnt", 0, "litefs: data.dir DIR/mnt/x lies inside fuse.dir DIR/mnt, which would hide it: move it beside"},

		{"not YAML", "fuse:\n\tdir: mnt", "mount", 0, "litefs: litefs.yml: not valid YAML at line 2: "},
		{"typo", "fuse:\n  dri: mnt", "mount", 0, `litefs: litefs.yml: unknown key "fuse.dri" at line 2: did you mean "fuse.dir"?`},
		{"typo, first form", "fuse:\n  dri: mnt", "-config litefs.yml", 0, `litefs: litefs.yml: unknown key "fuse.dri" at line 2: did you mean "fuse.dir"?`},
		{"proxy", "fuse: {dir: mnt}\nproxy:\n  target: localhost:1", "mount", 0, "litefs: litefs.yml: proxy.addr is missing: name the host:port that clients of the application connect to"},
		{"consul", "mount-dir: mnt\nconsul:\n  url: localhost:8500", "-config litefs.yml", 0, "litefs: litefs.yml: consul.url at line 3: is not a URL like http://127.0.0.1:8500"},
		{"open port", "mount-dir: mnt\nhttp: {addr: ':20202'}", "mount", 0, "litefs: litefs.yml: http.addr :20202 is reachable from other machines and there is no http.token: "},
		{"no primary", "", "mount -set lease.candidate=false mnt", 0, "litefs: lease.advertise-url is missing: with lease.candidate: false it must be the URL of the primary, like http://10.0.0.1:20202"},
		{"config checks too", "fuse:\n  dri: mnt", "config", 0, `litefs: litefs.yml: unknown key "fuse.dri" at line 2: did you mean "fuse.dir"?`},
		{"reference as JSON", "", "config -reference -json", 0, "litefs: -reference is text: leave -json out"},
		{"node's URL", "", "ltx list -url 127.0.0.1:20202", 0, "litefs: -url is not a URL like http://10.0.0.1:20202"},
		{"two nodes", "", "verify -url http://127.0.0.1:1 -data mnt", 0, "litefs: give one of -config, -url and -data"},
		{"no data directory", "", "verify -data mnt", 0, "litefs: DIR/mnt: not a litefs data directory: "},
		{"no action", "", "ltx -data mnt", 0, "litefs: want: litefs ltx list, or litefs ltx dump DATABASE TXID"},
		{"no TXID", "", "ltx dump -data mnt a.db xyz", 0, `litefs: "xyz" is not a TXID like 000000000000002a`},
		{"keys of a log in a bucket", "", "keys -log -from s3://b/x", 0, "litefs: give -log, or -from and its flags: a log is in the data directory"},
		{"keys of an archive in a data directory", "", "keys -data mnt", 0, "litefs: -data goes with -log"},
		{"keys of a log of nothing", "", "keys -log -data mnt", 0, "litefs: DIR/mnt: not a litefs data directory: "},
		{"keys of a log, one destroyed without a name", "", "keys -log -data mnt -destroy", 0, "litefs: give -rotate, or -destroy with -name DB"},
		{"no keys of a log", "", "verify -data mnt -key-file none", 0, "litefs: open none: no such file or directory"},
		{"demo with arguments", "", "demo x", 0, "litefs: demo takes no arguments"},
		{"bench with arguments", "", "bench x", 0, "litefs: bench takes no arguments"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, err := os.MkdirTemp(filepath.Dir(binary), "run")
			if err != nil {
				t.Fatal(err)
			}
			for path, mode := range map[string]os.FileMode{dir: 0o755, dir + "/mnt": 0o755, dir + "/open": 0o777} {
				if path != dir {
					if err := os.Mkdir(path, mode); err != nil {
						t.Fatal(err)
					}
				}
				if err := os.Chmod(path, mode); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(dir+"/file", nil, 0o644); err != nil {
				t.Fatal(err)
			}
			if tt.file != "" {
				if err := os.WriteFile(dir+"/litefs.yml", []byte(tt.file), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			before := tree(t, dir)

			code, stdout, stderr := litefs{dir: dir, user: tt.user}.run(t, strings.Fields(tt.args)...)
			if code != 2 || stdout != "" {
				t.Errorf("exit code %d, standard output %q; want 2 and nothing", code, stdout)
			}
			want := strings.ReplaceAll(tt.want, "DIR", dir)
			if !strings.HasPrefix(stderr, want) || strings.Count(stderr, "\n") != 1 {
				t.Errorf("got  %s\nwant %s", stderr, want)
			}
			if after := tree(t, dir); after != before {
				t.Errorf("something was touched:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
}

// Every command has an example of itself, and every flag a word.
func TestHelp(t *testing.T) {
	code, usage, stderr := litefs{dir: t.TempDir()}.run(t, "help")
	if code != 0 || stderr != "" {
		t.Fatalf("litefs help: exit code %d, %q", code, stderr)
	}
	_, list, _ := strings.Cut(usage, "\nCommands:\n")
	list, _, _ = strings.Cut(list, "\n\n")
	commands := strings.Split(list, "\n")
	if len(commands) < 20 {
		t.Fatalf("the commands are %q", commands)
	}
	var machines []string // those that have -json
	for _, line := range commands {
		cmd := strings.Fields(line)[0]
		for _, args := range [][]string{{"help", cmd}, {cmd, "-h"}, {cmd, "--help"}} {
			code, stdout, stderr := litefs{dir: t.TempDir()}.run(t, args...)
			if code != 0 || stderr != "" || !strings.HasPrefix(stdout, "usage: litefs "+cmd) || !strings.Contains(stdout, "\nExample:\n  litefs "+cmd) {
				t.Errorf("%q: exit code %d\n%s%s", args, code, stdout, stderr)
			}
		}
		_, flags, _ := litefs{dir: t.TempDir()}.run(t, cmd, "-describe-flags")
		for _, flag := range strings.Split(strings.TrimSpace(flags), "\n") {
			f := strings.Split(flag, "\t")
			if f[0] == "json" {
				machines = append(machines, "`"+cmd+"`")
			}
			if flag != "" && (len(f) != 3 || len(f[2]) < 5) {
				t.Errorf("litefs %s -%s is not told in its help: %q", cmd, f[0], flag)
			}
		}
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Join(machines, ", "); !strings.Contains(strings.Join(strings.Fields(string(readme)), " "), "`-json` prints: "+want+".") {
		t.Errorf("the README does not say that -json prints: %s", want)
	}
}

// What a shell completes: commands, flags of a command, nothing of a program.
func TestCompletion(t *testing.T) {
	code, script, stderr := litefs{dir: t.TempDir()}.run(t, "completion", "bash")
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	for line, want := range map[string]string{
		"litefs st":                "status",
		"litefs status -w":         "-watch",
		"litefs mount -fuse":       "-fuse.debug",
		"litefs completion z":      "zsh",
		"litefs help exp":          "export",
		"litefs mount -- myapp -f": "",
	} {
		words := strings.Fields(line)
		cmd := exec.Command("bash", "-c", script+`
			COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _litefs; echo "${COMPREPLY[@]}"`, "bash")
		cmd.Args = append(cmd.Args, words...)
		out, err := cmd.CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("%s: completed to %q (%v), want %q", line, got, err, want)
		}
	}
	for shell, want := range map[string]string{"zsh": "'-watch[print again each second", "fish": "complete -c litefs -n '__fish_seen_subcommand_from status' -o watch -d"} {
		if _, script, _ := (litefs{dir: t.TempDir()}).run(t, "completion", shell); !strings.Contains(script, want) {
			t.Errorf("%s: %q is missing in\n%s", shell, want, script)
		}
	}
}

func TestVersion(t *testing.T) {
	for _, arg := range []string{"version", "-version", "--version"} {
		code, stdout, _ := litefs{dir: t.TempDir()}.run(t, arg)
		if code != 0 || !strings.HasPrefix(stdout, "litefs ") || strings.Count(stdout, "\n") != 1 {
			t.Errorf("%s: exit code %d, %q", arg, code, stdout)
		}
	}
}

func TestConfigPrintsWhatIsInForce(t *testing.T) {
	dir := t.TempDir()
	file := "mount-dir: $DB\nhttp: {token: hunter2}\nexec: app 'a $$b'\nlease: {candidate: \"${REGION == 'ord'}\"}\n"
	if err := os.WriteFile(dir+"/litefs.yml", []byte(file), 0o644); err != nil {
		t.Fatal(err)
	}
	l := litefs{dir: dir, env: []string{"DB=/mnt/db", "REGION=ord"}}
	code, stdout, stderr := l.run(t, "config", "-set", "log.format=json")
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	for _, want := range []string{"dir: /mnt/db\n", "dir: /mnt/.db.litefs\n", "addr: :20202\n", "candidate: true\n", "cmd: app 'a $$b'\n", "format: json\n"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("%q is missing in\n%s", want, stdout)
		}
	}
	_, text, stderr := l.run(t, "config", "-json")
	var values struct {
		FUSE  struct{ Dir string }
		Lease struct{ Candidate bool }
		Exec  []struct{ Cmd string }
	}
	if err := json.Unmarshal([]byte(text), &values); err != nil || stderr != "" {
		t.Fatalf("%v, %s", err, stderr)
	}
	if values.FUSE.Dir != "/mnt/db" || !values.Lease.Candidate || len(values.Exec) != 1 || values.Exec[0].Cmd != "app 'a $b'" {
		t.Errorf("as JSON: %+v", values)
	}
	if strings.Contains(stdout+text, "hunter2") {
		t.Errorf("the credential is shown:\n%s%s", stdout, text)
	}
}
