package deploytest_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/topology"
)

var chartDir = filepath.Join(root, "deploy", "helm", "walherd")

// object is a Kubernetes object, as far as the tests look at it.
type object struct {
	Kind     string
	Metadata struct {
		Name        string
		Annotations map[string]string
	}
	Data map[string]string
	Spec struct {
		Replicas *int
		Template struct{ Spec podSpec }
		Triggers []struct {
			Type     string
			Metadata map[string]string
		}
	}
}

type podSpec struct {
	Grace           int `yaml:"terminationGracePeriodSeconds"`
	SecurityContext map[string]any
	Containers      []container
	Volumes         []struct{ Name string }
}

type container struct {
	Name   string
	Image  string
	Args   []string
	Env    []struct{ Name, Value string }
	Mounts []struct{ Name string } `yaml:"volumeMounts"`
	Ready  any                     `yaml:"readinessProbe"`
	Live   any                     `yaml:"livenessProbe"`
	Secure struct {
		Escalation *bool `yaml:"allowPrivilegeEscalation"`
		ReadOnly   bool  `yaml:"readOnlyRootFilesystem"`
	} `yaml:"securityContext"`
	Resources struct{ Limits map[string]string }
}

// render gives the chart's objects by kind and name, and its notes.
func render(t *testing.T, values string) (objects map[string]object, notes string, err error) {
	t.Helper()
	var given any = map[string]any{}
	if err := yaml.Unmarshal([]byte(values), &given); err != nil {
		t.Fatal(err)
	}
	stdin, err := json.Marshal(given)
	if err != nil {
		t.Fatal(err)
	}
	out, err := check(t, stdin, nil, "chart", chartDir)
	if err != nil {
		return nil, "", err
	}
	var files map[string]string
	if err := json.Unmarshal(out, &files); err != nil {
		t.Fatal(err)
	}
	notes = files["NOTES.txt"]
	delete(files, "NOTES.txt")
	objects = map[string]object{}
	for file, text := range files {
		d := yaml.NewDecoder(strings.NewReader(text))
		for {
			var o object
			if err := d.Decode(&o); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v\n%s", file, err, text)
			}
			if o.Kind != "" {
				objects[o.Kind+" "+o.Metadata.Name] = o
			}
		}
	}
	return objects, notes, nil
}

// all of what the chart can do at once.
const everything = `
cluster: main
image: {pullSecrets: [{name: login}], tag: v1}
broker:
  url: tls://a:4222,tls://b:4222
  tls: {secretName: tls, clientCertificate: true}
  auth:
    worker: {envSecret: wenv, credsSecret: wcreds}
    agent: {envSecret: aenv, credsSecret: acreds}
    operator: {envSecret: oenv, credsSecret: ocreds}
storage: {existingSecret: keys, settings: {WALG_S3_PREFIX: "s3://bucket/main"}}
settings: {WALHERD_JOB_TRIES: 7}
serviceAccount: {annotations: {a: b}}
worker:
  drainSeconds: 45
  retention: retain --window 14d; garbage --window 14d
  retentionSchedule: "45 5 * * *"
  settings: {WALG_COMPRESSION_METHOD: zstd}
  podAnnotations: {a: b}
  podLabels: {a: b}
  nodeSelector: {a: b}
  tolerations: [{operator: Exists}]
  affinity: {nodeAffinity: {}}
  priorityClassName: high
  topologySpreadConstraints: [{maxSkew: 1}]
  extraVolumes: [{name: more}]
  extraVolumeMounts: [{name: more, mountPath: /more}]
autoscaling: {enabled: true, monitoringEndpoint: "nats-headless.nats.svc:8222"}
agent:
  mode: daemonset
  backupSchedule: "15 2 * * *"
  verifySchedule: "45 6 * * *"
  pgSecret: pg
  extraVolumes: [{name: spool}]
  extraVolumeMounts: [{name: spool, mountPath: /spool}]
  daemonset: {nodeSelector: {a: b}, tolerations: [{operator: Exists}]}
`

var renderings = map[string]struct {
	values string
	want   []string
}{
	"smallest":   {`{broker: {url: "nats://b:4222"}}`, []string{"Deployment r-walherd-worker", "Job r-walherd-setup", "PodDisruptionBudget r-walherd-worker", "ServiceAccount r-walherd"}},
	"everything": {everything, []string{"DaemonSet r-walherd-agent", "Deployment r-walherd-worker", "Job r-walherd-setup", "PodDisruptionBudget r-walherd-worker", "ScaledObject r-walherd-worker", "ServiceAccount r-walherd"}},
	"sidecar": {strings.Replace(everything, "mode: daemonset", "mode: sidecar", 1),
		[]string{"ConfigMap r-walherd-agent-sidecar", "Deployment r-walherd-worker", "Job r-walherd-setup", "PodDisruptionBudget r-walherd-worker", "ScaledObject r-walherd-worker", "ServiceAccount r-walherd"}},
	"with the broker": {`{nats: {enabled: true}, autoscaling: {enabled: true}, serviceAccount: {create: false}, fullnameOverride: w}`,
		[]string{"Deployment w-worker", "Job w-setup-1", "PodDisruptionBudget w-worker", "ScaledObject w-worker"}},
}

