package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"

	"go.yaml.in/yaml/v4"
)

// maxFileBytes bounds a configuration file, and a token file with it.
const maxFileBytes = 1 << 20

// TokenVariable is the environment variable with the credential, for when the
// file has neither http.token nor http.token-file.
const TokenVariable = "LITEFS_TOKEN"

// AdminTokenVariable is the same for http.admin-token.
const AdminTokenVariable = "LITEFS_ADMIN_TOKEN"

// Source is what surrounds the file. The zero value is this process.
type Source struct {
	// Name of the file, as it stands before each error.
	Name string

	// Set holds KEY=VALUE pairs that stand after the file and replace its
	// keys. They are not expanded: a shell has done that.
	Set []string

	// NoExpand leaves $NAME as it is.
	NoExpand bool

	LookupEnv func(name string) (string, bool)  // nil: os.LookupEnv
	ReadFile  func(name string) ([]byte, error) // nil: the disk, bounded
	Hostname  func() (string, error)            // nil: os.Hostname
}

func (src Source) ensureDefaults() Source {
	if src.LookupEnv == nil {
		src.LookupEnv = os.LookupEnv
	}
	if src.ReadFile == nil {
		src.ReadFile = readFileBounded
	}
	if src.Hostname == nil {
		src.Hostname = os.Hostname
	}
	return src
}

// lookupEnv is LookupEnv with HOSTNAME always there: shells know it, but many
// do not export it.
func (src Source) lookupEnv(name string) (string, bool) {
	if v, ok := src.LookupEnv(name); ok || name != "HOSTNAME" {
		return v, ok
	}
	host, err := src.Hostname()
	return host, err == nil
}

// Load reads, expands and checks the file at path.
func Load(path string, src Source) (*Config, error) {
	src = src.ensureDefaults()
	if src.Name == "" {
		src.Name = path
	}
	data, err := src.ReadFile(path)
	if err != nil {
		return nil, Invalid(err)
	}
	return Parse(data, src)
}

// Default is the configuration of "litefs mount DIR": a static primary, seen
// at dir, with its data beside it.
func Default(dir string, src Source) (*Config, error) {
	src = src.ensureDefaults()
	p := newParser(src)
	p.cfg.Fuse.Dir = dir
	return p.finish()
}

// Parse reads, expands and checks the text of a file. It is total: any bytes
// give a valid configuration or an error that matches ErrInvalid.
func Parse(data []byte, src Source) (*Config, error) {
	src = src.ensureDefaults()
	cfg, err := parse(data, src)
	if err != nil && src.Name != "" {
		return nil, Invalid(fmt.Errorf("%s: %w", src.Name, err))
	} else if err != nil {
		return nil, Invalid(err)
	}
	return cfg, nil
}

func parse(data []byte, src Source) (*Config, error) {
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("the file is larger than %d bytes", maxFileBytes)
	}
	p := newParser(src)
	root, err := document(data)
	if err != nil {
		return nil, err
	}
	if root != nil {
		if err := p.mapping("", root); err != nil {
			return nil, err
		}
	}
	return p.finish()
}

// document returns the root of the only document in data; nil when empty.
func document(data []byte) (*yaml.Node, error) {
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		return nil, syntaxError(data, err)
	}
	var doc yaml.Node
	if err := loader.Load(&doc); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, syntaxError(data, err)
	}
	var second yaml.Node
	if err := loader.Load(&second); err == nil {
		return nil, fmt.Errorf("a second document begins at line %d: one file, one node", second.Line)
	} else if !errors.Is(err, io.EOF) {
		return nil, syntaxError(data, err)
	}

	root := &doc
	if doc.Kind == yaml.DocumentNode {
		if len(doc.Content) == 0 {
			return nil, nil
		}
		root = doc.Content[0]
	}
	if isNull(root) {
		return nil, nil
	}
	return root, nil
}

// syntaxError puts the parser's words on one line, with the number of the line
// they are about.
func syntaxError(data []byte, err error) error {
	oneLine := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	var load *yaml.LoadError
	if !errors.As(err, &load) || load.Mark.Line < 1 {
		return fmt.Errorf("not valid YAML: %s", oneLine(err.Error()))
	}
	hint := ""
	lines := bytes.SplitN(data, []byte("\n"), load.Mark.Line+1)
	if n := load.Mark.Line - 1; n < len(lines) && bytes.Contains(lines[n], []byte("${")) {
		hint = " (inside [ ] and { } put ${...} in quotes)"
	}
	return fmt.Errorf("not valid YAML at line %d: %s%s", load.Mark.Line, oneLine(load.Message), hint)
}

// parser holds one configuration while it is read.
type parser struct {
	src    Source
	cfg    *Config
	expand bool // values of the file are expanded, those of Set are not

	leaves map[string]key
	groups map[string]bool // "fuse" for "fuse.dir"
	seen   map[string]int  // path -> line, for what may not stand twice
}

func newParser(src Source) *parser {
	p := &parser{
		src:    src,
		cfg:    defaults(),
		expand: !src.NoExpand,
		leaves: map[string]key{},
		groups: map[string]bool{},
		seen:   map[string]int{},
	}
	for _, k := range keyTable() {
		p.leaves[k.path] = k
		for i, c := range k.path {
			if c == '.' {
				p.groups[k.path[:i]] = true
			}
		}
	}
	return p
}

