package layers

import (
	"fmt"
	"slices"
	"strings"
)

// Module is the path every package of the project starts with.
const Module = "github.com/walherd/walherd"

// Package is what the import rules need to know of one package.
type Package struct {
	// Path relative to the module ("engine/pg"); empty for its root.
	Path string
	// Name of the package clause.
	Name string
	// Imports are the direct imports of the files that are no tests: paths
	// relative to the module for our own packages, with a leading "./"; import
	// paths for all others ("net/http", "github.com/nats-io/nats.go").
	Imports []string
	// Deps are all imports, direct and through others, in the same notation.
	Deps []string
	// LoadError is why go list could not read the package.
	LoadError string
}

// Violation is one broken rule. Where is a package or a file with its line.
type Violation struct {
	Rule, Where, What string
}

// String prints the violation as one line.
func (v Violation) String() string { return fmt.Sprintf("%s: %s (rule %s)", v.Where, v.What, v.Rule) }

// The top-level folders, and what the packages in each may import of the
// project. A trailing "/" admits everything below the folder.
var folders = map[string][]string{
	"engine":   {"engine/"},
	"messages": {"engine/pg", "messages/"},
	"storage":  {"engine/pg", "storage/"},
	"producer": {"engine/", "messages/", "producer/"},
	"workers":  {"engine/", "messages/", "storage/", "workers/"},
	"tools":    {"engine/", "messages/", "storage/", "producer/", "workers/"},
}

// What single packages may import beyond their folder's row.
var widened = map[string][]string{
	"storage/repo": {"engine/manifest"},
}

// What single packages may import instead of their folder's row.
var narrowed = map[string][]string{
	"engine/pg":       {}, // the bottom
	"producer/pgtest": {}, // every test imports it: a cycle is never far
	"tools/layers":    {},
}

// What a folder's packages may not import although its row admits it.
var barred = map[string][]string{
	// A database host holds no encryption key. Sealing on the host with a
	// public key would be one package's exception here.
	"producer": {"engine/seal"},
}

// The libraries that only the named packages, and those below them, may
// import. A library stands for all packages below its path.
var confined = []struct {
	library string
	to      []string
}{
	{"github.com/nats-io/nats.go", []string{"messages/bus"}},
	{"github.com/nats-io/nats-server/v2", []string{"messages/broker"}},
	{"github.com/jackc", []string{"producer/pgconn"}},
	{"github.com/klauspost/compress", []string{"engine/compress"}},
	{"github.com/pierrec/lz4/v4", []string{"engine/compress"}},
	{"github.com/andybalholm/brotli", []string{"engine/compress"}},
	{"github.com/ulikunitz/xz", []string{"engine/compress"}},
	// storage/sftp: the SSH connection itself.
	{"golang.org/x/crypto", []string{"engine/seal", "storage/sftp"}},
	{"github.com/pkg/sftp", []string{"storage/sftp"}},
	{"github.com/Azure", []string{"storage/azure"}},
	{"github.com/ncw/swift/v2", []string{"storage/swift"}},
	{"golang.org/x/oauth2", []string{"storage/gcs"}},
	{"github.com/golang-jwt/jwt/v5", []string{"storage/yciam"}},
	{"github.com/ProtonMail/go-crypto", []string{"engine/seal"}},
	{"filippo.io/age", []string{"engine/seal"}},
	{"crypto/aes", []string{"engine/seal"}},
	{"crypto/cipher", []string{"engine/seal"}},
	{"github.com/aws", []string{"storage/s3", "workers/kms"}},
	{"github.com/minio/sio", []string{"engine/seal"}},
	{"github.com/kelseyhightower/envconfig", []string{"tools/walherd"}},
	{"github.com/spf13/cobra", []string{"tools"}},
	{"github.com/spf13/pflag", []string{"tools"}},
}

// The packages of engine that may open a network connection.
var engineNetwork = []string{"engine/telemetry"}

// Names of packages that tell nothing and end up holding everything.
var hubs = []string{"util", "utils", "common", "internal", "helper", "helpers", "misc", "shared", "base", "lib"}

// rules are all rules about packages.
var rules = []func(Package) []Violation{
	ruleLoads, ruleTopLevel, ruleNoHub, ruleImportTable, ruleNobodyImportsTools,
	ruleProducerHoldsNoStorage, ruleConfinement, ruleEngineHasNoNetwork, ruleStdlibOnly,
}

// Check applies every rule about packages.
func Check(pkgs []Package) []Violation {
	var all []Violation
	for _, p := range pkgs {
		for _, rule := range rules {
			all = append(all, rule(p)...)
		}
	}
	return all
}

