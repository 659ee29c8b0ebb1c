# make && sudo make install     for the PostgreSQL of the pg_config in PATH
# make help                     lists everything else

PG_CONFIG ?= pg_config
DESTDIR ?=

# What `make test` covers: MAJORS="15 18" for some only.
export MAJORS ?= 14 15 16 17 18

MAJOR = $(shell $(PG_CONFIG) --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')
TARGET_DIR = $(or $(CARGO_TARGET_DIR),target)
LIBRARY = build/pg$(MAJOR)/encryption_ext.so
READER = build/encryption_ext-decrypt
CRATES = $(shell find crates/envelope crates/keyring -name '*.rs' -path '*/src/*') crates/*/Cargo.toml
SOURCES = Cargo.toml Cargo.lock $(shell find src -name '*.rs') $(CRATES)
READER_SOURCES = Cargo.toml Cargo.lock $(shell find crates/decrypt/src -name '*.rs') $(CRATES)

# The PostgreSQL that scripts/prepare makes for the demo, the tests and the benchmarks.
POSTGRESQL_15 = $(realpath build)/postgresql/15/bin/pg_config

.PHONY: all
all: build

.PHONY: help
help: ## Lists the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: require-pg-config ## Builds the extension for PG_CONFIG's PostgreSQL, and the offline reader.
	@$(MAKE) --no-print-directory $(LIBRARY) $(READER)

.PHONY: reader
reader: $(READER) ## Builds the offline reader alone, into build/: it needs no PostgreSQL.

# A file of its own for each major version, and a rule that looks at the sources: so that
# `sudo make install` needs no cargo, and root leaves no files in cargo's folders. (Without its
# configuration, which may be empty, pgrx makes its bindings anew each time.)
build/pg%/encryption_ext.so: $(SOURCES)
	mkdir -p build/pgrx
	test -e build/pgrx/config.toml || touch build/pgrx/config.toml
	PGRX_HOME="$(CURDIR)/build/pgrx" \
	PGRX_PG_CONFIG_PATH="$(abspath $(shell command -v $(PG_CONFIG)))" \
		cargo build --release --locked --package encryption_ext \
		--no-default-features --features pg$* --target-dir $(TARGET_DIR)
	install -D -m 755 $(TARGET_DIR)/release/libencryption_ext.so $@

$(READER): $(READER_SOURCES)
	cargo build --release --locked --package encryption_ext-decrypt --target-dir $(TARGET_DIR)
	install -D -m 755 $(TARGET_DIR)/release/encryption_ext-decrypt $@

.PHONY: install
install: build ## Installs both there; DESTDIR is for packagers.
	install -d "$(DESTDIR)$(shell $(PG_CONFIG) --pkglibdir)" "$(DESTDIR)$(shell $(PG_CONFIG) --bindir)" \
		"$(DESTDIR)$(shell $(PG_CONFIG) --sharedir)/extension"
	install -m 755 $(LIBRARY) "$(DESTDIR)$(shell $(PG_CONFIG) --pkglibdir)/"
	install -m 755 $(READER) "$(DESTDIR)$(shell $(PG_CONFIG) --bindir)/"
	install -m 644 encryption_ext.control sql/encryption_ext--*.sql \
		"$(DESTDIR)$(shell $(PG_CONFIG) --sharedir)/extension/"

# SCHEMA is the extension's; RUNBOOKS is what comes before docs/operations/ in links to runbooks.
SCHEMA ?= public
RUNBOOKS ?=

.PHONY: monitoring
monitoring: ## Makes build/monitoring: files for exporters, alerts for Prometheus. SCHEMA=, RUNBOOKS=.
	monitoring/generate --schema "$(SCHEMA)" --runbooks "$(RUNBOOKS)"

.PHONY: require-pg-config
require-pg-config:
	@$(PG_CONFIG) --version >/dev/null || { \
		echo 'PG_CONFIG=/path/to/pg_config must name the one of your PostgreSQL' >&2; exit 1; }

.PHONY: demo
demo: ## Shows encrypted columns on real records, on a throw-away cluster.
	scripts/prepare build
	$(MAKE) --no-print-directory install-for-tests
	scripts/demo

.PHONY: bench
bench: ## Measures what encryption costs, in 20 minutes; writes benches/results/ and README.md's table.
	scripts/prepare bench
	$(MAKE) --no-print-directory install-for-tests
	benches/run

.PHONY: install-for-tests
install-for-tests:
	@$(MAKE) --no-print-directory install PG_CONFIG=$(POSTGRESQL_15)

.PHONY: test
test: ## Everything that follows, on PostgreSQL 14 to 18.
	scripts/prepare test
	scripts/test

.PHONY: lint
lint: ## Format, lints, licences and advisories of the dependencies.
	scripts/prepare test
	scripts/test fmt clippy deny advisories

.PHONY: test-crates
test-crates: ## The crates' tests; they need Rust and nothing else.
	scripts/test crates

.PHONY: test-regress
test-regress: ## The regression SQL on each of MAJORS.
	scripts/prepare test
	scripts/test build regress

.PHONY: test-clusters
test-clusters: ## The tests on real clusters, of PostgreSQL 15 (one of 18, too), and real key servers.
	scripts/prepare test
	MAJORS="15 18" scripts/test build clusters

.PHONY: fmt
fmt: ## Formats the Rust code.
	cargo fmt --all

.PHONY: clean
clean: ## Removes what was built and fetched.
	rm -rf "$$(realpath -m build)" build
	cargo clean --target-dir $(TARGET_DIR)
