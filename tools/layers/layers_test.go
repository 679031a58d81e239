package layers

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestTree holds the project to its rules.
func TestTree(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	tree, err := Load(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(tree.Packages, func(p Package) bool { return p.Path == "tools/layers" }) {
		t.Fatal("go list does not know this package: the tree was not read")
	}
	vs := Check(tree.Packages)
	more, err := CheckSource(tree.Files)
	if err != nil {
		t.Fatal(err)
	}
	vs = append(vs, more...)
	if more, err = CheckComments(tree.Library); err != nil {
		t.Fatal(err)
	}
	for _, v := range append(vs, more...) {
		t.Error(v)
	}
}

// broken are the names of the broken rules; "" for none.
func broken(vs []Violation) string {
	var names []string
	for _, v := range vs {
		names = append(names, v.Rule)
	}
	return strings.Join(slices.Compact(names), " ")
}

func TestPackageRules(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		path, imports string // imports separated by spaces
		want          string // the broken rules
	}{
		// Allowed.
		{"engine/pg", "fmt strings", ""},
		{"engine/wal", "./engine/pg github.com/dustin/go-humanize net/url", ""},
		{"engine/telemetry", "net/http", ""},
		{"engine/compress", "github.com/klauspost/compress/zstd github.com/pierrec/lz4/v4", ""},
		{"engine/compress/lz4", "github.com/pierrec/lz4/v4/internal", ""},
		{"engine/seal", "golang.org/x/crypto/chacha20 crypto/cipher", ""},
		{"messages", "./engine/pg", ""},
		{"messages/bus", "./messages ./messages/topology github.com/nats-io/nats.go/jetstream", ""},
		{"messages/broker", "github.com/nats-io/nats-server/v2/server", ""},
		{"storage/fs", "./storage ./engine/pg", ""},
		{"storage/repo", "./storage ./engine/manifest", ""},
		{"producer/pgconn", "./engine/pg github.com/jackc/pgx/v5", ""},
		{"producer/archive", "./producer/pgconn ./messages/bus ./engine/wal", ""},
		{"producer/pgtest", "os/exec testing", ""},
		{"workers/archive", "./engine/compress ./engine/seal ./messages/bus ./storage/repo ./workers/runner", ""},
		{"tools/walherd", "./producer/archive ./workers/runner ./storage/fs ./tools/walherd/config github.com/spf13/cobra", ""},
		{"tools/walherd/config", "github.com/kelseyhightower/envconfig", ""},
		// Refused.
		{"", "", "top-level"},
		{"cmd/walherd", "", "top-level"},
		{"enginex/pg", "", "top-level"},
		{"engine/util", "", "no-hub"},
		{"storage/fs/internal/x", "", "no-hub"},
		{"engine/wal", "./messages", "import-table"},
		{"engine/wal", "./storage", "import-table"},
		{"engine/wal", "./producer/pgconn", "import-table"},
		{"engine/pg", "./engine/wal", "import-table"},
		{"engine/pg", "github.com/dustin/go-humanize", "stdlib-only"},
		{"engine/wal", "net", "engine-has-no-network"},
		{"engine/wal", "net/http", "engine-has-no-network"},
		{"messages/bus", "./engine/manifest", "import-table"},
		{"messages/bus", "./engine/pgx", "import-table"},
		{"messages/bus", "./storage", "import-table"},
		{"storage/fs", "./engine/manifest", "import-table"},
		{"storage/fs", "./messages", "import-table"},
		{"storage/repo", "./workers/runner", "import-table"},
		{"producer/archive", "./storage", "import-table"},
		{"producer/archive", "./workers/runner", "import-table"},
		{"producer/archive", "./engine/seal", "import-table"},
		{"producer/pgtest", "./engine/pg", "import-table"},
		{"producer/pgtest", "golang.org/x/sys/unix", "stdlib-only"},
		{"workers/archive", "./producer/pgconn", "import-table"},
		{"workers/archive", "./tools/walherd", "import-table nobody-imports-tools"},
		{"tools/bench", "./tools/walherd/config", "nobody-imports-tools"},
		{"tools/walherd2", "./tools/walherd/config", "nobody-imports-tools"},
		{"tools/layers", "./engine/pg", "import-table"},
		{"messages/transit", "github.com/nats-io/nats.go", "confinement"},
		{"messages/bus", "github.com/nats-io/nats-server/v2/server", "confinement"},
		{"producer/archive", "github.com/jackc/pglogrepl", "confinement"},
		{"producer/archive", "github.com/jackc/pgx/v5/pgconn", "confinement"},
		{"workers/archive", "github.com/klauspost/compress/zstd", "confinement"},
		{"engine/pack", "github.com/ulikunitz/xz/lzma", "confinement"},
		{"workers/archive", "golang.org/x/crypto/openpgp", "confinement"},
		{"storage/fs", "crypto/aes", "confinement"},
		{"storage/repo", "github.com/aws/aws-sdk-go-v2/service/s3", "confinement"},
		{"tools/bench", "github.com/kelseyhightower/envconfig", "confinement"},
		{"workers/runner", "github.com/spf13/cobra", "confinement"},
	} {
		got := broken(Check([]Package{{Path: tc.path, Name: "x", Imports: strings.Fields(tc.imports)}}))
		if got != tc.want {
			t.Errorf("%s importing %q: broken rules %q, want %q", tc.path, tc.imports, got, tc.want)
		}
	}
}

