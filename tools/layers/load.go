package layers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// Tree is the project as it lies on disk.
type Tree struct {
	Packages []Package
	// Files are all Go files, tests included.
	Files []File
	// Library are the files that are no tests, by package path.
	Library map[string][]File
}

// listed is what is read of go list's answer.
type listed struct {
	ImportPath, Name, Dir string
	Imports, Deps         []string
	// IgnoredGoFiles are those for another platform or under a build tag.
	GoFiles, CgoFiles, IgnoredGoFiles, TestGoFiles, XTestGoFiles []string
	Error                                                        *struct{ Err string }
}

// Load reads the module whose root is dir: with go list, without building it.
// Packages that only consist of tests are checked as files, not as packages.
func Load(ctx context.Context, dir string) (Tree, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-e",
		"-json=ImportPath,Name,Dir,Imports,Deps,GoFiles,CgoFiles,IgnoredGoFiles,TestGoFiles,XTestGoFiles,Error", "./...")
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return Tree{}, fmt.Errorf("run go list in %s: %w: %s", dir, err, stderr.String())
	}
	tree := Tree{Library: make(map[string][]File)}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var l listed
		if err := dec.Decode(&l); errors.Is(err, io.EOF) {
			if len(tree.Packages) == 0 {
				return Tree{}, fmt.Errorf("run go list in %s: no packages: %s", dir, stderr.String())
			}
			return tree, nil
		} else if err != nil {
			return Tree{}, fmt.Errorf("read go list's answer: %w", err)
		}
		if err := tree.add(l); err != nil {
			return Tree{}, err
		}
	}
}

func (t *Tree) add(l listed) error {
	p := Package{
		Path: strings.TrimPrefix(strings.TrimPrefix(l.ImportPath, Module), "/"), Name: l.Name,
		Imports: relative(l.Imports), Deps: relative(l.Deps),
	}
	if l.Error != nil {
		p.LoadError = l.Error.Err
	}
	lib, err := read(p.Path, l.Dir, l.GoFiles, l.CgoFiles)
	if err != nil {
		return err
	}
	other, err := read(p.Path, l.Dir, l.IgnoredGoFiles, l.TestGoFiles, l.XTestGoFiles)
	if err != nil {
		return err
	}
	t.Files = append(append(t.Files, lib...), other...)
	if len(lib) > 0 {
		t.Library[p.Path] = lib
	}
	t.Packages = append(t.Packages, p)
	return nil
}

// relative writes the project's own import paths as ./engine/pg.
func relative(imports []string) []string {
	rel := make([]string, len(imports))
	for i, imp := range imports {
		rel[i] = imp
		if r, ok := strings.CutPrefix(imp, Module+"/"); ok {
			rel[i] = "./" + r
		}
	}
	return rel
}

func read(pkg, dir string, lists ...[]string) ([]File, error) {
	var files []File
	for _, list := range lists {
		for _, name := range list {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				return nil, fmt.Errorf("read package %s: %w", pkg, err)
			}
			files = append(files, File{Name: path.Join(pkg, name), Source: b})
		}
	}
	return files, nil
}
