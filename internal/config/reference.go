package config

import (
	"fmt"
	"strings"
)

// kind is what the value of a key is, in the words of the reference.
type kind string

const (
	kindBool     kind = "true or false"
	kindDuration kind = "duration"
	kindSize     kind = "size"
	kindNumber   kind = "number"
	kindPath     kind = "path"
	kindAddr     kind = "host:port"
	kindURL      kind = "URL of a node"
	kindServer   kind = "URL of a server"
	kindText     kind = "text"
	kindSecret   kind = "credential"
	kindPatterns kind = "pattern, or a list of them"
	kindRules    kind = "list of rules"
	kindPlaces   kind = "list of places"
	kindCommand  kind = "command, or a list of them"
)

func oneOf(words ...string) kind { return kind("one of `" + strings.Join(words, "`, `") + "`") }

// Which program had the key first. A configuration that comes from there may have it.
const (
	since01  = "LiteFS 0.1"
	since05  = "LiteFS 0.5"
	sinceOur = ""
)

// description is what the reference says of a key.
type description struct {
	path string
	kind kind

	// def is the value in force without the key, as the file has it; in brackets, what it is found by.
	def string

	since   string
	example string // as the file has it
	text    string
}

// Reference is the page docs/configuration.md: every key of keyTable, in its order.
func Reference() []byte {
	about := make(map[string]description)
	for _, d := range descriptions() {
		about[d.path] = d
	}
	var out, refused strings.Builder
	out.WriteString(referenceHead)
	group := ""
	for _, k := range keyTable() {
		if k.set == nil {
			fmt.Fprintf(&refused, "| `%s` | %s |\n", k.path, k.missing)
			continue
		}
		d := about[k.path]
		if g := groupOf(k.path); g != group {
			group = g
			fmt.Fprintf(&out, "\n## %s\n", groupTitle(g))
		}
		fmt.Fprintf(&out, "\n### `%s`\n\n%s\n\n", k.path, d.text)
		fmt.Fprintf(&out, "- Value: %s; by default %s.", d.kind, shownDefault(d.def))
		if d.since != "" {
			fmt.Fprintf(&out, " As in %s.", d.since)
		}
		fmt.Fprintf(&out, "\n- Example: `%s`\n", exampleLine(k.path, d.example))
	}
	fmt.Fprintf(&out, referenceRefused, refused.String())
	return []byte(out.String())
}

// groupOf is the heading under which a key stands: its first word, or "" for one that stands alone.
func groupOf(path string) string {
	group, _, nested := strings.Cut(path, ".")
	switch {
	case path == "mount-dir":
		return "fuse"
	case !nested:
		return ""
	}
	return group
}

func groupTitle(group string) string {
	switch group {
	case "":
		return "Keys without a group"
	case "consul":
		return "The first LiteFS's group `consul`"
	}
	return "`" + group + "`"
}

func shownDefault(def string) string {
	if strings.HasPrefix(def, "(") {
		return strings.Trim(def, "()")
	}
	return "`" + def + "`"
}

// exampleLine is the key with a value, as one line of a file.
func exampleLine(path, value string) string {
	words := strings.Split(path, ".")
	line := words[len(words)-1] + ": " + value
	for i := len(words) - 2; i >= 0; i-- {
		line = words[i] + ": {" + line + "}"
	}
	return line
}

const referenceHead = `# Configuration

Made by ` + "`make docs`" + ` from ` + "`internal/config`" + `: change it there. ` + "`litefs config -reference`" + `
prints it, ` + "`litefs config -config FILE`" + ` checks a file and prints what is in force.
[litefs.yml](../cmd/litefs/etc/litefs.yml) has every key in one file.

- A file is named with ` + "`-config FILE`" + `; else the first of ` + "`./litefs.yml`, `~/litefs.yml`,\n  `/etc/litefs.yml`" + ` that exists is read. ` + "`litefs mount DIR`" + ` needs no file.
- ` + "`-set KEY=VALUE`" + ` (` + "`-set data.retention=1h`" + `) stands in place of the file's.
- ` + "`$NAME` and `${NAME}`" + ` are environment variables, and an unset one is an error;
  ` + "`${NAME == 'value'}` and `${NAME != 'value'}`" + ` are ` + "`true` or `false`; `$$`" + ` is a dollar
  sign. ` + "`-no-expand-env`" + ` leaves them as they are.
- An unknown key is an error with its line and the nearest key that there is. A key
  is never ignored. An empty value is as good as none, but not of a credential.
- A duration is like ` + "`250ms`, `10s`, `1h30m`" + `; a size like ` + "`512MB` or `2GB`" + `, in powers
  of 1024. In a pattern ` + "`*` and `?`" + ` stand for what is not a slash.
`

const referenceRefused = `
## Refused

Keys of LiteFS 0.5 that have no meaning here. They are refused by name rather than
ignored: whoever wrote one relies on it.

| key | why |
|---|---|
%s`
