# Everything is done by cargo; this knows what it needs, where the plugins go, and which names they have.
# `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

# The plugin types, one hard link each. The same list as in src/registry.rs.
PLUGINS := bandwidth bridge dhcp dummy firewall host-device host-local ipvlan loopback macvlan portmap ptp sbr static tap tuning vlan vrf

BINDIR ?= /opt/cni/bin
NETAVARKDIR ?= /usr/lib/netavark
UNITDIR ?= /etc/systemd/system
DESTDIR ?=

# A target of musl makes a program without any library, which runs on every Linux of this architecture.
RUST_TARGET ?= $(shell uname -m)-unknown-linux-musl
export CARGO_TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target))
BINARY := $(CARGO_TARGET_DIR)/$(RUST_TARGET)/release/bridgehead
# Where demo, tests and benchmark have the plugins installed.
STAGE := $(CARGO_TARGET_DIR)/stage

# The plugins to compare with: those that `make reference` has fetched, or else those that Debian has installed.
DEBIAN_PLUGINS := /usr/lib/cni
FETCHED_PLUGINS := $(CARGO_TARGET_DIR)/reference/usr/lib/cni
REFERENCE ?= $(firstword $(wildcard $(FETCHED_PLUGINS)) $(DEBIAN_PLUGINS))

# The size of a benchmark that takes about three minutes.
PODS ?= 40
ROUNDS ?= 2

# What is needed besides Rust: a command or a file, and the Debian package that has it.
BUILD_NEEDS := cc:gcc /usr/include/stdlib.h:libc6-dev
DEMO_NEEDS := ip:iproute2 nft:nftables ping:iputils-ping unshare:util-linux
TEST_NEEDS := $(DEMO_NEEDS) dnsmasq:dnsmasq-base iptables:iptables strace:strace $(DEBIAN_PLUGINS)/bridge:containernetworking-plugins

export PATH := $(PATH):/usr/sbin:/sbin

# $(call install_packages,NEEDS,WHAT FOR): installs what is missing, and tells; nothing is done if nothing is missing.
define install_packages
@missing=; \
for need in $(1); do \
    command -v "$${need%%:*}" >/dev/null || [ -e "$${need%%:*}" ] || missing+=" $${need##*:}"; \
done; \
if [ -z "$$missing" ]; then exit 0; fi; \
echo "$(2) needs these Debian packages, which are not installed:$$missing"; \
if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
    echo "Only root can install them, and only with apt-get. Please install them and try again." >&2; exit 1; \
fi; \
export DEBIAN_FRONTEND=noninteractive; \
install() { apt-get install -y -q --no-install-recommends $$missing; }; \
if apt-get install -s -q $$missing >/dev/null 2>&1 && install; then exit 0; fi; \
echo "The package lists are too old or not there: apt-get update"; \
apt-get update -q; \
install
endef

define need_root
@if [ "$$(id -u)" != 0 ]; then echo "make $@ needs root, to make network namespaces: sudo make $@" >&2; exit 1; fi
endef

.PHONY: help
help: ## this text
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

.PHONY: build
build: ## build the plugins, one static file
	$(call install_packages,$(BUILD_NEEDS),The linker that Rust uses)
	@if ! command -v cargo >/dev/null && [ -x '$(BINARY)' ]; then \
	    echo "There is no cargo here; taking $(BINARY) as it is."; exit 0; \
	fi; \
	if [ ! -d "$$(rustc --print target-libdir --target $(RUST_TARGET))" ]; then \
	    echo "Rust's standard library for $(RUST_TARGET) is missing; a static program needs it."; \
	    if ! command -v rustup >/dev/null; then \
	        echo "There is no rustup to fetch it; please install it as you have installed Rust." >&2; exit 1; \
	    fi; \
	    rustup target add $(RUST_TARGET); \
	fi; \
	cargo build --release --locked --target $(RUST_TARGET) -p bridgehead

