package config

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// Backup says where the archive is kept, and how. The zero value of Target with no Targets is no archive.
type Backup struct {
	Target  BackupTarget   // of the keys right below backup; Type "": none
	Targets []BackupTarget // of backup.targets

	Seed bool // an empty data directory begins with what the archive has

	Interval         time.Duration // between two moments of a database; > 0
	SnapshotInterval time.Duration // > 0
	Retention        time.Duration // moments older than this may go; 0: none goes for its age
	RetentionCount   int           // snapshots of a database at most; 0: no limit
	RetentionSize    int64         // bytes of a database's history; 0: no limit
	MaxRequests      int           // a second to each target; > 0
	MaxBandwidth     int64         // bytes a second to each target; 0: no limit

	// Keys encrypt the archive (package seal); "": KeyCommand prints them. Both "": it is not encrypted.
	Keys       Secret
	KeyCommand string
}

// BackupKeyVariable is the environment variable that holds keys of the archive.
const BackupKeyVariable = "LITEFS_BACKUP_KEY"

// All returns every target.
func (b Backup) All() []BackupTarget {
	if b.Target.Type == "" {
		return b.Targets
	}
	return append([]BackupTarget{b.Target}, b.Targets...)
}

// Types of a backup.
const (
	BackupFile = "file"
	BackupS3   = "s3"
)

// BackupTarget is one place.
type BackupTarget struct {
	Type string // BackupFile or BackupS3

	Path string // of BackupFile: absolute

	URL       string // of BackupS3: s3://bucket or s3://bucket/prefix
	Endpoint  string // of the service; "": AWS's
	Region    string // "": the service's default
	AccessKey string // "": AWS_ACCESS_KEY_ID
	SecretKey Secret // "": AWS_SECRET_ACCESS_KEY

	Hold     int64  // bytes that the logs of the node keep for it; 0: no bound
	HoldThen string // HoldRefuse or HoldGiveUp, with Hold
}

// What happens when a place lacks more than Hold.
const (
	HoldRefuse = "refuse"
	HoldGiveUp = "give-up"
)

// Bucket takes the URL apart.
func (t BackupTarget) Bucket() (bucket, prefix string) {
	bucket, prefix, _ = strings.Cut(strings.TrimPrefix(t.URL, "s3://"), "/")
	return bucket, strings.Trim(prefix, "/")
}

// noCloud says why keys of a service that has ended are refused.
const noCloud = "is for LiteFS Cloud, which has ended; use backup.type: s3 or file"

func backupDefaults() Backup {
	return Backup{Interval: time.Second, SnapshotInterval: 24 * time.Hour, Retention: 7 * 24 * time.Hour, MaxRequests: 5}
}

// targetKeys are the keys of a target, with what each sets.
var targetKeys = []struct {
	name string
	set  func(t *BackupTarget, s string) error
}{
	{"type", func(t *BackupTarget, s string) error {
		switch t.Type = s; s {
		case BackupFile, BackupS3:
			return nil
		case "litefs-cloud":
			return errors.New(strconv.Quote(s) + " " + noCloud)
		}
		return fmt.Errorf("%q is neither file nor s3", s)
	}},
	{"path", func(t *BackupTarget, s string) (err error) {
		t.Path, err = filepath.Abs(s)
		return err
	}},
	{"url", func(t *BackupTarget, s string) error {
		t.URL = strings.TrimRight(s, "/")
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "s3" || u.Host == "" || u.User != nil || u.RawQuery != "" {
			return fmt.Errorf("%q is not of the form s3://bucket/prefix", s)
		}
		return nil
	}},
	{"endpoint", func(t *BackupTarget, s string) error {
		t.Endpoint = strings.TrimRight(s, "/")
		return checkServerURL(s, "https://s3.example.com")
	}},
	{"region", func(t *BackupTarget, s string) error { t.Region = s; return nil }},
	{"access-key", func(t *BackupTarget, s string) error { t.AccessKey = s; return nil }},
	{"secret-key", func(t *BackupTarget, s string) error { t.SecretKey = Secret(s); return nil }},
	{"hold", func(t *BackupTarget, s string) (err error) {
		t.Hold, err = parseSize(s)
		return err
	}},
	{"hold-then", func(t *BackupTarget, s string) error {
		if t.HoldThen = s; s != HoldRefuse && s != HoldGiveUp {
			return fmt.Errorf("%q is neither %s nor %s", s, HoldRefuse, HoldGiveUp)
		}
		return nil
	}},
}

