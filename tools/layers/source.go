package layers

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"strconv"
	"strings"
)

// File is one Go file as the source rules see it.
type File struct {
	// Name relative to the module's root, with slashes.
	Name string
	// Source is its text.
	Source []byte
}

// CheckSource applies the rules about single files: no func init, no exit
// from a library, no sleeping test, no unowned to-do.
func CheckSource(files []File) ([]Violation, error) {
	var all []Violation
	for _, f := range files {
		s, err := parse(f)
		if err != nil {
			return nil, err
		}
		all = append(all, ruleNoInit(s)...)
		all = append(all, ruleNoExit(s)...)
		all = append(all, ruleNoSleepInTests(s)...)
		all = append(all, ruleTodoHasIssue(s)...)
	}
	return all, nil
}

// CheckComments demands a package comment of each package: files, by the
// package's path, are those that are no tests.
func CheckComments(files map[string][]File) ([]Violation, error) {
	var all []Violation
	for path, fs := range files {
		found := false
		name := ""
		for _, f := range fs {
			s, err := parse(f)
			if err != nil {
				return nil, err
			}
			name = s.ast.Name.Name
			// Text leaves out directives such as //go:build.
			text := s.ast.Doc.Text()
			if name == "main" {
				found = found || text != ""
			} else {
				found = found || strings.HasPrefix(text, "Package "+name+" ")
			}
		}
		if !found {
			all = append(all, Violation{"package-comment", path, fmt.Sprintf("no comment that begins with %q before the package clause", "Package "+name)})
		}
	}
	return all, nil
}

// source is a parsed file.
type source struct {
	name string
	fset *token.FileSet
	ast  *ast.File
}

func parse(f File) (source, error) {
	fset := token.NewFileSet()
	tree, err := parser.ParseFile(fset, f.Name, f.Source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return source{}, fmt.Errorf("parse %s: %w", f.Name, err)
	}
	return source{name: f.Name, fset: fset, ast: tree}, nil
}

func (s source) test() bool { return strings.HasSuffix(s.name, "_test.go") }

func (s source) at(n ast.Node) string {
	return fmt.Sprintf("%s:%d", s.name, s.fset.Position(n.Pos()).Line)
}

func ruleNoInit(s source) []Violation {
	var vs []Violation
	for _, d := range s.ast.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
			vs = append(vs, Violation{"no-init", s.at(f), "func init: work before main cannot be ordered, tested or refused"})
		}
	}
	return vs
}

// An exit skips what was deferred: temporary objects stay, backups stay open.
// Only a command's package main below tools may. A test may exit where it
// runs its own binary as a child process, but it may not log.Fatal.
func ruleNoExit(s source) []Violation {
	if s.ast.Name.Name == "main" && top(s.name) == "tools" {
		return nil
	}
	forbidden := map[string][]string{"log": {"Fatal", "Fatalf", "Fatalln", "Panic", "Panicf", "Panicln"}}
	if !s.test() {
		forbidden["os"] = []string{"Exit"}
		forbidden["syscall"] = []string{"Exit"}
	}
	return s.calls(s.ast, "no-exit", forbidden)
}

// Sleeping is waiting for luck. In the bubble of a synctest.Test time is
// virtual, and a sleep is how it is moved on.
func ruleNoSleepInTests(s source) []Violation {
	if !s.test() {
		return nil
	}
	return s.calls(s.ast, sleepRule, map[string][]string{"time": {"Sleep"}})
}

const sleepRule = "no-sleep-in-tests"

// isBubble reports whether n is a call of synctest.Test, with the function it
// runs.
func (s source) isBubble(n ast.Node) bool {
	call, ok := n.(*ast.CallExpr)
	return ok && len(s.calls(call.Fun, "", map[string][]string{"testing/synctest": {"Test"}})) > 0
}

// calls finds uses of the named functions of packages of the standard
// library, under whatever name the file imports them.
func (s source) calls(in ast.Node, rule string, forbidden map[string][]string) []Violation {
	names := make(map[string][]string)
	for _, imp := range s.ast.Imports {
		path, err := strconv.Unquote(imp.Path.Value)
		if err != nil || forbidden[path] == nil {
			continue
		}
		name := path[strings.LastIndexByte(path, '/')+1:]
		if imp.Name != nil {
			name = imp.Name.Name
		}
		names[name] = forbidden[path]
	}
	var vs []Violation
	ast.Inspect(in, func(n ast.Node) bool {
		if rule == sleepRule && s.isBubble(n) {
			return false
		}
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		x, ok := sel.X.(*ast.Ident)
		if !ok {
			return true
		}
		for _, f := range names[x.Name] {
			if sel.Sel.Name == f {
				vs = append(vs, Violation{rule, s.at(sel), x.Name + "." + f})
			}
		}
		return true
	})
	return vs
}

// The words are put together here so that this file does not hold them.
var (
	todoPattern  = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|X` + `XX)\b`)
	ownedPattern = regexp.MustCompile(`\bTO` + `DO\(#\d+\)`)
)

// A wish without an issue is nobody's.
func ruleTodoHasIssue(s source) []Violation {
	var vs []Violation
	for _, g := range s.ast.Comments {
		for _, c := range g.List {
			for line := range strings.Lines(c.Text) {
				if todoPattern.MatchString(line) && !ownedPattern.MatchString(line) {
					vs = append(vs, Violation{"todo-has-issue", s.at(c), "a to-do names its issue, as in TO" + "DO(#12): " + strings.TrimSpace(line)})
				}
			}
		}
	}
	return vs
}