func TestChart(t *testing.T) {
	t.Parallel()
	for name, tc := range renderings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			objects, notes, err := render(t, tc.values)
			if err != nil {
				t.Fatal(err)
			}
			if got := slices.Sorted(maps.Keys(objects)); !slices.Equal(got, tc.want) {
				t.Errorf("objects %q, want %q", got, tc.want)
			}
			if !strings.Contains(notes, "walherd status") {
				t.Errorf("notes: %s", notes)
			}
			for what, o := range objects {
				pod := o.Spec.Template.Spec
				if o.Kind == "ConfigMap" {
					pod = sidecar(t, o)
				}
				for _, c := range pod.Containers {
					testContainer(t, what, pod, c)
				}
				switch {
				case o.Kind == "Deployment":
					scaled := slices.ContainsFunc(tc.want, func(s string) bool { return strings.HasPrefix(s, "ScaledObject") })
					if (o.Spec.Replicas == nil) != scaled {
						t.Errorf("%s: replicas %v, scaled %v: two would set one number", what, o.Spec.Replicas, scaled)
					}
				case o.Kind == "ScaledObject":
					testTriggers(t, o, tc.values)
				case o.Kind == "Job" && (o.Metadata.Annotations["helm.sh/hook"] == "") != strings.Contains(tc.values, "nats: {enabled"):
					t.Errorf("%s: hook %q", what, o.Metadata.Annotations["helm.sh/hook"])
				}
			}
		})
	}
}

// sidecar reads what people are to paste.
func sidecar(t *testing.T, o object) podSpec {
	t.Helper()
	var pod podSpec
	var c container
	if err := yaml.Unmarshal([]byte(o.Data["container.yaml"]), &c); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal([]byte(o.Data["volumes.yaml"]), &pod.Volumes); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"data", "postgres-socket"} { // the database's own
		pod.Volumes = append(pod.Volumes, struct{ Name string }{name})
	}
	pod.Containers, pod.Grace = []container{c}, 60
	return pod
}

func testContainer(t *testing.T, what string, pod podSpec, c container) {
	t.Helper()
	if wrong := commandLine(t, c.Args); wrong != "" {
		t.Errorf("%s: %s", what, wrong)
	}
	seen := map[string]bool{}
	for _, e := range c.Env {
		if ok, secret := isSetting(e.Name); !ok || secret || e.Value == "" || seen[e.Name] {
			t.Errorf("%s: %s=%q: a setting %v, secret %v, twice %v", what, e.Name, e.Value, ok, secret, seen[e.Name])
		}
		seen[e.Name] = true
	}
	for _, m := range c.Mounts {
		if !slices.ContainsFunc(pod.Volumes, func(v struct{ Name string }) bool { return v.Name == m.Name }) {
			t.Errorf("%s mounts %s, which is no volume", what, m.Name)
		}
	}
	if c.Secure.Escalation == nil || *c.Secure.Escalation || !c.Secure.ReadOnly || c.Resources.Limits["memory"] == "" {
		t.Errorf("%s: security context %+v, limits %v", what, c.Secure, c.Resources.Limits)
	}
	if c.Args[0] == "queue" {
		return
	}
	if c.Ready == nil || c.Live == nil {
		t.Errorf("%s has no probes", what)
	}
	if d := drain(t, c.Args); time.Duration(pod.Grace)*time.Second < d+20*time.Second {
		t.Errorf("%s is killed after %d s, drains for %v", what, pod.Grace, d)
	}
}

// KEDA takes a consumer that it does not find for a long backlog.
func testTriggers(t *testing.T, o object, values string) {
	t.Helper()
	cluster := messages.Cluster("default")
	if strings.Contains(values, "cluster: main") {
		cluster = "main"
	}
	var got []string
	for _, trigger := range o.Spec.Triggers {
		if trigger.Type != "nats-jetstream" || trigger.Metadata["stream"] != topology.StreamWork || trigger.Metadata["natsServerMonitoringEndpoint"] == "" || trigger.Metadata["account"] == "" {
			t.Errorf("trigger %+v", trigger)
		}
		got = append(got, trigger.Metadata["consumer"])
	}
	want := []string{messages.WorkConsumer(messages.KindArchive, cluster), messages.WorkConsumer(messages.KindPart, cluster)}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("consumers %q, want %q", got, want)
	}
}

func TestChartRefuses(t *testing.T) {
	t.Parallel()
	for values, want := range map[string]string{
		`{}`:                        "broker.url is empty",
		`{broker: {url: "b:4222"}}`: "/broker/url",
		`{worker: {slot: 2}}`:       "slot",
		`{broker: {replicas: 2}}`:   "/broker/replicas",
		`{cluster: "a.b"}`:          "/cluster",
		`{broker: {url: "nats://b:4222"}, autoscaling: {enabled: true}}`:             "autoscaling.monitoringEndpoint is empty",
		`{broker: {url: "nats://b:4222"}, agent: {mode: daemonset}}`:                 "agent.daemonset.nodeSelector is empty",
		`{broker: {url: "nats://b:4222"}, storage: {settings: {walg_s3_prefix: x}}}`: "walg_s3_prefix",
	} {
		if _, _, err := render(t, values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", values, err, want)
		}
	}
}

