# Two commands do everything on a fresh Debian machine: `make demo` and `make test`.
# Both install what they need (as root) and keep downloads in $(NIXBASTION_CACHE).

export NIXBASTION_CACHE ?= /var/cache/nixbastion
SETUP := sh internal/setup/install.sh
# The go command is found, or installed, when a recipe first needs it.
GO = $(eval GO := $$(or $$(shell $(SETUP) | tail -n 1),$$(error setup failed; its reason stands above)))$(GO)
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)

.PHONY: build test demo soak bench vectors fuzz lint clean

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/nixbastion ./cmd/nixbastion

lint:
	test -z "$$($(dir $(GO))gofmt -l .)" || { $(dir $(GO))gofmt -l .; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

# Every guarantee once, with short time-outs. The hosts of the real tests share
# two cores, so packages run one after another.
test: build lint
	$(GO) test -race -count=1 -timeout 20m $$($(GO) list ./... | grep -v -e /internal/e2e -e /internal/simulate)
	$(GO) test -count=1 -timeout 20m -v ./internal/simulate
	NIXBASTION_BIN=$(CURDIR)/bin/nixbastion $(GO) test -count=1 -timeout 20m -skip '^TestSoak' ./internal/e2e

# The counts that a release must stand, with default time-outs.
soak: build
	NIXBASTION_BIN=$(CURDIR)/bin/nixbastion NIXBASTION_SOAK=1 $(GO) test -count=1 -timeout 120m -v -run '^TestSoak' ./internal/e2e
	NIXBASTION_SOAK=1 $(GO) test -race -count=1 -timeout 60m -v -run 'Kill' ./cache
	NIXBASTION_SOAK=1 $(GO) test -count=1 -timeout 30m -v -run 'Many' ./cache
	NIXBASTION_SOAK=1 $(GO) test -count=1 -timeout 60m -v -run 'Placement' ./internal/simulate

demo: build
	NIXBASTION_BIN=$(CURDIR)/bin/nixbastion $(GO) run ./internal/demo

bench: build
	CGO_ENABLED=0 NIXBASTION_BIN=$(CURDIR)/bin/nixbastion $(GO) run ./internal/bench

# Nix's own golden data, kept outside: make vectors VECTORS=DIR
vectors:
	@test -n "$(VECTORS)" || { echo 'vectors: say where Nix'"'"'s golden data is: make vectors VECTORS=DIR' >&2; exit 2; }
	$(GO) run ./internal/vectors $(VECTORS)

FUZZTIME ?= 30s
fuzz:
	for pkg in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
	    $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 5s $$pkg || exit 1; \
	  done; \
	done

clean:
	rm -rf bin