func TestProducerPromiseIsTransitive(t *testing.T) {
	t.Parallel()
	for _, dep := range []string{"./storage/fs", "./storage", "./engine/seal", "./workers/runner"} {
		p := Package{Path: "producer/archive", Imports: []string{"./messages/bus"}, Deps: []string{"./messages/bus", dep}}
		if got := broken(Check([]Package{p})); got != "producer-holds-no-storage" {
			t.Errorf("%s through another package: broken rules %q", dep, got)
		}
		p.Path = "tools/walherd"
		if got := broken(Check([]Package{p})); got != "" {
			t.Errorf("the rule holds for a tool: %q", got)
		}
	}
}

func TestUnreadablePackage(t *testing.T) {
	t.Parallel()
	if got := broken(Check([]Package{{Path: "engine/pg", LoadError: "no"}})); got != "loads" {
		t.Errorf("broken rules %q", got)
	}
}

func TestSourceRules(t *testing.T) {
	t.Parallel()
	const todo = "TO" + "DO"
	for _, tc := range []struct{ name, source, want string }{
		{"engine/a/a.go", "package a\nfunc initialize() {}\nfunc (t) init() {}\ntype t int", ""},
		{"engine/a/a.go", "package a\nfunc init() {}", "no-init"},
		{"tools/walherd/main.go", "package main\nfunc init() {}", "no-init"},
		{"engine/a/a_test.go", "package a\nfunc init() {}", "no-init"},

		{"engine/a/a.go", "package a\nimport \"os\"\nfunc f() { os.Exit(1) }", "no-exit"},
		{"engine/a/a.go", "package a\nimport \"os\"\nvar exit = os.Exit", "no-exit"},
		{"engine/a/a.go", "package a\nimport sys \"os\"\nfunc f() { sys.Exit(1) }", "no-exit"},
		{"engine/a/a.go", "package a\nimport \"log\"\nfunc f() { log.Fatalf(\"\") }", "no-exit"},
		{"engine/a/a.go", "package a\nimport \"log/slog\"\nfunc f() { slog.Info(\"\") }", ""},
		{"engine/a/a.go", "package a\nimport \"example.org/os\"\nfunc f() { os.Exit(1) }", ""},
		{"engine/a/main.go", "package main\nimport \"os\"\nfunc main() { os.Exit(1) }", "no-exit"},
		{"tools/walherd/main.go", "package main\nimport \"os\"\nfunc main() { os.Exit(1) }", ""},
		{"tools/walherd/config/c.go", "package config\nimport \"os\"\nfunc f() { os.Exit(1) }", "no-exit"},
		{"engine/a/a_test.go", "package a\nimport \"os\"\nfunc TestX() { os.Exit(1) }", ""},
		{"engine/a/a_test.go", "package a\nimport \"log\"\nfunc TestX() { log.Fatal(1) }", "no-exit"},

		{"engine/a/a_test.go", "package a\nimport \"time\"\nfunc f() { time.Sleep(1) }", "no-sleep-in-tests"},
		{"engine/a/a_test.go", "package a\nimport t \"time\"\nvar nap = t.Sleep", "no-sleep-in-tests"},
		{"engine/a/a_test.go", "package a\nimport (\"time\"; \"testing/synctest\")\nfunc TestX(t int) { synctest.Test(t, func() { time.Sleep(1) }) }", ""},
		{"engine/a/a_test.go", "package a\nimport (\"time\"; \"testing/synctest\")\nfunc TestX(t int) { synctest.Wait(); time.Sleep(1) }", "no-sleep-in-tests"},
		{"engine/a/a_test.go", "package a\nimport \"time\"\nvar x = time.Second", ""},
		{"engine/a/a.go", "package a\nimport \"time\"\nfunc f() { time.Sleep(1) }", ""},

		{"engine/a/a.go", "package a\n// " + todo + ": later", "todo-has-issue"},
		{"engine/a/a.go", "package a\nfunc f() {\n/* x\n FIX" + "ME */\n}", "todo-has-issue"},
		{"engine/a/a.go", "package a\n// " + todo + "(#12): later", ""},
		{"engine/a/a.go", "package a\nvar s = \"" + todo + "\"", ""},
		{"engine/a/a.go", "package a\n// X" + "XXX is no word", ""},
	} {
		vs, err := CheckSource([]File{{Name: tc.name, Source: []byte(tc.source)}})
		if err != nil {
			t.Fatal(err)
		}
		if got := broken(vs); got != tc.want {
			t.Errorf("%s %q: broken rules %q, want %q", tc.name, tc.source, got, tc.want)
		}
	}
	if _, err := CheckSource([]File{{Name: "x.go", Source: []byte("no Go")}}); err == nil {
		t.Error("a file that does not parse is passed over")
	}
}

