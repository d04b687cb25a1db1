# Everything a person or CI does with this checkout. `make help` lists it.
# Needs Rust by rustup and a Debian (x86-64 or arm64); what else is missing is installed, or named.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test check properties acceptance audit bench fuzz build cross cross-test reproducible deb deb-test image image-test release clean test-setup demo-setup check-setup deb-setup rust

CACHE := $(or $(TIDEGATE_STACK_CACHE),$(CURDIR)/.cache)
export TIDEGATE_STACK_CACHE := $(CACHE)
DENY := $(CACHE)/cargo-deny/bin/cargo-deny
TARGETS := $(or $(TARGET),$(shell sed -n "s/^targets='\(.*\)'/\1/p" cross/targets.sh))
FUZZ_SECONDS ?= 60

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

demo: demo-setup ## real Mosquitto, Kafka, tidegate and both clients, with a freeze in the middle, and a count
	cargo build --release --locked --bins --example demo
	target/release/examples/demo

test: test-setup check ## everything: checks, unit tests, scripted brokers, real brokers, and a board's emulator
	# The tests wait more than they work, and those with real brokers take turns: eight at once on any machine.
	# A fixed seed: what passes here passes everywhere. `make properties` looks for what it misses.
	PROPTEST_RNG_SEED=1 cargo test --locked --no-fail-fast -- --test-threads=8
	# One board of the four, the one that is compiled the fastest: `make cross-test` has all of them, as they are released.
	CROSS_PROFILE=cross-test CROSS_BINARIES=tidegate cross/test.sh aarch64-unknown-linux-musl

properties: rust ## the property tests with seeds of their own, 5000 cases each (some minutes)
	PROPTEST_CASES=5000 cargo test --locked --release --lib

acceptance: test-setup ## the real-broker tests at full size (about 110 minutes); prints a table
	rm -f target/acceptance.md
	@mkdir -p target
	TIDEGATE_REAL_FULL=1 TIDEGATE_REAL_REPORT=$(CURDIR)/target/acceptance.md \
		cargo test --locked --release --test real -- --nocapture
	@printf '\n| test | sent | received | lost | duplicates | out of order | time | remark |\n|---|---|---|---|---|---|---|---|\n'
	@cat target/acceptance.md

check: check-setup ## format, clippy, the documentation's links, and what cargo-deny allows
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --lib
	$(DENY) --locked check bans licenses sources

audit: check-setup ## known vulnerabilities (fetches the advisory database)
	$(DENY) check advisories

bench: rust ## benchmarks
	cargo bench --locked

fuzz: rust ## each fuzz target for FUZZ_SECONDS (60); needs a nightly Rust and cargo-fuzz
	cd fuzz && for target in $$(cargo fuzz list); do \
		cargo fuzz run "$$target" -- -max_total_time=$(FUZZ_SECONDS); done

build: demo-setup ## release executables in target/release
	cargo build --release --locked --bins

cross: rust ## static executables for boards in target/cross/TARGET; one of them with TARGET=...
	cross/build.sh $(TARGET)

cross-test: rust ## the same under emulators of the boards' CPUs: unit tests, and real brokers; prints a table
	cross/test.sh $(TARGET)

reproducible: rust ## builds one target twice, from two folders: the same bytes
	cross/reproducible.sh $(TARGET)

# Static executables for every board, or for one: `make cross` leaves them in target/cross.
deb: cross deb-setup ## Debian packages for every board in dist/; one of them with TARGET=...
	for target in $(TARGETS); do packaging/build-deb.sh "$$target"; done

deb-test: deb-setup ## the package's life in a Debian of its own, with systemd: installed, upgraded under load, purged (root)
	tests/stack/setup.sh packages kafka debian-root
	$(MAKE) cross TARGET=$$(packaging/host-target.sh)
	packaging/test-deb.sh

image: cross ## container images for every board in dist/, by buildah; one of them with TARGET=...
	tests/stack/setup.sh packaging
	docker/build-images.sh dist $(TARGETS)

image-test: ## the image of this machine, run read-only and without root's rights, with real brokers (root)
	tests/stack/setup.sh packages kafka packaging
	$(MAKE) cross TARGET=$$(packaging/host-target.sh)
	docker/test-image.sh

release: cross deb-setup ## everything of a release in dist/: tarballs, packages, images, SBOM, checksums
	tests/stack/setup.sh cargo-cyclonedx
	packaging/release.sh $(TARGETS)

clean: ## remove what was built; .cache with the fetched brokers stays
	cargo clean

test-setup: rust ## fetch what the tests need
	@tests/stack/setup.sh packages kafka kafka-older keycloak cargo-deny cross
	@cross/setup.sh tools

demo-setup: rust
	@tests/stack/setup.sh packages kafka

deb-setup: rust
	@tests/stack/setup.sh packaging cargo-deb

check-setup: rust
	@tests/stack/setup.sh cargo-deny

rust:
	@command -v cargo >/dev/null || { echo "cargo is not on PATH: install Rust with rustup, then open a new shell" >&2; exit 1; }
