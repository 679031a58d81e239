# walherd: what a contributor types. `make` alone lists it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

GO       ?= go
TIMEOUT  ?= 14m
FUZZTIME ?= 10s
BENCH    ?=
DEMO     ?=
FAULTS   ?=

# Where Debian's packages put the servers; the versions of pg.MinMajor to
# pg.MaxMajor.
PG_ROOT  ?= /usr/lib/postgresql
PG_VERSIONS := 18 17 16 15 14 13

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
REVISION ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo devel)
# The commit's date, not today's: the same commit gives the same binary.
BUILT    ?= $(shell git log -1 --format=%cI 2>/dev/null || echo devel)
LDFLAGS  := -s -w -X main.version=$(VERSION) -X main.revision=$(REVISION) -X main.built=$(BUILT)

# The packages whose promise is about goroutines.
RACE ?= ./engine/service/... ./engine/pack/... ./messages/... ./producer/... ./storage/... ./workers/...

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: go
go:
	@command -v $(GO) >/dev/null || { echo "no Go toolchain: install Go 1.26 or newer (https://go.dev/doc/install) and put it in PATH" >&2; exit 1; }

# pgtest needs initdb and postgres of a supported version (or WALHERD_PG_BIN),
# psql and pgbench of any; tests compare with the lz4 and zstd programs.
.PHONY: deps
deps: go ## install what tests and demo need: PostgreSQL, lz4, gpg, libsodium ... (Debian)
	@want=""; \
	have_pg() { \
	  [ -n "$${WALHERD_PG_BIN:-}" ] && [ -x "$$WALHERD_PG_BIN/initdb" ] && return 0; \
	  for v in $(PG_VERSIONS); do [ -x "$(PG_ROOT)/$$v/bin/initdb" ] && return 0; done; \
	  return 1; \
	}; \
	have_client() { \
	  for v in $(PG_VERSIONS); do [ -x "$(PG_ROOT)/$$v/bin/$$1" ] && return 0; done; \
	  command -v "$$1" >/dev/null; \
	}; \
	have_pg && have_client psql && have_client pgbench || want="$$want postgresql"; \
	for tool in lz4 zstd brotli gcc; do command -v $$tool >/dev/null || want="$$want $$tool"; done; \
	command -v xz >/dev/null || want="$$want xz-utils"; \
	command -v gpgconf >/dev/null || want="$$want gnupg"; \
	[ -e /usr/include/sodium.h ] || want="$$want libsodium-dev"; \
	command -v node >/dev/null || want="$$want nodejs"; \
	command -v npm >/dev/null || want="$$want npm"; \
	[ -x /usr/lib/openssh/sftp-server ] || want="$$want openssh-sftp-server"; \
	command -v pgbackrest >/dev/null || want="$$want pgbackrest"; \
	[ -n "$$want" ] || exit 0; \
	command -v apt-get >/dev/null || { echo "missing:$$want; there is no apt-get here: install them by hand" >&2; exit 1; }; \
	as_root=""; \
	if [ "$$(id -u)" != 0 ]; then \
	  command -v sudo >/dev/null || { echo "missing:$$want; run as root: apt-get install$$want" >&2; exit 1; }; \
	  as_root="sudo"; \
	fi; \
	echo "installing:$$want"; \
	conf=/etc/postgresql-common/createcluster.d/walherd-deps.conf; \
	if [[ "$$want" == *postgresql* && ! -e /etc/postgresql-common/createcluster.conf ]]; then \
	  : "a fresh installation would start a server nobody asked for"; \
	  $$as_root mkdir -p "$$(dirname $$conf)"; \
	  echo "create_main_cluster = false" | $$as_root tee $$conf >/dev/null; \
	  trap "$$as_root rm -f $$conf" EXIT; \
	fi; \
	$$as_root apt-get update -q; \
	$$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$want

