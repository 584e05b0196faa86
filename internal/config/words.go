package config

import (
	"errors"
	"strings"
)

// SplitCommand splits a command line into words by the quoting rules of a
// POSIX shell, and by nothing else of it: no variables, no globs, no
// redirection. Whoever wants a shell writes sh -c '...'.
//
//	'...'   everything as it stands
//	"..."   as it stands, but \" \\ \$ \` and \newline lose the backslash
//	\c      c as it stands; \newline is nothing
func SplitCommand(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	inWord := false // a word has begun: '' is a word, though an empty one

	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case ' ', '\t', '\n', '\r':
			if inWord {
				words = append(words, word.String())
				word.Reset()
				inWord = false
			}

		case '\'':
			end := strings.IndexByte(s[i+1:], '\'')
			if end < 0 {
				return nil, errors.New("a ' without its second one")
			}
			word.WriteString(s[i+1 : i+1+end])
			i += 1 + end
			inWord = true

		case '"':
			n, err := splitDoubleQuoted(s[i+1:], &word)
			if err != nil {
				return nil, err
			}
			i += n
			inWord = true

		case '\\':
			i++
			if i == len(s) {
				return nil, errors.New("a \\ at the end, before nothing")
			}
			if s[i] == '\n' {
				continue
			}
			word.WriteByte(s[i])
			inWord = true

		default:
			word.WriteByte(c)
			inWord = true
		}
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}

// splitDoubleQuoted adds what s holds before its closing " to word and
// returns how many bytes it read, the quote among them.
func splitDoubleQuoted(s string, word *strings.Builder) (int, error) {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			return i + 1, nil
		case '\\':
			if i+1 == len(s) {
				break
			}
			switch next := s[i+1]; next {
			case '"', '\\', '$', '`':
				word.WriteByte(next)
				i++
			case '\n':
				i++
			default:
				word.WriteByte('\\')
			}
		default:
			word.WriteByte(s[i])
		}
	}
	return 0, errors.New(`a " without its second one`)
}

// JoinCommand is the inverse of SplitCommand: a line that splits into argv.
func JoinCommand(argv []string) string {
	quoted := make([]string, len(argv))
	for i, arg := range argv {
		quoted[i] = quoteWord(arg)
	}
	return strings.Join(quoted, " ")
}

func quoteWord(s string) string {
	plain := s != ""
	for i := 0; i < len(s) && plain; i++ {
		c := s[i]
		plain = isNameStart(c) || '0' <= c && c <= '9' || strings.IndexByte("-./:=,+@%", c) >= 0
	}
	if plain {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
