package deploytest_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/walherd/walherd/storage/storagetest/pinned"
	"github.com/walherd/walherd/tools/walherd/settings"
)

// root is the repository.
var root = filepath.Join("..", "..")

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := program(); err == nil {
		_ = os.RemoveAll(filepath.Dir(dir)) // in the temporary directory anyhow
	}
	os.Exit(code)
}

// program is a build of walherd.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "deploytest")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "walherd")
	out, err := exec.Command("go", "build", "-ldflags=-s -w", "-o", path, filepath.Join(root, "tools", "walherd")).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build walherd: %w: %s", err, out)
	}
	return path, nil
})

// check runs the program of the module below.
func check(t *testing.T, stdin []byte, env []string, args ...string) ([]byte, error) {
	t.Helper()
	module, err := pinned.Source(filepath.Join("deploytest", "check"))
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, name := range []string{"go.mod", "go.sum", "main.go"} {
		files = append(files, filepath.Join(module, name))
	}
	version, err := pinned.Version(runtime.Version()+" "+runtime.GOOS+" "+runtime.GOARCH, files...)
	if err != nil {
		t.Fatal(err)
	}
	path, err := pinned.Cached(t.Context(), "deploycheck", version, func(ctx context.Context, path string) error {
		build := exec.CommandContext(ctx, "go", "build", "-mod=readonly", "-ldflags=-s -w", "-o", path, ".")
		build.Dir, build.Env = module, append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w: %s", module, err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Stdin, cmd.Env = bytes.NewReader(stdin), append(os.Environ(), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, stderr.String())
	}
	return out, nil
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func glob(t *testing.T, pattern ...string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(append([]string{root}, pattern...)...))
	if err != nil || len(found) == 0 {
		t.Fatalf("%v: %v, %d files", pattern, err, len(found))
	}
	return found
}

// isSetting reports whether a setting has this name, and whether it is secret.
func isSetting(name string) (ok, secret bool) {
	for _, f := range settings.Fields() {
		if f.Setting == name || slices.Contains(f.Aliases, name) {
			return true, f.Secret
		}
	}
	return false, false
}

// settingLike are words that can only be settings; streams have such names
// too.
var settingLike = regexp.MustCompile(`\b(?:(?:WALHERD|WALG|AWS)_[A-Z0-9_]*[A-Z0-9]|PG(?:DATA|HOST|USER|PASSWORD|PORT))\b`)

func unknownSettings(text string) (unknown []string, known int) {
	for _, name := range settingLike.FindAllString(text, -1) {
		if ok, _ := isSetting(name); ok {
			known++
		} else if !slices.Contains([]string{"WALHERD_WORK", "WALHERD_WAL", "WALHERD_CHUNK"}, name) {
			unknown = append(unknown, name)
		}
	}
	return unknown, known
}

func TestSettingsThatAreNamedExist(t *testing.T) {
	t.Parallel()
	if unknown, known := unknownSettings("WALHERD_CLUSTER WALHERD_CLUSTERS WALHERD_WORK"); len(unknown) != 1 || known != 1 {
		t.Fatalf("the search itself: unknown %v, %d known", unknown, known)
	}
	files := slices.Concat(
		glob(t, "compose.yaml"), glob(t, "deploy", "README.md"), glob(t, "deploy", "Containerfile"), glob(t, "deploy", "systemd", "*"),
		glob(t, "deploy", "helm", "walherd", "values.yaml"), glob(t, "deploy", "helm", "walherd", "templates", "*"))
	total := 0
	for _, file := range files {
		unknown, known := unknownSettings(read(t, file))
		total += known
		for _, name := range unknown {
			t.Errorf("%s names %s, which is no setting", file, name)
		}
	}
	if total < 100 {
		t.Errorf("only %d settings found in %d files", total, len(files))
	}
}

// commandLine tells what is wrong with the words that follow walherd; "" is
// nothing. The command tree is the program's own word.
func commandLine(t *testing.T, words []string) string {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	var at []string
	help := func() string {
		out, err := exec.CommandContext(t.Context(), path, append(slices.Clone(at), "--help")...).CombinedOutput()
		if err != nil {
			t.Fatalf("walherd %v --help: %v", at, err)
		}
		return string(out)
	}
	text := help()
	for _, w := range words {
		switch commands := regexp.MustCompile(`(?m)^  ` + regexp.QuoteMeta(w) + ` {2,}\S`); {
		case strings.HasPrefix(w, "--"):
			flag, _, _ := strings.Cut(w, "=")
			if !regexp.MustCompile(regexp.QuoteMeta(flag) + `[ \n=]`).MatchString(text) {
				return fmt.Sprintf("walherd %s has no flag %s", strings.Join(at, " "), flag)
			}
		case strings.Contains(text, "Available Commands:"):
			if strings.HasPrefix(w, "/") { // the value of --config
				continue
			}
			if !commands.MatchString(text) {
				return fmt.Sprintf("walherd %s has no command %s", strings.Join(at, " "), w)
			}
			at = append(at, w)
			text = help()
		}
	}
	if len(at) == 0 {
		return "no command in " + strings.Join(words, " ")
	}
	return ""
}

func TestCommandLineTellsWhatIsWrong(t *testing.T) {
	t.Parallel()
	for line, wrong := range map[string]bool{
		"worker --drain 60s": false, "queue setup": false, "--config /etc/walherd.yaml wal-push %p": false, "request push": false,
		"work": true, "worker --drains 60s": true, "queue set-up": true, "": true,
	} {
		if got := commandLine(t, strings.Fields(line)); (got != "") != wrong {
			t.Errorf("%q: %q", line, got)
		}
	}
}

// quoted are the places where texts tell a person to run walherd.
var quoted = regexp.MustCompile("(?m)(?:^ {4}(?:[A-Z_]+=\\S+ )*|^#.*exec \\w+ |-- |['`])(?:walherd|wal-g) ((?:--config \\S+ )?[a-z][^'`\n#]*)")

func TestCommandsThatAreNamedExist(t *testing.T) {
	t.Parallel()
	total := 0
	for _, file := range slices.Concat(glob(t, "deploy", "README.md"), glob(t, "compose.yaml"), glob(t, "deploy", "helm", "walherd", "templates", "NOTES.txt")) {
		found := quoted.FindAllStringSubmatch(read(t, file), -1)
		if len(found) == 0 {
			t.Errorf("%s: no command found", file)
		}
		total += len(found)
		for _, m := range found {
			if wrong := commandLine(t, strings.Fields(m[1])); wrong != "" {
				t.Errorf("%s: %s", file, wrong)
			}
		}
	}
	t.Logf("%d command lines", total)
}

// unit is a unit file: section and name to every value it has.
func unit(t *testing.T, text string) map[string][]string {
	t.Helper()
	out, section := map[string][]string{}, ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch name, value, isPair := strings.Cut(line, "="); {
		case line == "" || line[0] == '#':
		case line[0] == '[':
			section = strings.Trim(line, "[]")
		case isPair:
			out[section+"."+name] = append(out[section+"."+name], value)
		default:
			t.Fatalf("line %q", line)
		}
	}
	return out
}