# Each name is written aside, in a directory of its own where no runtime looks for plugins, and renamed into place.
# So a plugin that is being executed can be replaced, and whoever calls one meanwhile finds the old or the new one.
# What an install that was killed has left aside goes with a later one.
.PHONY: install
install: build ## put the plugins into DESTDIR/BINDIR (BINDIR=/opt/cni/bin), replacing what is there
	@dir='$(DESTDIR)$(BINDIR)'; \
	mkdir -p "$$dir"; \
	find "$$dir" -maxdepth 1 -name '.bridgehead.*' -mmin +10 -exec rm -r {} +; \
	aside=$$(mktemp -d "$$dir/.bridgehead.XXXXXX"); \
	trap 'rm -rf "$$aside"' EXIT; \
	install -m 0755 '$(BINARY)' "$$aside/bridgehead"; \
	for name in $(PLUGINS); do ln "$$aside/bridgehead" "$$aside/$$name"; done; \
	sync "$$aside/bridgehead"; \
	for name in $(PLUGINS) bridgehead; do mv -f -T "$$aside/$$name" "$$dir/$$name"; done; \
	sync "$$dir"; \
	echo "In $$dir: bridgehead $(PLUGINS)"

.PHONY: uninstall
uninstall: ## remove what install has put there
	@dir='$(DESTDIR)$(BINDIR)'; \
	for name in $(PLUGINS); do \
	    if [ "$$dir/$$name" -ef "$$dir/bridgehead" ]; then rm "$$dir/$$name"; fi; \
	done; \
	rm -f "$$dir/bridgehead"

# A symbolic link, so that a new version of the file is one here, too.
.PHONY: install-netavark
install-netavark: ## podman 5 and later: a link to the installed file where netavark looks for plugins (NETAVARKDIR=/usr/lib/netavark)
	@if [ ! -x '$(DESTDIR)$(BINDIR)/bridgehead' ]; then $(MAKE) --no-print-directory install; fi
	@dir='$(DESTDIR)$(NETAVARKDIR)'; \
	mkdir -p "$$dir"; \
	ln -s -f -n '$(BINDIR)/bridgehead' "$$dir/bridgehead"; \
	echo "$$dir/bridgehead -> $(BINDIR)/bridgehead. Now: podman network create -d bridgehead NAME"

.PHONY: uninstall-netavark
uninstall-netavark: ## remove what install-netavark has put there
	@link='$(DESTDIR)$(NETAVARKDIR)/bridgehead'; if [ -L "$$link" ]; then rm "$$link"; fi

# Only on request: whoever has no systemd needs none, nor who has no firewall that flushes what is not its own, and no
# network with DHCP.
UNITS := bridgehead-restore.service bridgehead-dhcp.socket bridgehead-dhcp.service

.PHONY: install-unit
install-unit: ## put systemd units (rules restored after firewalls, DHCP) into DESTDIR/UNITDIR (/etc/systemd/system)
	@dir='$(DESTDIR)$(UNITDIR)'; \
	mkdir -p "$$dir"; \
	for unit in $(UNITS); do \
	    sed 's,/opt/cni/bin/,$(BINDIR)/,' "packaging/systemd/$$unit" >"$$dir/.$$unit"; \
	    chmod 0644 "$$dir/.$$unit"; \
	    mv -f -T "$$dir/.$$unit" "$$dir/$$unit"; \
	done; \
	echo "In $$dir: $(UNITS). Now: systemctl daemon-reload, and then what is wanted of"; \
	echo "systemctl enable --now bridgehead-restore.service; systemctl enable --now bridgehead-dhcp.socket"

.PHONY: uninstall-unit
uninstall-unit: ## remove what install-unit has put there; `systemctl disable --now` of those in use comes first
	cd '$(DESTDIR)$(UNITDIR)' && rm -f $(UNITS)

.PHONY: stage
stage: # build and install for demo, tests and benchmark
	@$(MAKE) --no-print-directory install DESTDIR= BINDIR='$(STAGE)'

.PHONY: demo
demo: ## root: two pods on one host, shown step by step; nothing of this machine is touched
	$(need_root)
	$(call install_packages,$(DEMO_NEEDS),The demo)
	@$(MAKE) --no-print-directory stage
	@demo/run.sh --plugins '$(STAGE)' $(if $(NETWORK),--network '$(NETWORK)')

