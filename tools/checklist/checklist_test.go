package checklist_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

const (
	root = "../.."
	page = root + "/tools/e2e/checklist.md"
	rows = 240
)

// tests finds every test function below dir, with all the string literals of
// the package's test files that define it: a subtest's name is one of them.
func tests(t *testing.T, dir string) map[string]map[string]bool {
	t.Helper()
	found := map[string]map[string]bool{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		literals := map[string]bool{}
		ast.Inspect(file, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if text, err := strconv.Unquote(lit.Value); err == nil {
					literals[text] = true
				}
			}
			return true
		})
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || f.Recv != nil || !strings.HasPrefix(f.Name.Name, "Test") {
				continue
			}
			if found[f.Name.Name] == nil {
				found[f.Name.Name] = map[string]bool{}
			}
			for text := range literals {
				found[f.Name.Name][text] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

var row = regexp.MustCompile(`^\| (\d+) \| ([^|]+) \| ([^|]+) \|$`)

func TestEveryRowNamesATestOrAReason(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	there := tests(t, root)
	next, covered := 1, 0
	for line := range strings.Lines(string(data)) {
		m := row.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		if m[1] != strconv.Itoa(next) {
			t.Fatalf("row %s follows row %d", m[1], next-1)
		}
		next++
		if why, none := strings.CutPrefix(m[3], "not: "); none {
			if len(why) < 10 {
				t.Errorf("row %s gives the reason %q", m[1], why)
			}
			continue
		}
		covered++
		for name := range strings.SplitSeq(m[3], ", ") {
			name = strings.Trim(name, "`")
			test, part, _ := strings.Cut(name, "/")
			switch literals, ok := there[test]; {
			case !ok:
				t.Errorf("row %s (%s) names %s, and there is no such test", m[1], m[2], test)
			case part != "" && !literals[part]:
				t.Errorf("row %s (%s) names %s, and %s has no part of that name", m[1], m[2], name, test)
			}
		}
	}
	if next != rows+1 {
		t.Errorf("the table ends with row %d of %d", next-1, rows)
	}
	t.Logf("%d rows have tests, %d a reason", covered, rows-covered)
}