func seconds(t *testing.T, text string) time.Duration {
	t.Helper()
	if strings.Trim(text, "0123456789") == "" {
		text += "s"
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// drain is the value of --drain among words.
func drain(t *testing.T, words []string) time.Duration {
	t.Helper()
	i := slices.Index(words, "--drain")
	if i < 0 {
		t.Fatalf("%v drains for nobody knows how long", words)
	}
	return seconds(t, words[i+1])
}

func TestUnits(t *testing.T) {
	t.Parallel()
	for _, file := range glob(t, "deploy", "systemd", "*.service") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			u := unit(t, read(t, file))
			for name, want := range map[string]string{
				"Type": "notify", "Restart": "always", "KillSignal": "SIGTERM", "NoNewPrivileges": "yes", "ProtectSystem": "strict",
				"CapabilityBoundingSet": "", "PrivateTmp": "yes", "MemoryDenyWriteExecute": "yes",
			} {
				if got := u["Service."+name]; len(got) != 1 || got[0] != want {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
			for _, name := range []string{"User", "MemoryMax", "ReadWritePaths", "LoadCredential", "RestartSec"} {
				if len(u["Service."+name]) == 0 || slices.Contains(u["Service."+name], "root") {
					t.Errorf("%s is %q", name, u["Service."+name])
				}
			}
			command := strings.Fields(u["Service.ExecStart"][0])
			if command[0] != "/usr/bin/walherd" {
				t.Errorf("runs %s", command[0])
			}
			if wrong := commandLine(t, command[1:]); wrong != "" {
				t.Error(wrong)
			}
			// What is done after the drain needs time too.
			if stop, d := seconds(t, u["Service.TimeoutStopSec"][0]), drain(t, command); stop < d+20*time.Second {
				t.Errorf("killed after %v, drains for %v", stop, d)
			}
			for _, env := range u["Service.Environment"] {
				name, _, _ := strings.Cut(env, "=")
				if _, secret := isSetting(name); secret {
					t.Errorf("%s is a secret, and a unit can be read by all", name)
				}
			}
			for _, env := range u["Service.EnvironmentFile"] {
				if !strings.HasPrefix(env, "/etc/walherd/") {
					t.Errorf("EnvironmentFile %s", env)
				}
			}
		})
	}
}

// verify is systemd's own opinion of a unit. Its exit code says nothing.
func verify(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	text = strings.ReplaceAll(text, "/usr/bin/walherd", "/bin/true") // it must be there
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--man=no", file)
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH=:")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	_ = cmd.Run()
	return stderr.String()
}

func TestSystemdVerifiesUnits(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	for _, file := range glob(t, "deploy", "systemd", "*.service") {
		name := strings.Replace(filepath.Base(file), "@.", "@main.", 1)
		text := read(t, file)
		if said := verify(t, name, text); strings.Contains(said, name) || strings.Contains(said, "Unknown") {
			t.Errorf("%s: %s", name, said)
		}
		for broken, word := range map[string]string{"Restart=allways": "allways", "MemoryMaximum=1G": "MemoryMaximum"} {
			bad := strings.Replace(text, "Restart=always", broken, 1)
			if said := verify(t, name, bad); !strings.Contains(said, name) || !strings.Contains(said, word) {
				t.Errorf("%s with %s is not complained about: %q", name, broken, said)
			}
		}
	}
}

func TestExamplesOfSettingsAreValid(t *testing.T) {
	t.Parallel()
	for _, file := range glob(t, "deploy", "systemd", "*.env.example") {
		var env, optional []string
		for line := range strings.Lines(read(t, file)) {
			line = strings.ReplaceAll(strings.TrimSpace(line), `"`, "")
			name, _, isPair := strings.Cut(strings.TrimPrefix(line, "#"), "=")
			if ok, secret := isSetting(name); !isPair || !ok {
				if line != "" && line[0] != '#' {
					t.Errorf("%s: %q is no setting", file, line)
				}
				continue
			} else if secret {
				t.Errorf("%s holds the secret %s", file, name)
			}
			if line[0] == '#' {
				optional = append(optional, line[1:])
			} else {
				env = append(env, line)
			}
		}
		for _, given := range [][]string{env, slices.Concat(env, optional)} {
			set, warnings, err := settings.Load(nil, given, "", nil)
			if err == nil {
				err = set.Validate()
			}
			if err != nil || len(warnings) > 0 {
				t.Errorf("%s: %v %v", file, warnings, err)
			}
		}
		if len(env) < 4 {
			t.Errorf("%s: only %d settings", file, len(env))
		}
	}
}

// project is what the tests look at in a compose file.
type project struct {
	Services map[string]struct {
		Command         []string
		Entrypoint      []string
		Environment     map[string]string
		Networks        map[string]any
		Build           map[string]any
		Healthcheck     map[string]any
		StopGracePeriod string                                `yaml:"stop_grace_period"`
		ContainerName   string                                `yaml:"container_name"`
		DependsOn       map[string]struct{ Condition string } `yaml:"depends_on"`
		Ports           []struct {
			Host string `yaml:"host_ip"`
		}
	}
}

func TestCompose(t *testing.T) {
	t.Parallel()
	file := filepath.Join(root, "compose.yaml")
	secret := "tSesame"
	if _, err := check(t, nil, []string{"FLEET_SECRET="}, "compose", file); err == nil {
		t.Error("a fleet without a secret is accepted")
	}
	bad := filepath.Join(t.TempDir(), "compose.yaml")
	if err := os.WriteFile(bad, []byte(strings.Replace(read(t, file), "depends_on:", "depends_upon:", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := check(t, nil, []string{"FLEET_SECRET=" + secret}, "compose", bad); err == nil {
		t.Error("an unknown key is accepted")
	}
	out, err := check(t, nil, []string{"FLEET_SECRET=" + secret}, "compose", file)
	if err != nil {
		t.Fatal(err)
	}
	var p project
	if err := yaml.Unmarshal(out, &p); err != nil {
		t.Fatal(err)
	}
	ours := 0
	for name, s := range p.Services {
		for _, port := range s.Ports {
			if port.Host != "127.0.0.1" {
				t.Errorf("%s is published to the world", name)
			}
		}
		for on, d := range s.DependsOn {
			if d.Condition == "service_healthy" && p.Services[on].Healthcheck == nil {
				t.Errorf("%s waits for the health of %s, which has no check", name, on)
			}
		}
		words := s.Command
		if s.Environment["WALHERD_NATS_URL"] == "" {
			continue
		}
		ours++
		if wrong := commandLine(t, words); wrong != "" {
			t.Errorf("%s: %s", name, wrong)
		}
		var env []string
		for k, v := range s.Environment {
			if ok, _ := isSetting(k); !ok {
				t.Errorf("%s: %s is no setting", name, k)
			}
			env = append(env, k+"="+v)
		}
		set, _, err := settings.Load(nil, env, "", nil)
		if err == nil {
			err = set.Validate()
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if words[0] == "agent" || words[0] == "worker" {
			if stop, d := seconds(t, s.StopGracePeriod), drain(t, words); stop < d+20*time.Second {
				t.Errorf("%s is killed after %v, drains for %v", name, stop, d)
			}
		}
		_, err = set.Storage()
		_, net := s.Networks["storage"]
		if holds := words[0] == "worker"; holds != (err == nil) || holds != net {
			t.Errorf("%s: knows the storage: %v, reaches it: %v, want %v", name, err == nil, net, holds)
		}
	}
	if ours != 3 {
		t.Errorf("%d services of ours, want setup, worker and agent", ours)
	}
	if w := p.Services["worker"]; w.ContainerName != "" || len(w.Ports) > 0 {
		t.Error("the worker has a name or a port: it cannot be scaled")
	}
}
