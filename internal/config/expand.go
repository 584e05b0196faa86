package config

import (
	"fmt"
	"strings"
)

// expander replaces environment variables in the values of a file.
//
// Values are expanded after the YAML is parsed, not in its text before: a
// password with ": " or a line break in it would change the document, and
// every line number after it.
//
//	$NAME  ${NAME}               the variable's value
//	${NAME == 'v'}  ${NAME != "v"}  ${NAME == OTHER}    true or false
//	$$                           a dollar sign
//
// A dollar sign before anything else stands for itself.
type expander struct {
	lookup func(name string) (string, bool)

	// emptyIfUnset gives "" for an unset variable, as a shell does. Otherwise
	// it is an error: an unset variable in a path or an address is a mistake.
	emptyIfUnset bool
}

// expand returns s with its variables replaced.
func (e expander) expand(s string) (string, error) {
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 || i == len(s)-1 {
			b.WriteString(s)
			return b.String(), nil
		}
		b.WriteString(s[:i])
		s = s[i+1:]

		switch {
		case s[0] == '$':
			b.WriteByte('$')
			s = s[1:]
		case s[0] == '{':
			end := strings.IndexByte(s, '}')
			if end < 0 {
				return "", fmt.Errorf("${ without its }: write $$ for a dollar sign")
			}
			v, err := e.expression(strings.TrimSpace(s[1:end]))
			if err != nil {
				return "", err
			}
			b.WriteString(v)
			s = s[end+1:]
		case isNameStart(s[0]):
			n := nameLen(s)
			v, err := e.variable(s[:n])
			if err != nil {
				return "", err
			}
			b.WriteString(v)
			s = s[n:]
		default:
			b.WriteByte('$')
		}
	}
}

// expression evaluates what stands between ${ and }.
func (e expander) expression(expr string) (string, error) {
	n := nameLen(expr)
	name, rest := expr[:n], strings.TrimSpace(expr[n:])
	if n == 0 {
		return "", fmt.Errorf("%q is neither ${NAME} nor ${NAME == 'value'}", "${"+expr+"}")
	}
	if rest == "" {
		return e.variable(name)
	}

	var negate bool
	switch {
	case strings.HasPrefix(rest, "=="):
	case strings.HasPrefix(rest, "!="):
		negate = true
	default:
		return "", fmt.Errorf("%q is neither ${NAME} nor ${NAME == 'value'}", "${"+expr+"}")
	}
	right, err := e.operand(strings.TrimSpace(rest[2:]))
	if err != nil {
		return "", fmt.Errorf("%q: %w", "${"+expr+"}", err)
	}

	// In a comparison an unset variable is an empty one: "is this node in
	// that region?" is answered with no where nothing names a region.
	left, _ := e.lookup(name)
	if (left == right) != negate {
		return "true", nil
	}
	return "false", nil
}

// operand is the right side of a comparison: a quoted string or a variable.
func (e expander) operand(s string) (string, error) {
	if len(s) >= 2 && (s[0] == '\'' || s[0] == '"') && s[len(s)-1] == s[0] {
		return s[1 : len(s)-1], nil
	}
	if n := nameLen(s); n > 0 && n == len(s) {
		v, _ := e.lookup(s)
		return v, nil
	}
	return "", fmt.Errorf("the right side must be 'quoted' or the name of a variable")
}

func (e expander) variable(name string) (string, error) {
	v, ok := e.lookup(name)
	if !ok && !e.emptyIfUnset {
		return "", fmt.Errorf("the environment variable %s is not set (write $$ for a dollar sign)", name)
	}
	return v, nil
}

func isNameStart(c byte) bool {
	return c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// nameLen is the length of the variable name that s begins with, 0 for none.
func nameLen(s string) int {
	if s == "" || !isNameStart(s[0]) {
		return 0
	}
	n := 1
	for n < len(s) && (isNameStart(s[n]) || '0' <= s[n] && s[n] <= '9') {
		n++
	}
	return n
}