# The archive library's tests compile against the server's headers. Debian's
# package of them depends on a whole compiler, so it is only unpacked.
PG_HEADERS = $(shell cd ~ && pwd)/.cache/walherd-tools/pgheaders
.PHONY: pgheaders
pgheaders: deps
	@for v in $(PG_VERSIONS); do \
	  [ -x "$(PG_ROOT)/$$v/bin/initdb" ] || continue; \
	  [ ! -e "/usr/include/postgresql/$$v/server/postgres.h" ] || break; \
	  [ ! -e "$(PG_HEADERS)/usr/include/postgresql/$$v/server/postgres.h" ] || break; \
	  command -v apt-get >/dev/null || break; \
	  dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	  (cd "$$dir" && chmod 755 . && apt-get download -q "postgresql-server-dev-$$v" && mkdir -p "$(PG_HEADERS)" && dpkg -x ./*.deb "$(PG_HEADERS)") \
	    || echo "no headers of PostgreSQL $$v: the tests of the archive library will skip" >&2; \
	  break; \
	done

# The servers that tests run against are built once and kept; without this the
# first test of each would wait for it inside go test's time limit.
.PHONY: servers
servers: go
	@$(GO) run ./tools/servers

.PHONY: build
build: go ## bin/walherd, bin/wal-g (the same file), bin/walg-daemon-client
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/walherd ./tools/walherd
	@ln -f bin/walherd bin/wal-g
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/walg-daemon-client ./tools/daemonclient

# The archive library is built against one server's headers, of the major
# version that pg_config tells (PG_CONFIG names another).
.PHONY: archive-library
archive-library: ## bin/walherd_archive.so, for PostgreSQL's archive_library (needs postgresql-server-dev)
	@mkdir -p bin
	$(MAKE) -C tools/archive_library/src
	@cp tools/archive_library/src/walherd_archive.so bin/

.PHONY: check
check: go ## gofmt and go vet
	@bad=$$(gofmt -l .); [ -z "$$bad" ] || { echo "run gofmt -w on:"; echo "$$bad"; exit 1; } >&2
	$(GO) vet ./...

.PHONY: test
test: deps pgheaders check servers ## all tests, against a real PostgreSQL and real object stores
	$(GO) test -timeout $(TIMEOUT) ./...

.PHONY: race
race: deps servers ## the concurrent packages under the race detector (needs a C compiler)
	CGO_ENABLED=1 $(GO) test -race -timeout $(TIMEOUT) $(RACE)

.PHONY: lint
lint: check ## staticcheck, golangci-lint: those that are installed
	@ran=""; \
	for tool in "staticcheck ./..." "golangci-lint run"; do \
	  command -v $${tool%% *} >/dev/null || continue; \
	  echo "$$tool"; $$tool; ran=yes; \
	done; \
	[ -n "$$ran" ] || echo "neither staticcheck nor golangci-lint is in PATH: only gofmt and go vet ran"

.PHONY: bench
bench: deps build ## measure; flags for the bench: make bench BENCH='-h'
	$(GO) run ./tools/bench $(BENCH)

.PHONY: demo
demo: deps build ## backup, restore and proof on a throw-away cluster; flags: make demo DEMO='-h'
	$(GO) run ./tools/demo $(DEMO)

.PHONY: slow
slow: deps servers ## the end-to-end tests with those that make test leaves out for their length
	SLOW_TESTS=1 WALHERD_DELTA_CASES=200 $(GO) test -count=1 -timeout 60m ./tools/e2e

.PHONY: faults
faults: deps servers ## ten minutes of faults on a fleet; flags: make faults FAULTS='-h'
	$(GO) run ./tools/faults $(FAULTS)

.PHONY: faults-short
faults-short: deps servers ## a short run of faults with power cuts, one that must be caught, and every row of the fault table
	WALHERD_FAULTS=1 $(GO) test -v -count=1 -timeout $(TIMEOUT) ./tools/faults

.PHONY: matrix
matrix: matrix-install ## the core cycle, with a recovery target, on each of PostgreSQL 13 to 18
	$(GO) test ./tools/e2e -run TestEachMajor -count=1 -v

.PHONY: matrix-install
matrix-install: deps ## PostgreSQL 13 to 18 only: make test uses what is installed
	$(GO) run ./tools/pgmatrix

.PHONY: fuzz
fuzz: go ## every fuzz target for FUZZTIME (10s)
	@grep -rl --include='*_test.go' '^func Fuzz' . | while read -r file; do \
	  grep -o '^func Fuzz[A-Za-z0-9_]*' "$$file" | while read -r _ target; do \
	    echo "$$(dirname "$$file") $$target"; \
	    $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x "$$(dirname "$$file")"; \
	  done; \
	done

.PHONY: clean
clean: ## remove bin and the templates of test clusters
	rm -rf bin
	rm -rf /var/tmp/walherd-pgmatrix-$$(id -u)-*
	rm -rf /var/tmp/walherd-pgtest-$$(id -u) /var/tmp/walherd-pgtest-$$(id -u postgres 2>/dev/null || echo none) 2>/dev/null || true