var valuePath = regexp.MustCompile(`(\.Values|\$v)((?:\.[A-Za-z]+)+)`)

// Every value a template asks for is in values.yaml, and every one there is
// asked for, described, and known to the schema.
func TestChartValues(t *testing.T) {
	t.Parallel()
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(read(t, filepath.Join(chartDir, "values.yaml"))), &doc); err != nil {
		t.Fatal(err)
	}
	paths := map[string]bool{} // to whether it is a leaf
	var walk func(n *yaml.Node, path string, described bool)
	walk = func(n *yaml.Node, path string, described bool) {
		for i := 0; i < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			sub, ok := path+"."+key.Value, described && path != "" || key.HeadComment != ""
			leaf := value.Kind != yaml.MappingNode || len(value.Content) == 0
			paths[sub] = leaf
			if leaf && !ok {
				t.Errorf("value %s is not described", sub)
			}
			if !leaf && (path == "" && key.Value != "nats" || path != "" && !strings.HasPrefix(path, ".nats")) {
				// A comment on a section describes only what lies deeper.
				walk(value, sub, ok && path != "")
			}
			if sub == ".nats" {
				paths[".nats.enabled"] = true
			}
		}
	}
	walk(doc.Content[0], "", false)
	asked := map[string]bool{}
	for _, file := range glob(t, "deploy", "helm", "walherd", "templates", "*") {
		for _, m := range valuePath.FindAllStringSubmatch(read(t, file), -1) {
			path := m[2]
			if m[1] == "$v" {
				path = ".agent" + path
			}
			asked[path] = true
			if _, ok := paths[path]; !ok {
				t.Errorf("%s asks for %s, which values.yaml has not", file, path)
			}
		}
	}
	for path, leaf := range paths {
		used := false
		for a := range asked {
			used = used || path == a || strings.HasPrefix(path, a+".")
		}
		// The logins go to helpers role by role.
		if leaf && !used && !strings.HasPrefix(path, ".broker.auth.") {
			t.Errorf("no template asks for %s", path)
		}
	}
	var schema struct{ Properties map[string]any }
	if err := json.Unmarshal([]byte(read(t, filepath.Join(chartDir, "values.schema.json"))), &schema); err != nil {
		t.Fatal(err)
	}
	var compare func(properties map[string]any, path string)
	compare = func(properties map[string]any, path string) {
		for name, p := range properties {
			if _, ok := paths[path+"."+name]; !ok && name != "global" {
				t.Errorf("the schema has %s, values.yaml has not", path+"."+name)
			}
			if deeper, ok := p.(map[string]any)["properties"].(map[string]any); ok {
				compare(deeper, path+"."+name)
			}
		}
	}
	compare(schema.Properties, "")
}

// Helm's own rendering is the same, where it is installed.
func TestHelmAgrees(t *testing.T) {
	t.Parallel()
	helm, err := exec.LookPath("helm")
	if err != nil {
		t.Skip("helm is not in PATH: the chart is only rendered by the module check")
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(chartDir)); err != nil {
		t.Fatal(err)
	}
	// The broker's chart is fetched by helm dependency build, not kept.
	about, _, _ := strings.Cut(read(t, filepath.Join(dir, "Chart.yaml")), "dependencies:")
	if err := os.WriteFile(filepath.Join(dir, "Chart.yaml"), []byte(about), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, tc := range renderings {
		values := filepath.Join(t.TempDir(), "values.yaml")
		if err := os.WriteFile(values, []byte(tc.values), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), helm, "lint", "--strict", dir, "-f", values).CombinedOutput(); err != nil {
			t.Errorf("%s: helm lint: %v: %s", name, err, out)
		}
		out, err := exec.CommandContext(t.Context(), helm, "template", "r", dir, "-f", values, "--kube-version", "1.33.0").CombinedOutput()
		if err != nil {
			t.Errorf("%s: helm template: %v: %s", name, err, out)
			continue
		}
		ours, _, err := render(t, tc.values)
		if err != nil {
			t.Fatal(err)
		}
		theirs := map[string]object{}
		for d := yaml.NewDecoder(strings.NewReader(string(out))); ; {
			var o object
			if err := d.Decode(&o); err != nil {
				break
			}
			theirs[o.Kind+" "+o.Metadata.Name] = o
		}
		if a, b := fmt.Sprintf("%+v", ours), fmt.Sprintf("%+v", theirs); len(ours) != len(theirs) || !sameObjects(ours, theirs) {
			t.Errorf("%s: rendered here:\n%s\nby helm:\n%s", name, a, b)
		}
	}
}

func sameObjects(a, b map[string]object) bool {
	for k := range a {
		x, err := yaml.Marshal(a[k])
		if err != nil {
			return false
		}
		y, err := yaml.Marshal(b[k])
		if err != nil || string(x) != string(y) {
			return false
		}
	}
	return true
}