func TestCommentRule(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		what    string
		sources []string
		want    string
	}{
		{"comment", []string{"// Package a is for this.\npackage a"}, ""},
		{"comment in the second file", []string{"package a", "// Package a is for this.\npackage a"}, ""},
		{"command", []string{"// walherd is the program.\npackage main"}, ""},
		{"none", []string{"package a", "package a"}, "package-comment"},
		{"none of a command", []string{"package main"}, "package-comment"},
		{"another name", []string{"// Package b is for that.\npackage a"}, "package-comment"},
		{"apart from the clause", []string{"// Package a is for this.\n\npackage a"}, "package-comment"},
		{"only a directive", []string{"//go:build linux\npackage main"}, "package-comment"},
	} {
		var files []File
		for _, s := range tc.sources {
			files = append(files, File{Name: "engine/a/a.go", Source: []byte(s)})
		}
		vs, err := CheckComments(map[string][]File{"engine/a": files})
		if err != nil {
			t.Fatal(err)
		}
		if got := broken(vs); got != tc.want {
			t.Errorf("%s: broken rules %q, want %q", tc.what, got, tc.want)
		}
	}
}

// Load reads a module of which every kind of file is known.
func TestLoad(t *testing.T) {
	t.Parallel()
	tree, err := Load(t.Context(), "testdata/module")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range tree.Packages {
		got = append(got, p.Path+" <- "+strings.Join(p.Imports, " "))
	}
	if want := "engine/low <- fmt|engine/testonly <- |storage/high <- ./engine/low"; strings.Join(got, "|") != want {
		t.Errorf("packages %q, want %q", strings.Join(got, "|"), want)
	}
	got = nil
	for _, f := range tree.Files {
		got = append(got, f.Name)
	}
	if want := "engine/low/low.go engine/low/other.go engine/low/low_test.go engine/testonly/x_test.go storage/high/high.go"; strings.Join(got, " ") != want {
		t.Errorf("files %q, want %q", strings.Join(got, " "), want)
	}
	if len(tree.Library) != 2 {
		t.Errorf("packages with files: %d, want 2", len(tree.Library))
	}
	if got := broken(Check(tree.Packages)); got != "import-table" {
		t.Errorf("broken rules %q: storage may not import engine/low", got)
	}
	// go list -e answers for a directory without a module as for a package
	// that it cannot load.
	if tree, err := Load(t.Context(), t.TempDir()); err == nil && !strings.Contains(broken(Check(tree.Packages)), "loads") {
		t.Error("a directory without a module passes")
	}
}
