package pgtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
)

// MinMajor and MaxMajor bound the server versions looked for.
const (
	MinMajor = 13
	MaxMajor = 18
)

const debianRoot = "/usr/lib/postgresql"

// install is one PostgreSQL installation.
type install struct {
	bin   string // directory with initdb and postgres
	major int
}

// findInstall looks for server binaries: in dir if given, else in
// $WALHERD_PG_BIN, else in the newest supported version Debian's packages
// have put on this machine.
func findInstall(dir string) (install, error) {
	if dir == "" {
		dir = os.Getenv("WALHERD_PG_BIN")
	}
	if dir == "" {
		for v := MaxMajor; v >= MinMajor; v-- {
			d := filepath.Join(debianRoot, strconv.Itoa(v), "bin")
			if serverIn(d) {
				dir = d
				break
			}
		}
	}
	if dir == "" {
		return install{}, fmt.Errorf("no PostgreSQL %d to %d below %s: run `make deps`, or set WALHERD_PG_BIN to the directory of initdb and postgres",
			MinMajor, MaxMajor, debianRoot)
	}
	if !serverIn(dir) {
		return install{}, fmt.Errorf("no initdb and postgres in %s: run `make deps`, or correct WALHERD_PG_BIN", dir)
	}
	major, err := majorIn(dir)
	if err != nil {
		return install{}, err
	}
	return install{bin: dir, major: major}, nil
}

// majors has the major version of each directory that was asked: to start
// postgres costs 50 ms, and every cluster asks.
var majors sync.Map

func majorIn(dir string) (int, error) {
	if major, ok := majors.Load(dir); ok {
		return major.(int), nil
	}
	out, err := exec.Command(filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("ask %s for its version: %w", filepath.Join(dir, "postgres"), err)
	}
	major, err := parseMajor(string(out))
	if err == nil {
		majors.Store(dir, major)
	}
	return major, err
}

var versionPattern = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// parseMajor reads "postgres (PostgreSQL) 15.18 (Debian ...)".
func parseMajor(s string) (int, error) {
	m := versionPattern.FindStringSubmatch(s)
	if m == nil {
		return 0, fmt.Errorf("read PostgreSQL version from %q: want \"postgres (PostgreSQL) N\"", s)
	}
	return strconv.Atoi(m[1])
}

func serverIn(dir string) bool {
	return executable(filepath.Join(dir, "initdb")) && executable(filepath.Join(dir, "postgres"))
}

func executable(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && !fi.IsDir() && fi.Mode()&0o111 != 0
}

// client finds a client program: beside the server, else of the newest
// version of Debian's packages (a server-only installation has no psql), else
// in $PATH. Debian's /usr/bin/psql comes last on purpose: it is a Perl
// wrapper that looks for clusters we do not use and costs 60 ms a call.
func (in install) client(name string) (string, error) {
	dirs := []string{in.bin}
	for v := MaxMajor; v >= MinMajor; v-- {
		dirs = append(dirs, filepath.Join(debianRoot, strconv.Itoa(v), "bin"))
	}
	for _, d := range dirs {
		if p := filepath.Join(d, name); executable(p) {
			return p, nil
		}
	}
	p, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("find %s: %w (run `make deps`)", name, err)
	}
	return p, nil
}