// backupKeys are the keys of the group.
func backupKeys() []key {
	var keys []key
	for _, k := range targetKeys {
		keys = append(keys, key{path: "backup." + k.name, set: text(func(c *Config, s string) error { return k.set(&c.Backup.Target, s) })})
	}
	duration := func(field func(*Backup) *time.Duration, parse func(string) (time.Duration, error)) func(*parser, *yaml.Node) error {
		return text(func(c *Config, s string) (err error) {
			*field(&c.Backup), err = parse(s)
			return err
		})
	}
	size := func(field func(*Backup) *int64) func(*parser, *yaml.Node) error {
		return text(func(c *Config, s string) (err error) {
			*field(&c.Backup), err = parseSize(s)
			return err
		})
	}
	return append(keys,
		key{path: "backup.targets", set: setTargets},
		key{path: "backup.interval", set: duration(func(b *Backup) *time.Duration { return &b.Interval }, parsePositive)},
		key{path: "backup.snapshot-interval", set: duration(func(b *Backup) *time.Duration { return &b.SnapshotInterval }, parsePositive)},
		key{path: "backup.retention", set: duration(func(b *Backup) *time.Duration { return &b.Retention }, parseDuration)},
		key{path: "backup.retention-count", set: text(func(c *Config, s string) (err error) {
			if s == "0" {
				c.Backup.RetentionCount = 0
				return nil
			}
			c.Backup.RetentionCount, err = parseCount(s, 1<<20)
			return err
		})},
		key{path: "backup.retention-size", set: size(func(b *Backup) *int64 { return &b.RetentionSize })},
		key{path: "backup.max-requests", set: text(func(c *Config, s string) (err error) {
			c.Backup.MaxRequests, err = parseCount(s, 10000)
			return err
		})},
		key{path: "backup.max-bandwidth", set: size(func(b *Backup) *int64 { return &b.MaxBandwidth })},
		key{path: "backup.key-file", set: setKeyFile(func(c *Config) *Secret { return &c.Backup.Keys })},
		key{path: "backup.key-command", set: text(func(c *Config, s string) error { c.Backup.KeyCommand = s; return nil })},
		key{path: "backup.seed", set: boolean(func(c *Config) *bool { return &c.Backup.Seed })},
		key{path: "backup.cluster", missing: noCloud},
		key{path: "backup.auth-token", missing: noCloud},
	)
}

// setKeyFile reads a file; what is in it is looked at by whoever uses it.
func setKeyFile(field func(c *Config) *Secret) func(*parser, *yaml.Node) error {
	return func(p *parser, n *yaml.Node) error {
		name, err := p.scalar(n)
		if err != nil {
			return err
		}
		if name == "" {
			return errors.New("is empty: name the file that holds the keys")
		}
		data, err := p.src.ReadFile(name)
		if err != nil {
			return err
		}
		if *field(p.cfg) = Secret(data); strings.TrimSpace(string(data)) == "" {
			return fmt.Errorf("%s is empty", name)
		}
		return nil
	}
}

// setTargets takes a list of groups.
func setTargets(p *parser, n *yaml.Node) error {
	if n.Kind != yaml.SequenceNode {
		return errors.New("must be a list, like - {type: file, path: /srv/archive}")
	}
	p.cfg.Backup.Targets = nil
	for _, item := range n.Content {
		item = resolve(item)
		if item.Kind != yaml.MappingNode {
			return fmt.Errorf("line %d: each target must be of the form - {type: file, path: /srv/archive}", item.Line)
		}
		var t BackupTarget
		seen := map[string]bool{}
		for i := 0; i+1 < len(item.Content); i += 2 {
			if err := p.targetKey(&t, seen, item.Content[i], item.Content[i+1]); err != nil {
				return err
			}
		}
		if err := t.check(); err != nil {
			return fmt.Errorf("line %d: %w", item.Line, err)
		}
		p.cfg.Backup.Targets = append(p.cfg.Backup.Targets, t)
	}
	return nil
}

func (p *parser) targetKey(t *BackupTarget, seen map[string]bool, name, value *yaml.Node) error {
	if seen[name.Value] {
		return fmt.Errorf("%s at line %d is given twice", name.Value, name.Line)
	}
	seen[name.Value] = true
	v, err := p.scalar(resolve(value))
	if err != nil {
		return fmt.Errorf("line %d: %w", name.Line, err)
	}
	for _, k := range targetKeys {
		if k.name != name.Value {
			continue
		}
		if v == "" {
			return nil
		}
		if err := k.set(t, v); err != nil {
			return fmt.Errorf("%s at line %d: %w", k.name, name.Line, err)
		}
		return nil
	}
	return fmt.Errorf("unknown key %q at line %d: a target has type, path, url, endpoint, region, access-key, secret-key, hold and hold-then", name.Value, name.Line)
}

