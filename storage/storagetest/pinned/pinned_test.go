package pinned_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/walherd/walherd/storage/storagetest/pinned"
)

func TestBuildTakesTheNamedBinary(t *testing.T) {
	tool := pinned.Tool{Name: "test server", Module: "nothing", Package: "example.org/nothing", Env: "WALHERD_PINNED_TEST"}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(tool.Env, self)
	if got, err := tool.Build(t.Context()); err != nil || got != self {
		t.Errorf("Build = %q, %v; want the named binary", got, err)
	}
	t.Setenv(tool.Env, self+".missing")
	if _, err := tool.Build(t.Context()); err == nil || !strings.Contains(err.Error(), tool.Env) {
		t.Errorf("Build with a missing binary: %v", err)
	}
	t.Setenv(tool.Env, "")
	if _, err := tool.Build(t.Context()); err == nil || !strings.Contains(err.Error(), tool.Module) && !strings.Contains(err.Error(), tool.Name) {
		t.Errorf("Build of a missing module: %v", err)
	}
}

func TestStartTellsWhyAServerEnds(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	addr, err := pinned.FreeAddr(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = pinned.Start(t.Context(), "test server", exec.Command(self, "-test.nosuchflag"), "http://"+addr)
	if err == nil || !strings.Contains(err.Error(), "ended at once") || !strings.Contains(err.Error(), "nosuchflag") {
		t.Errorf("Start of a program that ends: %v", err)
	}
}