func ruleLoads(p Package) []Violation {
	if p.LoadError == "" {
		return nil
	}
	return []Violation{{"loads", p.Path, p.LoadError}}
}

func ruleTopLevel(p Package) []Violation {
	if _, ok := folders[top(p.Path)]; ok {
		return nil
	}
	return []Violation{{"top-level", "package " + p.Path, "lies outside of the fixed top-level folders"}}
}

func ruleNoHub(p Package) []Violation {
	for part := range strings.SplitSeq(p.Path, "/") {
		if slices.Contains(hubs, part) {
			return []Violation{{"no-hub", p.Path, fmt.Sprintf("%q names no subject", part)}}
		}
	}
	return nil
}

func ruleImportTable(p Package) []Violation {
	may, ok := narrowed[p.Path]
	if !ok {
		may = slices.Concat(folders[top(p.Path)], widened[p.Path])
	}
	var vs []Violation
	for _, imp := range own(p.Imports) {
		if top(imp) == "tools" && top(p.Path) == "tools" {
			continue // ruleNobodyImportsTools
		}
		if !admitted(imp, may) || below(imp, barred[top(p.Path)]) {
			vs = append(vs, Violation{"import-table", p.Path, "may not import " + imp})
		}
	}
	return vs
}

// A tool may have packages of its own below it.
func ruleNobodyImportsTools(p Package) []Violation {
	var vs []Violation
	for _, imp := range own(p.Imports) {
		if top(imp) == "tools" && (top(p.Path) != "tools" || tool(imp) != tool(p.Path)) {
			vs = append(vs, Violation{"nobody-imports-tools", p.Path, "imports the tool " + imp})
		}
	}
	return vs
}

// The table says so already, edge by edge. This is the promise itself: a
// database host needs no bucket credentials and no key.
func ruleProducerHoldsNoStorage(p Package) []Violation {
	if top(p.Path) != "producer" {
		return nil
	}
	var vs []Violation
	for _, dep := range own(p.Deps) {
		if top(dep) == "storage" || top(dep) == "workers" || dep == "engine/seal" {
			vs = append(vs, Violation{"producer-holds-no-storage", p.Path, "reaches " + dep})
		}
	}
	return vs
}

func ruleConfinement(p Package) []Violation {
	var vs []Violation
	for _, imp := range p.Imports {
		for _, c := range confined {
			if below(imp, []string{c.library}) && !below(p.Path, c.to) {
				vs = append(vs, Violation{"confinement", p.Path, fmt.Sprintf("imports %s, which only %s may", imp, strings.Join(c.to, ", "))})
			}
		}
	}
	return vs
}

func ruleEngineHasNoNetwork(p Package) []Violation {
	if top(p.Path) != "engine" || below(p.Path, engineNetwork) {
		return nil
	}
	var vs []Violation
	for _, imp := range p.Imports {
		// net/url and net/netip only cut strings apart.
		if imp == "net" || below(imp, []string{"net/http", "net/rpc", "net/smtp", "crypto/tls"}) {
			vs = append(vs, Violation{"engine-has-no-network", p.Path, "imports " + imp})
		}
	}
	return vs
}

// engine/pg and pgtest import the standard library alone.
func ruleStdlibOnly(p Package) []Violation {
	if p.Path != "engine/pg" && p.Path != "producer/pgtest" {
		return nil
	}
	var vs []Violation
	for _, imp := range p.Imports {
		if first, _, _ := strings.Cut(imp, "/"); strings.Contains(first, ".") && first != "." {
			vs = append(vs, Violation{"stdlib-only", p.Path, "imports " + imp})
		}
	}
	return vs
}

// own are the imports that are packages of the project.
func own(imports []string) []string {
	var in []string
	for _, imp := range imports {
		if rel, ok := strings.CutPrefix(imp, "./"); ok {
			in = append(in, rel)
		}
	}
	return in
}

func top(path string) string {
	first, _, _ := strings.Cut(path, "/")
	return first
}

// tool is the first two elements: tools/walherd.
func tool(path string) string {
	parts := strings.SplitN(path, "/", 3)
	return strings.Join(parts[:min(2, len(parts))], "/")
}

// admitted reports whether path is in the list; an entry with a trailing
// slash stands for everything below it, and for the folder itself.
func admitted(path string, list []string) bool {
	for _, entry := range list {
		folder, whole := strings.CutSuffix(entry, "/")
		if path == folder || whole && strings.HasPrefix(path, entry) {
			return true
		}
	}
	return false
}

// below reports whether path is one of the roots or lies below one.
func below(path string, roots []string) bool {
	for _, root := range roots {
		if path == root || strings.HasPrefix(path, root+"/") {
			return true
		}
	}
	return false
}