.PHONY: packages
packages: ## root: install the Debian packages that tests, benchmark and demo use, if they are missing
	$(call install_packages,$(BUILD_NEEDS) $(TEST_NEEDS),Testing)

.PHONY: test
test: ## root: unit tests, installation, every network of test-configs, and the conformance suite
	$(need_root)
	@$(MAKE) --no-print-directory packages stage
	cargo test --workspace --locked
	tests/install
	test-configs/attach-each '$(STAGE)'
	@# Only these: to judge the reference as well takes half as long again, and is no test.
	@$(MAKE) --no-print-directory conformance REFERENCE=

.PHONY: conformance
conformance: ## root: judge PLUGINS_DIR (the plugins built here) and REFERENCE; only FILTER=TEXT
	$(need_root)
	@$(if $(PLUGINS_DIR),,$(MAKE) --no-print-directory stage)
	cargo run --quiet --locked -p conformance -- --plugins '$(or $(PLUGINS_DIR),$(STAGE))' \
	    $(if $(FILTER),--filter '$(FILTER)') $(if $(wildcard $(REFERENCE)),--compare '$(REFERENCE)')

.PHONY: bench
bench: ## root: time the plugins against REFERENCE; PODS=40 ROUNDS=2 ONLY=TEXT JSON=FILE
	$(need_root)
	@$(MAKE) --no-print-directory packages stage
	cargo run --quiet --release --locked --target $(RUST_TARGET) -p conformance --bin bench -- \
	    --plugins '$(STAGE)' --reference '$(REFERENCE)' \
	    --pods $(PODS) --rounds $(ROUNDS) $(if $(ONLY),--only '$(ONLY)') $(if $(JSON),--json '$(JSON)')

.PHONY: faults
faults: ## root: faults and kills at every system call of ADD, DEL, GC and restore, and what is left then; only ONLY=TEXT; COMPARE=yes: of REFERENCE too
	$(need_root)
	@$(MAKE) --no-print-directory packages stage
	cargo run --quiet --release --locked --target $(RUST_TARGET) -p conformance --bin faults -- \
	    --plugins '$(STAGE)' $(if $(ONLY),--only '$(ONLY)') $(if $(COMPARE),--reference '$(REFERENCE)')

# How long the workers of a soak work, all scenarios together.
SECONDS ?= 110

.PHONY: soak
soak: ## root: many workers at once, kills and lost namespaces, and what is left at every pause; SECONDS=110 SEED= ONLY=TEXT
	$(need_root)
	@$(MAKE) --no-print-directory packages stage
	cargo run --quiet --locked -p conformance --bin soak -- --plugins '$(STAGE)' --seconds $(SECONDS) \
	    $(if $(wildcard $(REFERENCE)),--reference '$(REFERENCE)') \
	    $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only '$(ONLY)')

# Inputs that were found to break something are kept below target/; the corpus in fuzz/ is only read.
FUZZ_NEEDS := $(BUILD_NEEDS) c++:g++

.PHONY: fuzz
fuzz: SECONDS = 60
fuzz: ## fuzz what is read from callers, files and the kernel; SECONDS=60 in all
	$(call install_packages,$(FUZZ_NEEDS),Fuzzing)
	@fuzz/run '$(SECONDS)'

