// Command check renders walherd's Helm chart and reads its compose file, for
// the tests of package deploytest, which build it. It is a module of its own so
// that the libraries it needs do not become walherd's.
//
//	check chart DIR < values.json   prints {file: text} as JSON
//	check compose FILE              prints the file, resolved, as YAML
//
// The chart is not rendered by Helm, whose engine takes minutes to build, but
// by what it is made of: text/template, the sprig functions, and include,
// toYaml, required and fail, in the same words. What Helm has beyond them
// (lookup, tpl, .Files, .Capabilities) is an error here. One thing is stricter:
// a value that does not exist is an error and not "<no value>".
//
// Everything that is wrong is told on stderr, with exit code 1.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig/v3"
	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"sigs.k8s.io/yaml"
)

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string, in io.Reader, out io.Writer) error {
	switch {
	case len(args) == 2 && args[0] == "chart":
		return chart(args[1], in, out)
	case len(args) == 2 && args[0] == "compose":
		return compose(args[1], out)
	}
	return errors.New("usage: check chart DIR < values.json | check compose FILE")
}

// chart renders the chart in dir with the values on in laid over its own.
func chart(dir string, in io.Reader, out io.Writer) error {
	values := map[string]any{}
	if err := readYAML(filepath.Join(dir, "values.yaml"), &values); err != nil {
		return err
	}
	var over map[string]any
	if err := json.NewDecoder(in).Decode(&over); err != nil {
		return fmt.Errorf("read values: %w", err)
	}
	lay(values, over)
	if err := validate(filepath.Join(dir, "values.schema.json"), values); err != nil {
		return err
	}
	var about map[string]any
	if err := readYAML(filepath.Join(dir, "Chart.yaml"), &about); err != nil {
		return err
	}
	meta := map[string]any{}
	for k, v := range about { // Helm's structure has upper-case names
		meta[strings.ToUpper(k[:1])+k[1:]] = v
	}
	rendered, err := render(filepath.Join(dir, "templates"), map[string]any{
		"Values": values, "Chart": meta,
		"Release": map[string]any{"Name": "r", "Namespace": "default", "Service": "Helm", "Revision": 1},
	})
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(rendered)
}

func readYAML(path string, into any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := yaml.UnmarshalStrict(data, into); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// lay puts over on top of base, maps key by key.
func lay(base, over map[string]any) {
	for k, v := range over {
		upper, isMap := v.(map[string]any)
		if lower, ok := base[k].(map[string]any); ok && isMap {
			lay(lower, upper)
			continue
		}
		base[k] = v
	}
}

func validate(path string, values any) error {
	schema, err := jsonschema.NewCompiler().Compile(path)
	if err != nil {
		return err
	}
	return schema.Validate(values)
}

func render(dir string, data any) (map[string]string, error) {
	all := template.New("chart").Option("missingkey=error")
	functions := sprig.TxtFuncMap()
	delete(functions, "env")
	delete(functions, "expandenv")
	functions["include"] = func(name string, data any) (string, error) {
		var b strings.Builder
		err := all.ExecuteTemplate(&b, name, data)
		return b.String(), err
	}
	functions["toYaml"] = func(v any) (string, error) {
		data, err := yaml.Marshal(v)
		return strings.TrimSuffix(string(data), "\n"), err
	}
	functions["required"] = func(message string, v any) (any, error) {
		if v == nil || v == "" {
			return nil, errors.New(message)
		}
		return v, nil
	}
	functions["fail"] = func(message string) (string, error) { return "", errors.New(message) }
	all.Funcs(functions)
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if _, err := all.New(filepath.Base(file)).Parse(string(text)); err != nil {
			return nil, err
		}
	}
	rendered := map[string]string{}
	for _, file := range files {
		name := filepath.Base(file)
		if strings.HasPrefix(name, "_") {
			continue
		}
		var b bytes.Buffer
		if err := all.ExecuteTemplate(&b, name, data); err != nil {
			return nil, err
		}
		rendered[name] = b.String()
	}
	return rendered, nil
}

// compose reads a compose file as docker compose does: schema, anchors,
// variables of the environment, and what services say of each other.
func compose(path string, out io.Writer) error {
	options, err := cli.NewProjectOptions([]string{path}, cli.WithOsEnv)
	if err != nil {
		return err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return err
	}
	text, err := project.MarshalYAML()
	if err != nil {
		return err
	}
	_, err = out.Write(text)
	return err
}
