package config

import (
	"bytes"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// The page is what the code says.
func TestReference(t *testing.T) {
	page, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(page, Reference()) {
		t.Error("docs/configuration.md is not what Reference makes: run make docs")
	}
}

// What the page says of a key is what the parser does with it.
func TestDescriptions(t *testing.T) {
	list, err := os.ReadFile("testdata/litefs-0.5-keys.txt")
	if err != nil {
		t.Fatal(err)
	}
	theirs := strings.Fields(string(list))

	about := make(map[string]description)
	for _, d := range descriptions() {
		if _, twice := about[d.path]; twice {
			t.Errorf("%s is described twice", d.path)
		}
		about[d.path] = d
	}
	for _, k := range keyTable() {
		d, ok := about[k.path]
		delete(about, k.path)
		switch {
		case k.set == nil:
			if !slices.Contains(theirs, k.path) {
				t.Errorf("%s is refused, and no key of LiteFS 0.5", k.path)
			}
			continue
		case !ok:
			t.Errorf("%s is not described: add it to descriptions", k.path)
			continue
		case (d.since == since05) != slices.Contains(theirs, k.path):
			t.Errorf("%s: since %q, and LiteFS 0.5's list says otherwise", k.path, d.since)
		}
		checkDescription(t, d)
	}
	for path := range about {
		t.Errorf("%s is described, and no key", path)
	}
}

// checkDescription holds kind, default and example of a key against the parser.
func checkDescription(t *testing.T, d description) {
	t.Helper()
	parse := func(value string) (*Config, error) {
		return Parse([]byte(exampleLine(d.path, value)), Source{
			LookupEnv: func(string) (string, bool) { return "", false },
			ReadFile:  func(string) ([]byte, error) { return []byte("from-file\n"), nil },
			Hostname:  func() (string, error) { return "bert", nil },
			Set:       beside(d.path, value),
		})
	}
	if _, err := parse(d.example); err != nil {
		t.Errorf("%s: the example %q: %v", d.path, d.example, err)
	}
	if !strings.HasPrefix(d.def, "(") {
		without, err := parse("")
		with, errWith := parse(d.def)
		if err != nil || errWith != nil || !reflect.DeepEqual(with, without) {
			t.Errorf("%s: %q is not what is in force without it: %v, %v\nwith    %+v\nwithout %+v", d.path, d.def, err, errWith, with, without)
		}
	}
	words := d.kind.words()
	for _, word := range words {
		if _, err := parse(word); err != nil {
			t.Errorf("%s: %q: %v", d.path, word, err)
		}
	}
	refusal, checked := map[kind]string{
		kindBool:     "is neither true nor false",
		kindDuration: "is not a duration",
		kindSize:     "is not a size",
		kindNumber:   "is not a number",
		kindAddr:     "is not an address",
		kindURL:      "is not a URL",
		kindServer:   "is not a URL",
		kindRules:    "must be a list",
		kindPlaces:   "must be a list",
	}[d.kind]
	if _, err := parse("'%'"); (checked || words != nil) && (err == nil || !strings.Contains(err.Error(), refusal)) {
		t.Errorf("%s takes what is no %s: %v", d.path, d.kind, err)
	}
}

// beside are the keys that a key with this value wants.
func beside(path, value string) []string {
	token, here, follower := "http.token=nodes", "fuse.dir=/srv/app/data", "lease.advertise-url=http://127.0.0.1:1"
	consul := []string{here, "lease.type=consul", "lease.consul.url=http://c:8500"}
	etcd := []string{here, "lease.type=etcd", "lease.etcd.url=http://e:2379"}
	nats := []string{here, "lease.type=nats", "lease.nats.url=nats://n:4222"}
	kube := []string{here, "lease.type=kubernetes", "lease.kubernetes.url=https://k"}
	s3 := []string{here, "lease.type=s3", "lease.s3.url=s3://b"}
	proxy := []string{here, "proxy.addr=:1", "proxy.target=localhost:2", "proxy.db=a.db", "proxy.write=redirect", "proxy.redirect-url=http://p:1"}
	file, bucket := []string{here, "backup.type=file", "backup.path=/backup"}, []string{here, "backup.type=s3", "backup.url=s3://b"}
	set := map[string][]string{
		"backup.type file":      {here, file[2]},
		"backup.type s3":        {here, bucket[2]},
		"backup.path":           file,
		"backup.url":            bucket,
		"backup.endpoint":       bucket,
		"backup.region":         bucket,
		"backup.access-key":     append(bucket[:3:3], "backup.secret-key=s"),
		"backup.secret-key":     append(bucket[:3:3], "backup.access-key=a"),
		"backup.hold":           append(file[:3:3], "backup.hold-then=refuse"),
		"backup.hold-then":      append(file[:3:3], "backup.hold=1GB"),
		"backup.targets":        {here},
		"mount-dir":             {},
		"fuse.dir":              {},
		"http.addr":             {here, token},
		"http.admin-token":      {here, token},
		"http.admin-token-file": {here, token},
		"http.tls.cert":         {here, "http.tls.key=k"},
		"http.tls.key":          {here, "http.tls.cert=c"},
		"http.tls.ca":           {here, "http.tls.cert=c", "http.tls.key=k"},
		"lease.candidate":       {here, follower},
		"lease.databases":       {here, follower, "lease.candidate=false"},
		"lease.advertise-url":   {here, token},
		"lease.promote":         etcd,
		"lease.type consul":     {here, consul[2]},
		"lease.type etcd":       {here, etcd[2]},
		"lease.type nats":       {here, nats[2]},
		"lease.type s3":         {here, s3[2]},
		"lease.s3.access-key":   append(s3[:3:3], "lease.s3.secret-key=s"),
		"lease.s3.secret-key":   append(s3[:3:3], "lease.s3.access-key=a"),
		"lease.type kubernetes": {here, kube[2]},
		"proxy.write":           proxy[:4],
		"proxy.write redirect":  append(proxy[:4:4], proxy[5]),
	}
	if keys, ok := set[path+" "+value]; ok {
		return keys
	}
	keys, ok := set[path]
	switch {
	case ok:
	case strings.HasPrefix(path, "lease.etcd."):
		keys = etcd
	case path == "lease.kubernetes.url":
		keys = kube[:2]
	case strings.HasPrefix(path, "lease.kubernetes."):
		keys = kube
	case strings.HasPrefix(path, "lease.s3."):
		keys = s3
	case strings.HasPrefix(path, "lease.nats."):
		keys = nats
	case strings.HasPrefix(path, "lease.consul."):
		keys = consul
	case strings.HasPrefix(path, "consul."):
		keys = []string{here, "consul.url=http://c:8500"}
	case strings.HasPrefix(path, "backup."):
		keys = file
	case strings.HasPrefix(path, "proxy."):
		keys = proxy
	default:
		keys = []string{here}
	}
	// What the file says stands, and not what -set does.
	return slices.DeleteFunc(slices.Clone(keys), func(s string) bool { return strings.HasPrefix(s, path+"=") })
}

// words are the values of a oneOf; nil for another kind.
func (k kind) words() []string {
	list, ok := strings.CutPrefix(string(k), "one of ")
	if !ok {
		return nil
	}
	return strings.Split(strings.ReplaceAll(list, "`", ""), ", ")
}