# The lists of the machine's apt stay as they are: these have a directory of their own.
.PHONY: reference
reference: ## fetch Debian's newest reference plugins into target/, to compare with; nothing is installed
	@site=$$(apt-get indextargets --format '$$(SITE)' 'Created-By: Packages' 'Label: Debian' | head -n 1); \
	if [ -z "$$site" ]; then echo "apt knows no archive of Debian; apt-get update may help" >&2; exit 1; fi; \
	work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; \
	mkdir -p "$$work/lists/partial" "$$work/cache/archives/partial"; \
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $$site sid main" >"$$work/sources.list"; \
	apt() { apt-get -q -o APT::Sandbox::User=root -o Acquire::Languages=none -o Dir::Etc::sourcelist="$$work/sources.list" \
	    -o Dir::Etc::sourceparts=- -o Dir::State::lists="$$work/lists" -o Dir::Cache="$$work/cache" "$$@"; }; \
	apt update; \
	(cd "$$work" && apt download containernetworking-plugins); \
	rm -rf '$(CARGO_TARGET_DIR)/reference'; mkdir -p '$(CARGO_TARGET_DIR)/reference'; \
	dpkg -x "$$work"/*.deb '$(CARGO_TARGET_DIR)/reference'; \
	echo "In $(FETCHED_PLUGINS), and compared with from now on: $$(basename "$$work"/*.deb)"

# The runtimes are not installed: they are in root file systems of their own, below target/.
INTEROP_NEEDS := mmdebstrap:mmdebstrap unshare:util-linux

.PHONY: interop
interop: ## root: containerd, podman and others with the plugins, each on a node of its own; ONLY=SUITE/CASE; COMPARE=yes: the reference too
	$(need_root)
	$(call install_packages,$(INTEROP_NEEDS),Fetching Debian releases with container runtimes)
	@$(MAKE) --no-print-directory stage
	interop/run --plugins '$(STAGE)' --roots '$(CARGO_TARGET_DIR)/interop' \
	    $(if $(ONLY),--only '$(ONLY)') $(if $(COMPARE),--compare)

.PHONY: interop-root
interop-root: # what the quickest suites of interop need: fails where Debian's archive cannot be reached
	$(need_root)
	$(call install_packages,$(INTEROP_NEEDS),Fetching Debian releases with container runtimes)
	@interop/root forky '$(CARGO_TARGET_DIR)/interop/forky'

.PHONY: lint
lint: ## formatting, clippy, documentation, shell scripts: no warning passes
	$(call install_packages,$(FUZZ_NEEDS),Building the fuzz targets)
	@for component in rustfmt clippy; do \
	    if ! cargo "$${component/rust/}" --version >/dev/null 2>&1; then \
	        echo "Rust's $$component is missing."; rustup component add $$component; \
	    fi; \
	done
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy --manifest-path fuzz/Cargo.toml --target-dir '$(CARGO_TARGET_DIR)/fuzz-lint' --locked -- -D warnings
	@# Of a program, private items are the documentation too, so links may lead to them.
	RUSTDOCFLAGS='-D warnings -A rustdoc::private-intra-doc-links' \
	    cargo doc --workspace --no-deps --locked --document-private-items
	@if command -v shellcheck >/dev/null; then \
	    shellcheck demo/private-host demo/run.sh fuzz/run interop/root interop/run interop/sandbox test-configs/attach-each tests/install vm/base vm/init vm/run .ci/run; \
	else \
	    echo "There is no shellcheck here; the shell scripts were not looked at."; \
	fi

.PHONY: clean
clean: ## remove everything that was built or fetched
	cargo clean

# What a stock kernel has and this machine's may lack: bridges that filter by VLAN, for one. It needs no root.
VM_NEEDS := $(TEST_NEEDS) qemu-system-x86_64:qemu-system-x86 busybox:busybox-static cpio:cpio depmod:kmod objcopy:binutils

.PHONY: test-vm
test-vm: ## the conformance suite on a stock Debian kernel in a virtual machine, which takes long; only FILTER=TEXT
	$(call install_packages,$(VM_NEEDS),The virtual machine)
	@$(MAKE) --no-print-directory stage
	cargo build --quiet --locked -p conformance
	vm/run --cache '$(CARGO_TARGET_DIR)/vm' --seconds 3600 --copy '$(STAGE):/opt/cni/bin' \
	    --copy '$(CARGO_TARGET_DIR)/debug/conformance:/usr/bin/conformance' \
	    $(if $(wildcard $(REFERENCE)),--copy '$(REFERENCE):/usr/lib/cni') \
	    -- conformance --plugins /opt/cni/bin --patience 1200 $(if $(FILTER),--filter '$(FILTER)')