// check wants what the type needs, and nothing that has no use with it.
func (t BackupTarget) check() error {
	ofS3 := t.URL != "" || t.Endpoint != "" || t.Region != "" || t.AccessKey != "" || t.SecretKey != ""
	switch {
	case t.Type == "":
		return errors.New("type is missing: file or s3")
	case t.Type == BackupFile && t.Path == "":
		return errors.New("path is missing: name the directory of the archive")
	case t.Type == BackupFile && ofS3:
		return errors.New("url, endpoint, region, access-key and secret-key have no use with type: file")
	case t.Type == BackupS3 && t.URL == "":
		return errors.New("url is missing: name the bucket, like s3://bucket/prefix")
	case t.Type == BackupS3 && t.Path != "":
		return errors.New("path has no use with type: s3: the prefix is part of url")
	case t.Hold > 0 && t.HoldThen == "":
		return errors.New("hold-then is missing: say what happens beyond hold: refuse commits, or give-up the archive")
	case t.Hold == 0 && t.HoldThen != "":
		return errors.New("hold-then has no use without hold")
	case (t.AccessKey == "") != (t.SecretKey == ""):
		return errors.New("access-key and secret-key come together: only one of them is set")
	}
	return nil
}

// concludeBackup checks the group as a whole. Without a place there is no archive, and a key that would
// have an effect is an error rather than ignored.
func (c *Config) concludeBackup() error {
	b := &c.Backup
	if b.Target == (BackupTarget{}) && len(b.Targets) == 0 {
		if fmt.Sprint(*b) != fmt.Sprint(backupDefaults()) {
			return errors.New("backup.type is missing: file or s3, or remove the other keys of backup")
		}
		*b = Backup{}
		return nil
	}
	if b.Target != (BackupTarget{}) {
		if err := b.Target.check(); err != nil {
			return fmt.Errorf("backup: %w", err)
		}
	}
	if b.Keys != "" && b.KeyCommand != "" {
		return errors.New("backup.key-file and backup.key-command say the same: keep one")
	}
	seen := map[string]bool{}
	for _, t := range b.All() {
		place := t.Path + t.Endpoint + t.URL
		if seen[place] {
			return fmt.Errorf("backup: %s%s is given twice as a target", t.Path, t.URL)
		}
		seen[place] = true
		if dir := realPath(t.Path); t.Type == BackupFile && (dir == realPath(c.Data.Dir) || dir == realPath(c.Fuse.Dir) || isInside(dir, realPath(c.Data.Dir)) || isInside(dir, realPath(c.Fuse.Dir)) || c.Fuse.ForwardDir != "" && (dir == realPath(c.Fuse.ForwardDir) || isInside(dir, realPath(c.Fuse.ForwardDir)))) {
			return fmt.Errorf("backup: path %s lies in data.dir or fuse.dir: an archive belongs on another disk", t.Path)
		}
	}
	return nil
}

// yaml is the group; nil when there is no archive.
func (b Backup) yaml() *yaml.Node {
	if len(b.All()) == 0 {
		return nil
	}
	g := &yaml.Node{Kind: yaml.MappingNode}
	b.Target.addTo(g)
	if len(b.Targets) > 0 {
		list := &yaml.Node{Kind: yaml.SequenceNode}
		for _, t := range b.Targets {
			item := &yaml.Node{Kind: yaml.MappingNode}
			t.addTo(item)
			list.Content = append(list.Content, item)
		}
		add(g, "targets", list)
	}
	add(g, "seed", plain(strconv.FormatBool(b.Seed)))
	add(g, "interval", str(b.Interval.String()))
	add(g, "snapshot-interval", str(b.SnapshotInterval.String()))
	add(g, "retention", str(b.Retention.String()))
	add(g, "retention-count", plain(strconv.Itoa(b.RetentionCount)))
	add(g, "retention-size", str(formatSize(b.RetentionSize)))
	add(g, "max-requests", plain(strconv.Itoa(b.MaxRequests)))
	add(g, "max-bandwidth", str(formatSize(b.MaxBandwidth)))
	if b.Keys != "" {
		g.HeadComment = "# encrypted; the keys are not shown"
	}
	if b.KeyCommand != "" {
		add(g, "key-command", str(b.KeyCommand))
	}
	return g
}

// addTo prints a target without its secret.
func (t BackupTarget) addTo(g *yaml.Node) {
	for _, kv := range [][2]string{
		{"type", t.Type}, {"path", t.Path}, {"url", t.URL}, {"endpoint", t.Endpoint}, {"region", t.Region},
	} {
		if kv[1] != "" {
			add(g, kv[0], str(kv[1]))
		}
	}
	if t.Hold > 0 {
		add(g, "hold", str(formatSize(t.Hold)))
		add(g, "hold-then", str(t.HoldThen))
	}
	if t.SecretKey != "" {
		g.Content[0].HeadComment = "# access-key and secret-key are set; they are not shown"
	}
}
