package deps

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A test that the documents name is there.
func TestDocumentsNameTests(t *testing.T) {
	base := root(t)
	have := make(map[string]bool)
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`)
	err := filepath.WalkDir(base, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range function.FindAllSubmatch(b, -1) {
			have[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	docs, err := filepath.Glob(filepath.Join(base, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z]\\w*)[`/]")
	for _, doc := range docs {
		b, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range named.FindAllSubmatch(b, -1) {
			if name := string(m[1]); !have[name] {
				t.Errorf("%s names %s, which is no test", filepath.Base(doc), name)
			}
		}
	}
}

// A link of a page leads to a file that is there, and every page is in the list of them.
func TestDocumentsLink(t *testing.T) {
	base := root(t)
	pages, err := filepath.Glob(filepath.Join(base, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	link := regexp.MustCompile(`\]\(([^)#:\s]+)(?:#[^)]*)?\)`)
	listed := make(map[string]bool)
	for _, page := range append(pages, filepath.Join(base, "README.md"), filepath.Join(base, "CONTRIBUTING.md")) {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllSubmatch(b, -1) {
			target := filepath.Join(filepath.Dir(page), string(m[1]))
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s: %v", filepath.Base(page), m[1], err)
			}
			if page == filepath.Join(base, "docs", "README.md") {
				listed[target] = true
			}
		}
	}
	for _, page := range pages {
		if filepath.Base(page) != "README.md" && !listed[page] {
			t.Errorf("docs/README.md does not list %s", filepath.Base(page))
		}
	}
}

// A message that the page of troubles quotes is in the code.
func TestTroubleshootingQuotesMessages(t *testing.T) {
	base := root(t)
	messages := literals(t, base)
	b, err := os.ReadFile(filepath.Join(base, "docs", "troubleshooting.md"))
	if err != nil {
		t.Fatal(err)
	}
	quoted, ours := 0, false
	for line := range strings.Lines(string(b)) {
		switch {
		case !strings.HasPrefix(line, "|"):
			ours = false
		case strings.HasPrefix(line, "| message |"):
			ours = true
		case ours && strings.HasPrefix(line, "| `"):
			message, _, _ := strings.Cut(strings.TrimPrefix(line, "| `"), "`")
			quoted++
			want := strings.Trim(message, "… ")
			if !slices.ContainsFunc(messages, func(m string) bool { return strings.Contains(m, want) }) {
				t.Errorf("nothing says %q", message)
			}
		}
	}
	if quoted < 80 {
		t.Errorf("%d messages are quoted: the tables are not read", quoted)
	}
}

// literals are the strings of the program, with … for what fmt fills in.
func literals(t *testing.T, base string) (all []string) {
	t.Helper()
	verb := regexp.MustCompile("`?%[-+# 0-9.]*[a-zA-Z]`?|[`]")
	err := filepath.WalkDir(base, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			e, ok := n.(ast.Expr)
			s, constant := "", false
			if ok {
				s, constant = literal(e)
			}
			if constant {
				all = append(all, verb.ReplaceAllString(s, "…"))
			}
			return !constant
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// literal is a string literal, or a sum of which parts are: what is not stands for itself as a verb does.
func literal(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, err := strconv.Unquote(e.Value)
		return s, err == nil && e.Kind == token.STRING
	case *ast.BinaryExpr:
		x, okX := literal(e.X)
		y, okY := literal(e.Y)
		if !okX {
			x = "…"
		}
		if !okY {
			y = "…"
		}
		return x + y, e.Op == token.ADD && (okX || okY)
	}
	return "", false
}

// Everything that LiteFS 0.5 has a name for is in the page of differences, as the same, better, or left out.
func TestDifferencesHaveEverything(t *testing.T) {
	base := root(t)
	b, err := os.ReadFile(filepath.Join(base, "docs", "differences.md"))
	if err != nil {
		t.Fatal(err)
	}
	outside, _, _ := strings.Cut(string(b), "\n## Its tests")
	code := regexp.MustCompile("`([^`]+)`")
	said := make(map[string]bool)
	for line := range strings.Lines(outside) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 || strings.Trim(cells[1], " -") == "" || strings.TrimSpace(cells[2]) == "here" {
			continue // no row, or one of ours alone
		}
		what, verdict := cells[1], strings.TrimSpace(cells[2])
		if !strings.HasPrefix(verdict, "same") && !strings.HasPrefix(verdict, "better") && !strings.HasPrefix(verdict, "left out") {
			t.Errorf("%s: %q is none of same, better and left out", strings.TrimSpace(what), verdict)
		}
		for _, m := range code.FindAllStringSubmatch(what, -1) {
			for _, word := range strings.Fields(m[1]) {
				word, _, _ = strings.Cut(word, "?")
				said[strings.TrimPrefix(word, "NAME")] = true
			}
		}
	}
	for _, list := range []string{"internal/deps/testdata/litefs-0.5-names.txt", "internal/config/testdata/litefs-0.5-keys.txt"} {
		b, err := os.ReadFile(filepath.Join(base, list))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if strings.HasPrefix(line, "#") {
				continue
			}
			for _, name := range strings.Fields(line) {
				if !said[name] && !said[name[:strings.LastIndexByte(name, '.')+1]+"*"] {
					t.Errorf("docs/differences.md does not say what became of %s", name)
				}
			}
		}
	}
}
