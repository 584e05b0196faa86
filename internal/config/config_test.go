package config_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/config"
)

// source is a world without this machine: fixed environment, no disk.
func source(env ...string) config.Source {
	return config.Source{
		LookupEnv: func(name string) (string, bool) {
			for i := 0; i < len(env); i += 2 {
				if env[i] == name {
					return env[i+1], true
				}
			}
			return "", false
		},
		ReadFile: func(name string) ([]byte, error) {
			if name == "/run/token" {
				return []byte("from-file\n"), nil
			}
			return nil, fmt.Errorf("open %s: %w", name, os.ErrNotExist)
		},
		Hostname: func() (string, error) { return "bert", nil },
	}
}

func mustParse(t *testing.T, text string, src config.Source) *config.Config {
	t.Helper()
	cfg, err := config.Parse([]byte(text), src)
	if err != nil {
		t.Fatalf("Parse: %v\n%s", err, text)
	}
	return cfg
}

// The lease servers of a file that names none.
var (
	consul = config.Consul{Key: "litefs/primary", TTL: 10 * time.Second, LockDelay: time.Second}
	etcd   = config.Etcd{Key: "litefs/primary", TTL: 10 * time.Second}
	s3     = config.S3{Key: "litefs/primary", TTL: 10 * time.Second, LockDelay: time.Second}
	kube   = config.Kubernetes{AccountDir: "/var/run/secrets/kubernetes.io/serviceaccount", Name: "litefs", TTL: 10 * time.Second, LockDelay: time.Second}
	nats   = config.NATS{Bucket: "litefs", Replicas: 1, Key: "litefs/primary", TTL: 10 * time.Second, LockDelay: time.Second}
)

