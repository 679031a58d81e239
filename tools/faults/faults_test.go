package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walherd/walherd/tools/faults/oracle"
)

// TestPlanIsTheSeeds: the seed alone makes the sequence.
func TestPlanIsTheSeeds(t *testing.T) {
	t.Parallel()
	shape := func(seed uint64) (out []string) {
		for _, rd := range plan(seed, 10*time.Minute, 10*time.Second, steps()) {
			for _, s := range rd.steps {
				out = append(out, fmt.Sprint(rd.pause, rd.hold, s.name, s.seed))
			}
		}
		return out
	}
	a, b := shape(7), shape(7)
	if !reflect.DeepEqual(a, b) {
		t.Fatal("one seed made two plans")
	}
	if reflect.DeepEqual(a, shape(8)) {
		t.Fatal("two seeds made one plan")
	}
	if len(a) < 40 {
		t.Fatalf("%d faults in 10 minutes", len(a))
	}
	seen := map[string]bool{}
	for seed := range uint64(20) {
		for _, rd := range plan(seed, 10*time.Minute, 10*time.Second, steps()) {
			for _, s := range rd.steps {
				seen[s.name] = true
			}
			if len(rd.steps) == 2 && rd.steps[0].group == rd.steps[1].group {
				t.Fatalf("%s and %s at once", rd.steps[0].name, rd.steps[1].name)
			}
		}
	}
	for _, s := range steps() {
		if !seen[s.name] {
			t.Errorf("20 seeds never make %s", s.name)
		}
	}
}

func TestChoice(t *testing.T) {
	t.Parallel()
	if _, err := choice("no-such", true); err == nil || !strings.Contains(err.Error(), "worker-kill") {
		t.Fatalf("an unknown fault: %v", err)
	}
	if got, err := choice("power-all, worker-kill", true); err != nil || len(got) != 2 {
		t.Fatalf("chose %d, %v", len(got), err)
	}
	if _, err := choice("power-all", false); err == nil {
		t.Fatal("a power cut without a disk to cut")
	}
}

func TestWroteBackup(t *testing.T) {
	t.Parallel()
	const name = "base_000000010000000000000006"
	for out, want := range map[string]string{
		"INFO: 2026/01/01 Wrote backup with name " + name + " to storage default\n": name,
		"x base_000000010000000000000001\n" + name:                                  name,
		"nothing": "",
	} {
		if got := wroteBackup(out); got != want {
			t.Errorf("%q: %q", out, got)
		}
	}
}

// seeds of the short run. WALHERD_FAULTS_ROUND=n takes the n-th, so that a
// series of runs sees them all.
var seeds = []uint64{6, 18, 19, 41, 9, 22}

// asCommand tells this test's binary to be the command.
const asCommand = "FAULTS_COMMAND"

// programDir has the programs under test, which bins builds once for all tests.
var programDir string

var bins = sync.OnceValues(func() (string, error) {
	_, err := build(context.Background(), programDir, false)
	return programDir, err
})

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
		return
	}
	os.Exit(func() int {
		var err error
		if programDir, err = os.MkdirTemp("", "walherd-faults-"); err == nil {
			err = os.Chmod(programDir, 0o755) // PostgreSQL's user runs them
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(programDir)
		return m.Run()
	}())
}

// short runs the command as a process of its own.
func short(t *testing.T, args ...string) (string, error) {
	t.Helper()
	programs, err := bins()
	if err != nil {
		t.Fatal(err)
	}
	logs := filepath.Join(t.TempDir(), "logs")
	cmd := exec.CommandContext(t.Context(), os.Args[0], append(args, "--keep", logs, "--bins", programs)...)
	cmd.Env = append(os.Environ(), asCommand+"=yes")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		files, _ := filepath.Glob(filepath.Join(logs, "*.log"))
		for _, l := range files {
			t.Logf("%s:\n%s", filepath.Base(l), tail(l))
		}
	}
	return string(out), err
}

// TestShortRun is the fault run at its shortest. Asked for, it has disks that
// lose their power; else it mounts nothing.
func TestShortRun(t *testing.T) {
	t.Parallel()
	round := 0
	if s := os.Getenv("WALHERD_FAULTS_ROUND"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			t.Fatalf("WALHERD_FAULTS_ROUND=%s: want a number", s)
		}
		round = n
	}
	args := []string{"--seed", fmt.Sprint(seeds[round%len(seeds)]), "--duration", "15s", "--hold", "3s", "--between", "8s", "--restores", "1"}
	if os.Getenv("WALHERD_FAULTS") == "" {
		args = append(args, "--plain-disks")
	}
	out, err := short(t, args...)
	t.Log(out)
	if err != nil {
		t.Fatal(err)
	}
}

// TestRunSeesPlantedViolations: what the oracle is for, in a run that is
// otherwise good.
func TestRunSeesPlantedViolations(t *testing.T) {
	t.Parallel()
	onlyWhenAsked(t)
	out, err := short(t, "--seed", "1", "--duration", "1s", "--only", "worker-stop", "--restores", "0", "--plain-disks", "--plant")
	if err == nil {
		t.Fatalf("a run with two spoilt segments ended well:\n%s", out)
	}
	for _, want := range []string{
		"BROKEN: " + oracle.WALStored, "is not there", "BROKEN: " + oracle.Unchanged, "is gone",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
}

// TestLossyfs runs the tests of the nested module.
func TestLossyfs(t *testing.T) {
	t.Parallel()
	steps := [][]string{{"vet", "."}}
	if os.Getenv("WALHERD_FAULTS") != "" {
		steps = append(steps, []string{"test", "."}) // it mounts
	}
	for _, args := range steps {
		cmd := exec.CommandContext(context.Background(), "go", args...)
		cmd.Dir = "lossyfs"
		cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %v: %v\n%s", args, err, out)
		}
	}
}

// onlyWhenAsked skips what takes long.
func onlyWhenAsked(t *testing.T) {
	t.Helper()
	if os.Getenv("WALHERD_FAULTS") == "" {
		t.Skip("takes long: make faults-short runs it")
	}
}