// mapping reads the keys below prefix ("" or "fuse.").
func (p *parser) mapping(prefix string, n *yaml.Node) error {
	n = resolve(n)
	if n.Kind != yaml.MappingNode {
		return fmt.Errorf("%sline %d: want \"key: value\" lines", atPrefix(prefix), n.Line)
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := resolve(n.Content[i]), resolve(n.Content[i+1])
		path := prefix + name.Value
		if line, ok := p.seen[path]; ok {
			return fmt.Errorf("%s at line %d is given twice: the first is at line %d", path, name.Line, line)
		}
		p.seen[path] = name.Line
		if err := p.entry(path, name.Line, value); err != nil {
			return err
		}
	}
	return nil
}

// entry reads what stands at one path.
func (p *parser) entry(path string, line int, value *yaml.Node) error {
	k, isLeaf := p.leaves[path]
	switch {
	case isLeaf && k.set == nil:
		return fmt.Errorf("%s at line %d: %s", path, line, k.missing)
	case isLeaf:
		if err := k.set(p, value); err != nil {
			return fmt.Errorf("%s at line %d: %w", path, line, err)
		}
		return nil
	case p.groups[path] && isNull(value):
		return nil
	case p.groups[path]:
		return p.mapping(path+".", value)
	}
	return fmt.Errorf("unknown key %q at line %d: did you mean %q?", path, line, p.nearest(path))
}

// finish applies Set, the environment and what follows from other keys, and
// checks the whole.
func (p *parser) finish() (*Config, error) {
	p.expand = false
	for _, pair := range p.src.Set {
		if err := p.override(pair); err != nil {
			return nil, Invalid(err)
		}
	}
	if err := p.environment(); err != nil {
		return nil, Invalid(err)
	}
	if err := p.conclude(); err != nil {
		return nil, Invalid(err)
	}
	return p.cfg, nil
}

// override applies one KEY=VALUE.
func (p *parser) override(pair string) error {
	path, value, ok := strings.Cut(pair, "=")
	if !ok {
		return fmt.Errorf("-set %s: want KEY=VALUE", path)
	}
	k, ok := p.leaves[path]
	if !ok {
		return fmt.Errorf("-set: unknown key %q: did you mean %q?", path, p.nearest(path))
	}
	if k.set == nil {
		return fmt.Errorf("-set %s: %s", path, k.missing)
	}
	if err := k.set(p, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: value}); err != nil {
		return fmt.Errorf("-set %s: %w", path, err)
	}
	return nil
}

// environment takes the credentials from the environment that no key has.
func (p *parser) environment() (err error) {
	if p.cfg.HTTP.Token == "" {
		p.cfg.HTTP.Token, err = envToken(p.src, TokenVariable)
	}
	if err == nil && p.cfg.HTTP.AdminToken == "" {
		p.cfg.HTTP.AdminToken, err = envToken(p.src, AdminTokenVariable)
	}
	return err
}

// scalar is the expanded text at n; "" for null.
func (p *parser) scalar(n *yaml.Node) (string, error) {
	return p.expandScalar(n, false)
}

// shellText is scalar for a command line: an unset variable is empty there, as
// it would be in a shell.
func (p *parser) shellText(n *yaml.Node) (string, error) {
	return p.expandScalar(n, true)
}

func (p *parser) expandScalar(n *yaml.Node, emptyIfUnset bool) (string, error) {
	if isNull(n) {
		return "", nil
	}
	if n.Kind != yaml.ScalarNode {
		return "", errors.New("want one value, not a list or a group of keys")
	}
	s := n.Value
	if p.expand {
		var err error
		s, err = expander{lookup: p.src.lookupEnv, emptyIfUnset: emptyIfUnset}.expand(s)
		if err != nil {
			return "", err
		}
	}
	if strings.IndexByte(s, 0) >= 0 {
		return "", errors.New("the value holds a zero byte")
	}
	return s, nil
}

// nearest is the known key, or group of keys, with the smallest edit distance
// to path; of equals the first of the table.
func (p *parser) nearest(path string) string {
	best, bestDistance := "", math.MaxInt
	consider := func(known string, distance int) {
		if distance < bestDistance {
			best, bestDistance = known, distance
		}
	}
	for _, k := range keyTable() {
		consider(k.path, editDistance(path, k.path))
		if group, name, ok := strings.Cut(k.path, "."); ok {
			consider(group, editDistance(path, group))
			// A known name at the wrong depth ("addr" for "http.addr") is
			// nearer than any misspelling.
			if name == path {
				consider(k.path, 0)
			}
		}
	}
	return best
}

// editDistance is Levenshtein's. Only the first bytes of a are compared: a key
// longer than any known one is far from all of them.
func editDistance(a, b string) int {
	a = a[:min(len(a), 64)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// resolve follows an alias to its anchor.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode && n.Alias != nil {
		return n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.Tag == "!!null"
}

func atPrefix(prefix string) string {
	if prefix == "" {
		return ""
	}
	return strings.TrimSuffix(prefix, ".") + " at "
}

func readFileBounded(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, maxFileBytes)
	}
	return data, nil
}
