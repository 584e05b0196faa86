package deps

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// source is one parsed Go file.
type source struct {
	path  string // relative to the module
	pkg   string // directory relative to the module, "" for the root
	test  bool   // a _test.go file
	lines int
	file  *ast.File
	fset  *token.FileSet
}

// at is where a node is, for a message.
func (s source) at(n ast.Node) string {
	return s.path + ":" + strconv.Itoa(s.fset.Position(n.Pos()).Line)
}

// isTestCode reports whether the file is compiled into tests alone.
func (s source) isTestCode() bool { return s.test || slices.Contains(testOnly, s.pkg) }

// root finds the directory of go.mod.
func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the working directory")
		}
	}
}

// sources parses every Go file of the module.
func sources(t *testing.T) []source {
	t.Helper()
	base := root(t)
	fset := token.NewFileSet()
	var out []source
	err := filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && path != base && (strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata") {
			return fs.SkipDir
		}
		if _, err := os.Stat(filepath.Join(path, "go.mod")); d.IsDir() && path != base && err == nil {
			return fs.SkipDir // a module of its own
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		rel, err := filepath.Rel(base, path)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(fset, path, data, parser.ParseComments)
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(filepath.Dir(rel))
		if pkg == "." {
			pkg = ""
		}
		out = append(out, source{
			path: filepath.ToSlash(rel), pkg: pkg, test: strings.HasSuffix(name, "_test.go"),
			lines: bytes.Count(data, []byte("\n")), file: file, fset: fset,
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) == 0 {
		t.Fatal("no Go files found")
	}
	return out
}

// internalPath returns the path within the module that an import names.
func internalPath(imp string) (string, bool) {
	if imp == module {
		return "", true
	}
	return strings.CutPrefix(imp, module+"/")
}

// show names a package in a message.
func show(pkg string) string {
	if pkg == "" {
		return "litefs (root)"
	}
	return pkg
}

func TestImportsGoDown(t *testing.T) {
	for _, s := range sources(t) {
		allowed, known := edges[s.pkg]
		if !known {
			t.Errorf("%s: package %s is not in the policy: add it to edges with what it may import", s.path, show(s.pkg))
			continue
		}
		if s.test {
			continue // a test may reach for anything; the program may not
		}
		for _, imp := range s.file.Imports {
			path, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			to, ok := internalPath(path)
			switch {
			case !ok:
				checkDoor(t, s, path)
			case slices.Contains(testOnly, to):
				if !s.isTestCode() {
					t.Errorf("%s: imports %s, which is for tests alone", s.at(imp), to)
				}
			case !slices.Contains(allowed, to):
				t.Errorf("%s: %s imports %s: not allowed. Invert it with an interface in %[2]s, or change the policy in a commit of its own", s.at(imp), show(s.pkg), show(to))
			}
		}
	}
}

// checkDoor fails when an outside module is imported by a package that is not its door.
func checkDoor(t *testing.T, s source, path string) {
	t.Helper()
	if first, _, _ := strings.Cut(path, "/"); !strings.Contains(first, ".") {
		return // the standard library
	}
	for prefix, who := range doors {
		if path != prefix && !strings.HasPrefix(path, prefix+"/") {
			continue
		}
		if !slices.Contains(who, s.pkg) && who[0] != "*" {
			t.Errorf("%s imports %s: only %v may", s.path, path, who)
		}
		return
	}
	t.Errorf("%s imports %s: no package is the door to that module. Add it to doors", s.path, path)
}

func TestPurePackagesStayPure(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || !slices.Contains(pure, s.pkg) {
			continue
		}
		for _, imp := range s.file.Imports {
			path, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if slices.Contains(impure, path) {
				t.Errorf("%s: %s imports %s, but it decides from its arguments alone: pass the value in", s.at(imp), s.pkg, path)
			}
		}
	}
}

func TestEveryPackageHasOneDocComment(t *testing.T) {
	docs := map[string][]string{}
	packages := map[string]bool{}
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		packages[s.pkg] = true
		if s.file.Doc == nil {
			continue
		}
		docs[s.pkg] = append(docs[s.pkg], s.path)
		want := "Package " + s.file.Name.Name + " "
		if s.file.Name.Name == "main" {
			want = "Command "
		}
		if text := s.file.Doc.Text(); !strings.HasPrefix(text, want) {
			t.Errorf("%s: the package comment begins %.30q, want %q", s.path, text, want)
		}
	}
	for pkg := range packages {
		if n := len(docs[pkg]); n != 1 {
			t.Errorf("%s has %d package comments %v, want one that says its idea", show(pkg), n, docs[pkg])
		}
	}
}

func TestFilesHoldOneIdea(t *testing.T) {
	for _, s := range sources(t) {
		if s.lines > maxLines {
			t.Errorf("%s has %d lines, more than %d: which second idea moved in? Give it a file of its own", s.path, s.lines, maxLines)
		}
	}
}

// banned names calls that have no place in a kind of code.
var banned = []struct {
	call   string // "pkg.Func", or "Func" for a builtin
	why    string
	exempt func(source) bool
}{
	{"os.Exit", "only the command ends the process", inCommandOrTest},
	{"log.Fatal", "only the command ends the process", inCommand},
	{"log.Fatalf", "only the command ends the process", inCommand},
	{"log.Fatalln", "only the command ends the process", inCommand},
	{"panic", "return an error", source.isTestCode},
	{"time.Sleep", "wait for a wake-up with a context and a deadline", source.isTestCode},
	{"slog.SetDefault", "a logger is passed in", inCommand},
	{"context.TODO", "take the caller's context", never},
}

func inCommand(s source) bool       { return strings.HasPrefix(s.pkg, "cmd/") }
func inCommandOrTest(s source) bool { return inCommand(s) || s.isTestCode() }

func never(source) bool { return false }

func TestNoCallsThatHaveNoPlace(t *testing.T) {
	for _, s := range sources(t) {
		ast.Inspect(s.file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			name := calledName(call.Fun)
			for _, b := range banned {
				if name == b.call && !b.exempt(s) {
					t.Errorf("%s: %s: %s", s.at(call), name, b.why)
				}
			}
			return true
		})
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s: init: nothing is registered behind the reader's back", s.at(f))
			}
		}
	}
}

// A test that is skipped proves nothing: what it needs is there, or it fails.
func TestNoTestSkips(t *testing.T) {
	for _, s := range sources(t) {
		ast.Inspect(s.file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			switch sel.Sel.Name {
			case "Skip", "Skipf", "SkipNow":
				if recv, ok := sel.X.(*ast.Ident); ok && s.isTestCode() && len(recv.Name) <= 2 {
					t.Errorf("%s: %s.%s: fail, or do without", s.at(call), recv.Name, sel.Sel.Name)
				}
			}
			return true
		})
	}
}

// calledName returns "pkg.Func" or "Func" of a call.
func calledName(fun ast.Expr) string {
	switch f := fun.(type) {
	case *ast.Ident:
		return f.Name
	case *ast.SelectorExpr:
		if x, ok := f.X.(*ast.Ident); ok {
			return x.Name + "." + f.Sel.Name
		}
	}
	return ""
}