func TestDefault(t *testing.T) {
	got, err := config.Default("/srv/app", source())
	if err != nil {
		t.Fatal(err)
	}
	want := &config.Config{
		Fuse:        config.Fuse{Dir: "/srv/app", Passthrough: true},
		Data:        config.Data{Dir: "/srv/.app.litefs", Retention: 10 * time.Minute, RetentionMonitorInterval: time.Minute},
		HTTP:        config.HTTP{Addr: "127.0.0.1:20202"},
		Lease:       config.Lease{Type: "static", Hostname: "bert", Candidate: true, ReconnectDelay: time.Second, RollForwardTimeout: 10 * time.Second, DemoteDelay: 10 * time.Second, Consul: consul, Etcd: etcd, NATS: nats, Kubernetes: kube, S3: s3},
		Log:         config.Log{Format: "text"},
		Trace:       config.Trace{Enabled: true, MaxSize: 64, MaxCount: 8, Compress: true},
		ExitOnError: true,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestParseEveryKey(t *testing.T) {
	got := mustParse(t, `
fuse:
  dir: /mnt/db
  allow-other: true
  debug: yes
  passthrough: off
  locks: daemon
data:
  dir: /var/lib/litefs
  compress: true
  retention: 1h
  retention-monitor-interval: 30s
  max-size: 2GB
http:
  addr: :20202
  token: s3cret
lease:
  type: static
  hostname: ernie
  advertise-url: http://10.0.0.1:20202/
  candidate: false
  reconnect-delay: 250ms
  demote-delay: 3s
  roll-forward-timeout: 3s
exec:
  - cmd: "migrate --all"
    if-candidate: true
    if-primary: yes
  - cmd: server -name 'two words'
    restart: on-failure
exit-on-error: false
skip-sync: true
strict-verify: true
log:
  format: json
  timestamp: true
  debug: true
`, source())
	want := &config.Config{
		Fuse:  config.Fuse{Dir: "/mnt/db", AllowOther: true, Debug: true, DaemonLocks: true},
		Data:  config.Data{Dir: "/var/lib/litefs", Retention: time.Hour, RetentionMonitorInterval: 30 * time.Second, MaxSize: 2 << 30},
		HTTP:  config.HTTP{Addr: ":20202", Token: "s3cret"},
		Lease: config.Lease{Type: "static", Hostname: "ernie", AdvertiseURL: "http://10.0.0.1:20202", ReconnectDelay: 250 * time.Millisecond, DemoteDelay: 3 * time.Second, RollForwardTimeout: 3 * time.Second, Consul: consul, Etcd: etcd, NATS: nats, Kubernetes: kube, S3: s3},
		Exec: []config.Command{
			{Argv: []string{"migrate", "--all"}, IfCandidate: true, IfPrimary: true, Restart: "never"},
			{Argv: []string{"server", "-name", "two words"}, Restart: "on-failure"},
		},
		SkipSync: true, StrictVerify: true,
		Log:   config.Log{Format: "json", Timestamp: true, Debug: true},
		Trace: config.Trace{Enabled: true, MaxSize: 64, MaxCount: 8, Compress: true},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// The file of LiteFS 0.1's tutorial, as it stands there.
func TestParseFirstForm(t *testing.T) {
	cfg := mustParse(t, `
mount-dir: "${DB_DIR}"

http:
  addr: ":${LITEFS_PORT}"

consul:
  url: "${CONSUL_URL}"
  advertise-url: "http://${HOSTNAME}:${LITEFS_PORT}"
`, source("DB_DIR", "/home/u/demo1", "LITEFS_PORT", "30303", "CONSUL_URL", "http://localhost:8500"))
	want := config.Lease{
		Type: "consul", Hostname: "bert", AdvertiseURL: "http://bert:30303", Candidate: true,
		ReconnectDelay: time.Second, RollForwardTimeout: 10 * time.Second, DemoteDelay: 10 * time.Second, Etcd: etcd, Consul: consul, NATS: nats, Kubernetes: kube, S3: s3,
	}
	want.Consul.URL = "http://localhost:8500"
	if cfg.Fuse.Dir != "/home/u/demo1" || cfg.HTTP.Addr != ":30303" || !reflect.DeepEqual(cfg.Lease, want) {
		t.Errorf("got  %+v %+v %+v\nwant %+v", cfg.Fuse, cfg.HTTP, cfg.Lease, want)
	}
}

// The example file of LiteFS 0.5, in the keys that are about the lease.
func TestParseLease(t *testing.T) {
	cfg := mustParse(t, `
fuse: {dir: /litefs}
data: {dir: /var/lib/litefs}
lease:
  type: "consul"
  candidate: ${FLY_REGION == 'ord'}
  promote: true
  demote-delay: 0s
  consul:
    url: "https://:t0ken@consul.example/app-1"
    key: "myapp/primary"
    ttl: "15s"
    lock-delay: 2s
`, source("FLY_REGION", "ord"))
	want := config.Lease{
		Type: "consul", Hostname: "bert", AdvertiseURL: "http://bert:20202", Candidate: true, Promote: true,
		ReconnectDelay: time.Second, RollForwardTimeout: 10 * time.Second, Etcd: etcd, NATS: nats, Kubernetes: kube, S3: s3,
		Consul: config.Consul{URL: "https://:t0ken@consul.example/app-1", Key: "myapp/primary", TTL: 15 * time.Second, LockDelay: 2 * time.Second},
	}
	if cfg.HTTP.Addr != ":20202" || !reflect.DeepEqual(cfg.Lease, want) {
		t.Errorf("got  %+v %+v\nwant %+v", cfg.HTTP, cfg.Lease, want)
	}
	text, err := cfg.YAML()
	if err != nil {
		t.Fatal(err)
	}
	if shown := fmt.Sprintf("%s %+v", text, cfg); strings.Contains(shown, "t0ken") || !strings.Contains(shown, "https://consul.example/app-1") {
		t.Errorf("the token is shown, or the URL is not:\n%s", shown)
	}
}

// Where other nodes reach this one, when the file does not say.
func TestAdvertiseURL(t *testing.T) {
	for http, want := range map[string]string{
		"":                             "http://bert:20202",
		"{addr: ':1'}":                 "http://bert:1",
		"{addr: '10.0.0.1:1'}":         "http://bert:1",
		"{addr: '127.0.0.1:1'}":        "http://127.0.0.1:1",
		"{addr: '[::1]:1'}":            "http://[::1]:1",
		"{tls: {cert: a, key: b}}":     "https://bert:20202",
		"{addr: ':1', token: whoisit}": "http://bert:1",
	} {
		cfg := mustParse(t, "fuse: {dir: /mnt/a}\nlease: {type: etcd, candidate: false, etcd: {url: 'http://e:1'}}\nhttp: "+http, source())
		if cfg.Lease.AdvertiseURL != want {
			t.Errorf("http: %s: got %s, want %s", http, cfg.Lease.AdvertiseURL, want)
		}
	}
}

func TestToken(t *testing.T) {
	for _, tt := range []struct {
		name, http string
		env        []string
		token      config.Secret
		addr       string
	}{
		{"none", "", nil, "", "127.0.0.1:20202"},
		{"key", "http: {token: abc}", nil, "abc", ":20202"},
		{"file", "http: {token-file: /run/token}", nil, "from-file", ":20202"},
		{"environment", "", []string{"LITEFS_TOKEN", "xyz"}, "xyz", ":20202"},
		{"key before environment", "http: {token: abc}", []string{"LITEFS_TOKEN", "xyz"}, "abc", ":20202"},
		{"address stays", "http: {token: abc, addr: 'localhost:1'}", nil, "abc", "localhost:1"},
		{"expanded once", "http: {token: $T}", []string{"T", "a$B"}, "a$B", ":20202"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := mustParse(t, "fuse: {dir: /mnt/a}\n"+tt.http, source(tt.env...))
			if cfg.HTTP.Token != tt.token || cfg.HTTP.Addr != tt.addr {
				t.Errorf("token %q addr %q, want %q %q", string(cfg.HTTP.Token), cfg.HTTP.Addr, string(tt.token), tt.addr)
			}
		})
	}
}

func TestSecretIsNotShown(t *testing.T) {
	cfg := mustParse(t, "fuse: {dir: /mnt/a}\nhttp: {token: hunter2}", source())
	var logged strings.Builder
	slog.New(slog.NewTextHandler(&logged, nil)).Info("m", "token", cfg.HTTP.Token)
	text, err := cfg.YAML()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{fmt.Sprint(cfg), fmt.Sprintf("%+v", cfg), fmt.Sprintf("%#v", cfg), logged.String(), string(text)} {
		if strings.Contains(s, "hunter2") {
			t.Errorf("the token is shown: %s", s)
		}
	}
}

func TestErrors(t *testing.T) {
	const dir = "fuse: {dir: /mnt/a}\n"
	for _, tt := range []struct{ name, text, want string }{
		{"unknown key", "fuse:\n  dri: /mnt/a\n", `f.yml: unknown key "fuse.dri" at line 2: did you mean "fuse.dir"?`},
		{"unknown group", "fuze:\n  dir: /mnt/a\n", `f.yml: unknown key "fuze" at line 1: did you mean "fuse"?`},
		{"wrong depth", dir + "addr: ':1'\n", `f.yml: unknown key "addr" at line 2: did you mean "http.addr"?`},
		{"too deep", "fuse:\n  dir:\n    x: 1\n", "f.yml: fuse.dir at line 2: want one value, not a list or a group of keys"},
		{"twice", "fuse:\n  dir: /a\n  dir: /b\n", "f.yml: fuse.dir at line 3 is given twice: the first is at line 2"},
		{"both forms", "mount-dir: /a\nfuse:\n  dir: /b\n", "f.yml: mount-dir at line 1 and fuse.dir at line 3 say the same: keep one"},
		{"both tokens", dir + "http:\n  token: a\n  token-file: /run/token\n", "f.yml: http.token at line 3 and http.token-file at line 4 say the same: keep one"},
		{"group is scalar", "fuse: 3\n", `f.yml: fuse at line 1: want "key: value" lines`},
		{"root is list", "- a\n", `f.yml: line 1: want "key: value" lines`},
		{"second document", dir + "---\nfuse: {dir: /b}\n", "f.yml: a second document begins at line 2: one file, one node"},

		{"proxy target", dir + "proxy:\n  addr: :80\n  target: x\n", "f.yml: proxy.target at line 4: \"x\" is not an address like 127.0.0.1:20202"},
		{"proxy without target", dir + "proxy:\n  addr: :80\n", "f.yml: proxy.target is missing: name the host:port of the application, or remove the other keys of proxy"},
		{"proxy without addr", dir + "proxy:\n  target: :80\n", "f.yml: proxy.addr is missing: name the host:port that clients of the application connect to"},
		{"proxy without db", dir + "proxy:\n  addr: :80\n  target: :81\n", "f.yml: proxy.db is missing: name the databases of the application, so that its clients read what they have written"},
		{"proxy write", dir + "proxy:\n  write: carefully\n", "f.yml: proxy.write at line 3: \"carefully\" is neither forward, fly-replay nor redirect"},
		{"proxy path", dir + "proxy:\n  passthrough: [\"/a\", \"b\"]\n", "f.yml: proxy.passthrough at line 3: \"b\" begins neither with / nor with *: it matches no path"},
		{"backup type", dir + "backup: {type: tape}\n", `f.yml: backup.type at line 2: "tape" is neither file nor s3`},
		{"backup of the cloud", dir + "backup: {type: litefs-cloud}\n", `f.yml: backup.type at line 2: "litefs-cloud" is for LiteFS Cloud, which has ended; use backup.type: s3 or file`},
		{"backup token", dir + "backup: {auth-token: x}\n", "f.yml: backup.auth-token at line 2: is for LiteFS Cloud, which has ended; use backup.type: s3 or file"},
		{"backup without path", dir + "backup: {type: file}\n", "f.yml: backup: path is missing: name the directory of the archive"},
		{"backup without type", dir + "backup: {path: /srv/archive}\n", "f.yml: backup: type is missing: file or s3"},
		{"backup in the data", "fuse: {dir: /mnt/a}\ndata: {dir: /data}\nbackup: {type: file, path: /data/x}\n", "f.yml: backup: path /data/x lies in data.dir or fuse.dir: an archive belongs on another disk"},
		{"backup url", dir + "backup: {type: s3, url: 'https://bucket'}\n", `f.yml: backup.url at line 2: "https://bucket" is not of the form s3://bucket/prefix`},
		{"backup half a key", dir + "backup: {type: s3, url: 's3://b', access-key: x}\n", "f.yml: backup: access-key and secret-key come together: only one of them is set"},
		{"backup target", dir + "backup:\n  targets:\n    - {type: file, pth: /x}\n", `f.yml: backup.targets at line 3: unknown key "pth" at line 4: a target has type, path, url, endpoint, region, access-key, secret-key, hold and hold-then`},
		{"backup hold", dir + "backup:\n  type: file\n  path: /x\n  hold: 1GB\n", `f.yml: backup: hold-then is missing: say what happens beyond hold: refuse commits, or give-up the archive`},
		{"backup key file", dir + "backup: {type: file, path: /x, key-file: /nowhere}\n", "f.yml: backup.key-file at line 2: open /nowhere: file does not exist"},
		{"backup no key", dir + "backup: {type: file, path: /x, key-file: ''}\n", "f.yml: backup.key-file at line 2: is empty: name the file that holds the keys"},
		{"backup two keys", dir + "backup: {type: file, path: /x, key-file: /run/token, key-command: cat}\n", "f.yml: backup.key-file and backup.key-command say the same: keep one"},
		{"log key twice", "fuse: {dir: /mnt/a}\ndata: {dir: /data, log-key-file: /run/token, log-key-command: cat}\n", "f.yml: data.log-key-file and data.log-key-command say the same: keep one"},
		{"backup twice", dir + "backup:\n  type: file\n  path: /x\n  targets: [{type: file, path: /x}]\n", "f.yml: backup: /x is given twice as a target"},
		{"trace size", dir + "tracing: {max-size: 64MB}\n", `f.yml: tracing.max-size at line 2: "64MB" is not a number from 1 to 1048576`},
		{"trace count", dir + "tracing: {max-count: 0}\n", `f.yml: tracing.max-count at line 2: "0" is not a number from 1 to 10000`},
		{"no consul", dir + "lease: {type: consul}\n", "f.yml: lease.consul.url is missing: where is the server? For one on this machine: http://127.0.0.1:8500"},
		{"no etcd", dir + "lease: {type: etcd, consul: {key: x}}\n", "f.yml: lease.etcd.url is missing: where is the server? For one on this machine: http://127.0.0.1:2379"},
		{"server of another type", dir + "lease: {consul: {url: 'http://a'}}\n", "f.yml: lease.consul.url has no use with lease.type: static: set lease.type: consul, or remove it"},
		{"both consuls", dir + "lease:\n  consul: {url: 'http://a'}\nconsul:\n  url: 'http://a'\n", "f.yml: consul.url at line 5 and lease.consul.url at line 3 say the same: keep one"},
		{"consul of 0.1 and etcd", dir + "lease:\n  type: etcd\nconsul:\n  url: 'http://a'\n", "f.yml: lease.type at line 3 is etcd and consul.url at line 5 is for consul: keep one"},
		{"consul of 0.1 without its server", dir + "consul: {advertise-url: 'http://a:1'}\n", "f.yml: lease.consul.url is missing: where is the server? For one on this machine: http://127.0.0.1:8500"},
		{"consul url", dir + "consul: {url: 'pass@word:8500'}\n", "f.yml: consul.url at line 2: is not a URL like http://127.0.0.1:8500"},
		{"consul ttl", dir + "consul: {ttl: 10ms}\n", `f.yml: consul.ttl at line 2: "10ms" must be from 1s to 24h0m0s`},
		{"lock-delay", dir + "lease: {consul: {lock-delay: 2m}}\n", `f.yml: lease.consul.lock-delay at line 2: "2m" must be from 1ms to 1m0s`},
		{"etcd ttl", dir + "lease: {etcd: {ttl: 2500ms}}\n", `f.yml: lease.etcd.ttl at line 2: "2500ms": etcd counts whole seconds`},
		{"no nats", dir + "lease: {type: nats}\n", "f.yml: lease.nats.url is missing: where is the server? For one on this machine: nats://127.0.0.1:4222"},
		{"nats of http", dir + "lease: {nats: {url: 'nats://a,http://u:pw@b'}}\n", "f.yml: lease.nats.url at line 2: is not a URL like nats://127.0.0.1:4222"},
		{"nats bucket", dir + "lease: {nats: {bucket: a.b}}\n", `f.yml: lease.nats.bucket at line 2: "a.b" is no name of a bucket: use letters, digits, - and _`},
		{"kubernetes outside", dir + "lease: {type: kubernetes}\n", "f.yml: lease.kubernetes.url is missing: this is no pod of Kubernetes, where KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT say where the API server is"},
		{"kubernetes with a password", dir + "lease: {kubernetes: {url: 'https://u:pw@k'}}\n", "f.yml: lease.kubernetes.url at line 2: must not carry a user or password: the credential is the service account's token"},
		{"kubernetes name", dir + "lease: {kubernetes: {name: A}}\n", `f.yml: lease.kubernetes.name at line 2: "A" is no name of a Lease: use a-z and 0-9, and - or . between`},
		{"no bucket", dir + "lease: {type: s3}\n", "f.yml: lease.s3.url is missing: where is the server? For one on this machine: s3://bucket/prefix, with lease.s3.endpoint: http://127.0.0.1:7070"},
		{"bucket of http", dir + "lease: {s3: {url: 'https://k:pw@b'}}\n", "f.yml: lease.s3.url at line 2: is not of the form s3://bucket/prefix"},
		{"endpoint with a password", dir + "lease: {s3: {endpoint: 'https://k:pw@b'}}\n", "f.yml: lease.s3.endpoint at line 2: must not carry a user or password: the credential is lease.s3.access-key and secret-key"},
		{"half a key of s3", dir + "lease: {s3: {access-key: k}}\n", "f.yml: lease.s3.access-key and lease.s3.secret-key come together: only one of them is set"},
		{"lease key", dir + "lease: {etcd: {key: '/'}}\n", `f.yml: lease.etcd.key at line 2: "/" is no key like litefs/primary`},
		{"promote", dir + "lease: {promote: true}\n", "f.yml: lease.promote has no use with lease.type: static, where the file says who is primary: remove it, or use another type"},
		{"port of chance", dir + "http: {addr: ':0'}\nlease: {type: etcd, etcd: {url: 'http://a:1'}}\n", "f.yml: lease.advertise-url is missing: with http.addr's port 0 nobody knows where this node will be reached"},
		{"filter of a candidate", dir + "lease: {databases: [a]}\n", "f.yml: lease.databases is for nodes with lease.candidate: false; a candidate has all databases"},
		{"bad pattern", dir + "lease: {databases: ['[']}\n", `f.yml: lease.databases at line 2: "[" is no pattern: syntax error in pattern`},
		{"durability is no list", dir + "durability: quorum\n", `f.yml: durability at line 2: must be a list, like - {match: "orders*.db", level: quorum, n: 1}`},
		{"durability without match", dir + "durability: [{level: quorum}]\n", `f.yml: durability at line 2: line 2: the rule has no match: name the databases, like "*.db"`},
		{"level", dir + "durability: [{match: a, level: sync}]\n", `f.yml: durability at line 2: line 2: level "sync" is none of async, quorum, max-lag and archive`},
		{"no lag", dir + "durability: [{match: a, level: max-lag}]\n", `f.yml: durability at line 2: line 2: level max-lag has no lag: how far the best replica may be behind, like lag: 2s`},
		{"no archive", dir + "durability: [{match: a, level: archive}]\n", `f.yml: durability: level archive needs a place for archives: set backup.type, or use another level`},
		{"archive with n", dir + "durability: [{match: a, level: archive, n: 1}]\n", `f.yml: durability at line 2: line 2: n is not for level archive`},
		{"lag too short", dir + "durability: [{match: a, level: max-lag, lag: 1ms}]\n", `f.yml: durability at line 2: line 2: lag: 1ms is not from 100ms to 24h`},
		{"lag of a quorum", dir + "durability: [{match: a, level: quorum, lag: 1s}]\n", `f.yml: durability at line 2: line 2: lag is not for level quorum`},
		{"quorum of none", dir + "durability: [{match: a, level: quorum, n: 0}]\n", `f.yml: durability at line 2: line 2: n: "0" is no number from 1 to 16`},
		{"ack", dir + "durability: [{match: a, level: quorum, ack: maybe}]\n", `f.yml: durability at line 2: line 2: ack: "maybe" is neither durable nor memory`},
		{"async with n", dir + "durability: [{match: a, level: async, n: 1}]\n", `f.yml: durability at line 2: line 2: n is not for level async`},
		{"key of a rule", dir + "durability: [{match: a, level: async, x: 1}]\n", `f.yml: durability at line 2: unknown key "x" at line 2: a rule has match, level, n, ack, timeout and lag`},
		{"quorum and guardian", "fuse: {dir: /srv/app, guardian: true}\ndurability: [{match: a, level: quorum}]\n", "f.yml: durability: levels quorum and archive do not go together with fuse.guardian: true yet: remove one of them"},
		{"locks", "fuse: {dir: /srv/app, locks: both}\n", `f.yml: fuse.locks at line 1: "both" is neither kernel nor daemon`},
		{"locks and guardian", "fuse: {dir: /srv/app, guardian: true, locks: daemon}\n", "f.yml: fuse.locks: daemon and fuse.guardian: true do not go together: the locks that litefs keeps end with it, and a guardian would go on without them; remove one of them"},
		{"two mounts and locks", "fuse: {dir: /srv/app, locks: daemon, forward-dir: /srv/b}\n", "f.yml: fuse.forward-dir is for fuse.locks: kernel: with daemon fuse.dir itself is what it would be; remove one of them"},
		{"two mounts and guardian", "fuse: {dir: /srv/app, guardian: true, forward-dir: /srv/b}\n", "f.yml: fuse.forward-dir and fuse.guardian: true do not go together: the locks that litefs keeps end with it, and a guardian would go on without them; remove one of them"},
		{"two mounts and no passthrough", "fuse: {dir: /srv/app, passthrough: off, forward-dir: /srv/b}\n", "f.yml: fuse.forward-dir needs fuse.passthrough: auto: without it the kernel keeps pages of a file twice, once for each mount; remove one of them"},
		{"one mount in the other", "fuse: {dir: /srv/app, forward-dir: /srv/app/b}\n", "f.yml: fuse.forward-dir /srv/app/b and fuse.dir /srv/app are one, or one lies inside the other: give each a directory of its own"},
		{"mount in the data", "fuse: {dir: /srv/app, forward-dir: /srv/.app.litefs}\n", "f.yml: fuse.forward-dir /srv/.app.litefs and data.dir /srv/.app.litefs are one, or one lies inside the other: give each a directory of its own"},
		{"compress", dir + "data: {compress: false}\n", "f.yml: data.compress at line 2: a log without compression is not built yet; remove the key"},
		{"halt pattern", dir + "replica: {halt-databases: ['[']}\n", `f.yml: replica.halt-databases at line 2: "[" is no pattern: syntax error in pattern`},
		{"restart", dir + "exec:\n  - cmd: a\n    restart: often\n", `f.yml: exec at line 2: line 3: restart: "often" is neither never, on-failure nor always`},
		{"restart of the first", dir + "exec:\n  - cmd: a\n    restart: always\n  - cmd: b\n", "f.yml: exec at line 2: line 3: restart is for the last command of the list: those before it run to their end"},
		{"key of an item", dir + "exec:\n  - cmd: a\n    when: now\n", "f.yml: exec at line 2: line 3: when: unknown key: an item has cmd, if-candidate, if-primary and restart"},
		{"item's key twice", dir + "exec:\n  - cmd: a\n    cmd: b\n", "f.yml: exec at line 2: line 3: cmd at line 4 is given twice"},

		{"lease type", dir + "lease: {type: raft}\n", `f.yml: lease.type at line 2: "raft" is not a lease type: use consul, etcd, nats, kubernetes, s3 or static`},
		{"bool", dir + "skip-sync: maybe\n", `f.yml: skip-sync at line 2: "maybe" is neither true nor false`},
		{"duration", dir + "data: {retention: 10}\n", `f.yml: data.retention at line 2: "10" is not a duration like 10m or 1m30s`},
		{"negative", dir + "data: {retention: -1s}\n", `f.yml: data.retention at line 2: "-1s" is negative`},
		{"half of tls", dir + "http: {tls: {cert: a.pem}}\n", `f.yml: http.tls needs both cert and key: every node has a certificate`},
		{"tls in the clear", dir + "http: {tls: {cert: a.pem, key: b.pem}}\nlease: {advertise-url: 'http://127.0.0.1:1'}\n", `f.yml: lease.advertise-url http://127.0.0.1:1 is in the clear and http.tls is set: write https`},
		{"staleness", dir + "replica: {max-staleness: 1s}\n", `f.yml: replica.max-staleness at line 2: 1s is less than 2s, in which a replica hears of its primary`},
		{"then", dir + "replica: {max-staleness: 9s, then: wait}\n", `f.yml: replica.then at line 2: "wait" is neither refuse nor serve`},
		{"neither", dir + "replica: {open: no}\n", `f.yml: replica.open at line 2: "no" is neither writable nor readonly`},
		{"spinning", dir + "lease: {reconnect-delay: 0s}\n", `f.yml: lease.reconnect-delay at line 2: "0s" must be more than 0`},
		{"size", dir + "data: {max-size: 1XB}\n", `f.yml: data.max-size at line 2: "1XB" is not a size like 512MB or 10GB`},
		{"passthrough", "fuse: {dir: /mnt/a, passthrough: on}\n", `f.yml: fuse.passthrough at line 1: "on" is neither auto nor off`},
		{"log format", dir + "log: {format: xml}\n", `f.yml: log.format at line 2: "xml" is neither text nor json`},
		{"addr", dir + "http: {addr: '20202'}\n", `f.yml: http.addr at line 2: "20202" is not an address like 127.0.0.1:20202`},
		{"port", dir + "http: {addr: 'localhost:http'}\n", `f.yml: http.addr at line 2: "localhost:http": the port "http" is not a number from 0 to 65535`},
		{"password in URL", dir + "lease: {advertise-url: 'http://u:pw@a:1'}\n", "f.yml: lease.advertise-url at line 2: must not carry a user or password: the credential is http.token"},
		{"quote", dir + "exec: \"a 'b\"\n", "f.yml: exec at line 2: a ' without its second one"},
		{"no cmd", dir + "exec:\n  - {}\n", "f.yml: exec at line 2: line 3: the item has no cmd"},
		{"item form", dir + "exec: [a]\n", `f.yml: exec at line 2: line 2: each item must be of the form - cmd: "program arguments"`},
		{"empty token", dir + "http: {token: ''}\n", "f.yml: http.token at line 2: is empty: draw one with: head -c 32 /dev/urandom | base64"},
		{"token with space", dir + "http: {token: 'a b'}\n", "f.yml: http.token at line 2: must be printable ASCII without spaces"},
		{"token file", dir + "http: {token-file: /nowhere}\n", "f.yml: http.token-file at line 2: open /nowhere: file does not exist"},
		{"unset variable", "fuse:\n  dir: $NOPE/db\n", "f.yml: fuse.dir at line 2: the environment variable NOPE is not set (write $$ for a dollar sign)"},
		{"open brace", "fuse:\n  dir: '${X'\n", "f.yml: fuse.dir at line 2: ${ without its }: write $$ for a dollar sign"},

		{"no mount", "data: {dir: /x}\n", "f.yml: fuse.dir is missing: name the directory in which the databases shall be seen"},
		{"empty file", "", "f.yml: fuse.dir is missing: name the directory in which the databases shall be seen"},
		{"root mount", "fuse: {dir: /}\n", "f.yml: fuse.dir must not be /"},
		{"same dir", dir + "data: {dir: /mnt/a/}\n", "f.yml: data.dir and fuse.dir are the same directory (/mnt/a): give each its own"},
		{"data in mount", dir + "data: {dir: /mnt/a/b}\n", "f.yml: data.dir /mnt/a/b lies inside fuse.dir /mnt/a, which would hide it: move it beside"},
		{"mount in data", dir + "data: {dir: /mnt}\n", "f.yml: fuse.dir /mnt/a lies inside data.dir /mnt: move it beside"},
		{"replica of nobody", dir + "lease: {candidate: false}\n", "f.yml: lease.advertise-url is missing: with lease.candidate: false it must be the URL of the primary, like http://10.0.0.1:20202"},
		{"open port", dir + "http: {addr: ':20202'}\n", "f.yml: http.addr :20202 is reachable from other machines and there is no http.token: set the same http.token (or http.token-file, or LITEFS_TOKEN) on every node, or use http.addr: 127.0.0.1:20202"},
		{"open name", dir + "http: {addr: 'bert:20202'}\n", "f.yml: http.addr bert:20202 is reachable from other machines and there is no http.token: set the same http.token (or http.token-file, or LITEFS_TOKEN) on every node, or use http.addr: 127.0.0.1:20202"},
		{"open URL", dir + "lease: {advertise-url: 'http://10.0.0.1:1'}\n", "f.yml: lease.advertise-url http://10.0.0.1:1 is on another machine and there is no http.token: set the same http.token (or http.token-file, or LITEFS_TOKEN) on every node"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			src := source()
			src.Name = "f.yml"
			_, err := config.Parse([]byte(tt.text), src)
			if err == nil {
				t.Fatal("no error")
			}
			if !errors.Is(err, config.ErrInvalid) {
				t.Errorf("%v does not match ErrInvalid", err)
			}
			if err.Error() != tt.want {
				t.Errorf("got  %s\nwant %s", err, tt.want)
			}
		})
	}
}

func TestSyntaxErrorIsOneLine(t *testing.T) {
	for _, text := range []string{"fuse:\n\tdir: a\n", "fuse: {dir: ${X}}\n", "a: b: c\n", "\x00", "fuse: *x\n", "&a [*a]\n"} {
		_, err := config.Parse([]byte(text), source())
		if err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: got %v, want one line", text, err)
		}
	}
}

func TestSyntaxErrorSaysTheLine(t *testing.T) {
	for text, want := range map[string]string{
		"fuse:\n\tdir: a\n":                       "not valid YAML at line 2: ",
		"mount-dir: /a\nlease: {candidate: ${X}}": "put ${...} in quotes)",
	} {
		_, err := config.Parse([]byte(text), source("X", "true"))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

func TestSet(t *testing.T) {
	src := source()
	src.Set = []string{"lease.candidate=false", "lease.advertise-url=http://127.0.0.1:1", "data.dir=/data/$HOME"}
	cfg := mustParse(t, "fuse: {dir: /mnt/a}\nlease: {candidate: true}", src)
	if cfg.Lease.Hostname != "127.0.0.1" {
		t.Errorf("a replica calls the primary %q, want the host of its URL", cfg.Lease.Hostname)
	}
	if cfg.Lease.Candidate || cfg.Lease.AdvertiseURL != "http://127.0.0.1:1" || cfg.Data.Dir != "/data/$HOME" {
		t.Errorf("got %+v %+v", cfg.Lease, cfg.Data)
	}

	for set, want := range map[string]string{
		"http.addr":        "-set http.addr: want KEY=VALUE",
		"http.adr=1":       `-set: unknown key "http.adr": did you mean "http.addr"?`,
		"backup.cluster=1": "-set backup.cluster: is for LiteFS Cloud, which has ended; use backup.type: s3 or file",
		"log.format=xml":   `-set log.format: "xml" is neither text nor json`,
	} {
		src.Set = []string{set}
		if _, err := config.Default("/mnt/a", src); err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %s", set, err, want)
		}
	}
}

func TestNoExpand(t *testing.T) {
	src := source("X", "1")
	src.NoExpand = true
	if cfg := mustParse(t, "fuse: {dir: '/mnt/${X}'}", src); cfg.Fuse.Dir != "/mnt/${X}" {
		t.Errorf("got %s", cfg.Fuse.Dir)
	}
}

// Directories are compared by what they are, not by how they are written.
func TestSymbolicLinks(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	mount := filepath.Join(dir, "mnt")
	if err := os.Mkdir(mount, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(mount, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	src := source()
	src.Set = []string{"data.dir=" + filepath.Join(dir, "link", "new", "data")}
	if _, err := config.Default(mount, src); err == nil || !strings.Contains(err.Error(), "lies inside fuse.dir") {
		t.Errorf("got %v", err)
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.yml"), filepath.Join(dir, "b.yml")
	if _, err := config.Find([]string{a, b}); !errors.Is(err, config.ErrInvalid) {
		t.Errorf("got %v, want ErrInvalid", err)
	}
	if err := os.WriteFile(b, []byte("fuse: {dir: /mnt/a}"), 0o644); err != nil {
		t.Fatal(err)
	}
	path, err := config.Find([]string{a, b})
	if err != nil || path != b {
		t.Errorf("got %q, %v, want %q", path, err, b)
	}
	if got := config.SearchPath("/root"); !reflect.DeepEqual(got, []string{"litefs.yml", "/root/litefs.yml", "/etc/litefs.yml"}) {
		t.Errorf("got %q", got)
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "litefs.yml")
	if _, err := config.Load(path, config.Source{}); !errors.Is(err, config.ErrInvalid) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want ErrInvalid and ErrNotExist", err)
	}
	if err := os.WriteFile(path, []byte("fuse: {dir: /mnt/a}\nx: 1"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(path, config.Source{}); err == nil || !strings.HasPrefix(err.Error(), path+": unknown key") {
		t.Errorf("got %v", err)
	}
}

func TestDurabilityRoundTrip(t *testing.T) {
	want := mustParse(t, "fuse: {dir: /mnt/a}\nbackup: {type: file, path: /srv/archive}\ndurability:\n  - {match: 'a*', level: quorum, n: 2, ack: memory, timeout: 90s}\n  - match: b\n    level: quorum\n  - {match: c, level: max-lag, lag: 2s}\n  - {match: d, level: archive, timeout: 20s}\n  - {match: '*', level: async}\n", source())
	rules := []config.DurabilityRule{
		{Match: "a*", Level: config.LevelQuorum, N: 2, Memory: true, Timeout: 90 * time.Second},
		{Match: "b", Level: config.LevelQuorum, N: 1, Timeout: 5 * time.Second},
		{Match: "c", Level: config.LevelMaxLag, Lag: 2 * time.Second},
		{Match: "d", Level: config.LevelArchive, Timeout: 20 * time.Second},
		{Match: "*", Level: config.LevelAsync},
	}
	if !reflect.DeepEqual(want.Durability, rules) {
		t.Fatalf("%+v", want.Durability)
	}
	text, err := want.YAML()
	if err != nil {
		t.Fatal(err)
	}
	if got := mustParse(t, string(text), source()); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v\n%s", got, want, text)
	}
}

// A pod knows where its API server is, and its namespace.
func TestKubernetesPod(t *testing.T) {
	src := source("KUBERNETES_SERVICE_HOST", "fd00::1", "KUBERNETES_SERVICE_PORT", "443")
	src.ReadFile = func(name string) ([]byte, error) {
		if name != "/var/run/secrets/kubernetes.io/serviceaccount/namespace" {
			return nil, os.ErrNotExist
		}
		return []byte("apps\n"), nil
	}
	cfg := mustParse(t, "fuse: {dir: /mnt/a}\nlease: {type: kubernetes}\n", src)
	if k := cfg.Lease.Kubernetes; k.URL != "https://[fd00::1]:443" || k.Namespace != "apps" {
		t.Errorf("got %+v", k)
	}
}

// What YAML prints is read back as the same configuration.
func TestYAMLRoundTrip(t *testing.T) {
	src := source("LITEFS_TOKEN", "t")
	for _, set := range [][]string{
		nil,
		{"fuse.dir=/mnt/$x: y #z", "fuse.passthrough=off", "data.max-size=1500K", "data.retention=90m"},
		{"lease.candidate=false", "lease.advertise-url=http://[::1]:5", "http.addr=[::1]:0"},
		{"lease.type=consul", "lease.consul.url=https://c.example/p", "lease.consul.key=a$b", "lease.promote=true"},
		{"lease.type=kubernetes", "lease.kubernetes.url=https://k:6443/x/", "lease.kubernetes.namespace=apps", "lease.kubernetes.name=a.b"},
		{"lease.type=s3", "lease.s3.url=s3://b/p", "lease.s3.endpoint=https://s:7070/", "lease.s3.region=r", "lease.s3.ttl=20s"},
		{"lease.type=nats", "lease.nats.url=nats://e:4222,tls://e", "lease.nats.credentials=/c", "lease.nats.replicas=3", "lease.nats.key=k"},
		{"lease.type=etcd", "lease.etcd.url=http://e:2379", "lease.etcd.ttl=3s", "lease.candidate=false", "lease.databases=a"},
		{`exec=sh -c 'echo "$HOME" $$'`, "lease.hostname=true", "log.format=json", "exit-on-error=no"},
	} {
		src.Set = set
		want, err := config.Default("/mnt/a", src)
		if err != nil {
			t.Fatal(err)
		}
		text, err := want.YAML()
		if err != nil {
			t.Fatal(err)
		}
		got := mustParse(t, string(text), source("LITEFS_TOKEN", "t"))
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v\n%s", got, want, text)
		}
	}
}
