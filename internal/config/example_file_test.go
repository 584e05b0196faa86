package config

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

const exampleFile = "../../cmd/litefs/etc/litefs.yml"

// The example says every key, and what it says of the defaults is true.
func TestExampleFile(t *testing.T) {
	data, err := os.ReadFile(exampleFile)
	if err != nil {
		t.Fatal(err)
	}
	src := Source{
		LookupEnv: func(name string) (string, bool) {
			return "secret", name == "CLUSTER_SECRET" || strings.HasPrefix(name, "S3_")
		},
		ReadFile: func(string) ([]byte, error) { return []byte("secret\n"), nil },
		Hostname: func() (string, error) { return "bert", nil },
	}
	got, err := Parse(data, src)
	if err != nil {
		t.Fatal(err)
	}
	want, err := Default("/srv/app/data", src)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the example differs from the defaults\ngot  %+v\nwant %+v", got, want)
	}

	// Keys in comments are keys too.
	var names []string
	for _, k := range keyTable() {
		names = append(names, k.path[strings.LastIndexByte(k.path, '.')+1:])
	}
	commented := regexp.MustCompile(`(?m)^( *)# ((?:` + strings.Join(names, "|") + `): )`)
	// Those of the proxy need each other.
	from := strings.Index(string(data), "\nproxy:")
	to := from + strings.Index(string(data[from:]), "\n\nbackup:")
	proxy := strings.Replace(commented.ReplaceAllString(string(data[from:to]), "$1$2"), "write: forward", "write: redirect", 1)
	if cfg, err := Parse([]byte(string(data[:from])+proxy+string(data[to:])), src); err != nil || cfg.Proxy.IsZero() {
		t.Errorf("with all of the proxy in force: %v", err)
	}
	// So do those of the backup, but for the one that is for directories and one of those that say the same.
	end := to + strings.Index(string(data[to:]), "\n\n# A command")
	backup := commented.ReplaceAllString(strings.Replace(string(data[to:end]), "# path:", "# of file:", 1), "$1$2")
	backup = strings.Replace(strings.Replace(backup, "type: file\n", "type: s3\n", 1), "  key-command:", "  # key-command:", 1)
	if cfg, err := Parse([]byte(string(data[:to])+backup+string(data[end:])), src); err != nil || cfg.Backup.Target.SecretKey == "" {
		t.Errorf("with all of the backup in force: %v", err)
	}
	// The operator's token wants one of the nodes beside it.
	src.LookupEnv = func(name string) (string, bool) {
		values := map[string]string{"CLUSTER_SECRET": "secret", "OPERATOR_SECRET": "operator", TokenVariable: "nodes"}
		v, ok := values[name]
		return v, ok
	}
	for _, m := range commented.FindAllSubmatchIndex(data, -1) {
		if from < m[0] && m[0] < end {
			continue
		}
		text := string(data[:m[3]]) + string(data[m[4]:])
		if _, err := Parse([]byte(text), src); err != nil {
			t.Errorf("with %q in force: %v", data[m[4]:m[5]], err)
		}
	}
	for _, k := range keyTable() {
		name := k.path[strings.LastIndexByte(k.path, '.')+1:]
		if k.set != nil && k.path != "mount-dir" && !strings.HasPrefix(k.path, "consul.") && !regexp.MustCompile(`(?m)^ *(# )?`+name+`: `).Match(data) {
			t.Errorf("the example does not say %s", k.path)
		}
	}
}

// The README's table has every key that there is.
func TestReadme(t *testing.T) {
	data, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keyTable() {
		path := k.path
		if strings.HasPrefix(path, "consul.") {
			path = "consul.*" // LiteFS 0.1's group is one line of it
		}
		if k.set != nil && !strings.Contains(string(data), "`"+path+"`") {
			t.Errorf("the README does not name %s", k.path)
		}
	}
}

// The configuration in the manifests for Kubernetes is one.
func TestKubernetes(t *testing.T) {
	data, err := os.ReadFile("../../packaging/kubernetes/litefs.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(data), "  litefs.yml: |\n")
	text, _, end := strings.Cut(rest, "\n---\n")
	if !ok || !end {
		t.Fatal("no litefs.yml in the manifest")
	}
	text = strings.ReplaceAll("\n"+text, "\n    ", "\n")
	cfg, err := Parse([]byte(text), Source{
		LookupEnv: func(name string) (string, bool) { return "litefs-0", name == "HOSTNAME" },
		Hostname:  func() (string, error) { return "litefs-0", nil },
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if cfg.Lease.AdvertiseURL != "http://litefs-0.litefs:20202" || cfg.Lease.Type != LeaseEtcd {
		t.Errorf("%+v", cfg.Lease)
	}
}
