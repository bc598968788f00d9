# SPDX-License-Identifier: GPL-2.0-or-later

BUILD := $(abspath $(or $(BUILD),build))
export BUILD

SUITES := integrate hooks gmem fuzz simkvm conformance functional qemu

help:
	@echo 'make run      boot a Linux guest whose RAM is a guest_memfd, and show its state;'
	@echo '              launch an SEV-SNP guest on a model of the kernel'
	@echo 'make check    build what is missing and run every test suite'
	@echo '              (one suite: make check-NAME, NAME one of'
	@echo '              $(SUITES))'
	@echo 'make check-asan  the tests on the model, with sanitizers'
	@echo 'make fuzz     the exit path and tables of firmware under libFuzzer, for'
	@echo '              SECONDS=60'
	@echo 'make soak     hostile guests for 10 million conversions (COUNT=, SEED=)'
	@echo 'make check-lab   tests on a kernel with private memory: one that is built,'
	@echo '              or KERNEL=bzImage'
	@echo 'make bench    what conversion in place costs, beside QEMU as it is'
	@echo 'make shell    the same guest, with its console on this terminal'
	@echo "make host CMD='...'  run a command in the emulated host"
	@echo 'make build    build the emulator: $(BUILD)/qemu-system-x86_64'
	@echo 'make patches  print the integration as a patch series, for reading'
	@echo 'make clean    remove what was built; distclean: all of build/'
	@echo './configure --help  for builds that differ'

all: build

configured:
	@./configure --build-dir=$(BUILD) --if-needed

build: configured
	@scripts/build

# What every guest needs besides the emulator.
guest: build
	@scripts/kernel > /dev/null

run: guest
	@scripts/run-guest
	@scripts/run-launch

shell: guest
	@scripts/run-guest --interactive

# CMD travels in the environment, so that its quotes stay as they are.
host: export GMEM_HOST_COMMAND := $(CMD)
host: guest
	@test -n "$$GMEM_HOST_COMMAND" || { echo "make host CMD='command'"; exit 2; }
	@mkdir -p $(BUILD)/share
	@scripts/emulated-host --share $(BUILD)/share -- \
	    sh -c "$$GMEM_HOST_COMMAND"

check: guest
	@tests/check $(SUITES)

check-%: guest
	@tests/check $*

# A build of its own, with the same compiler cache.  QEMU does not free all of
# its memory when it ends; and a SIGBUS has to reach the model.
check-asan: export CCACHE_DIR := $(or $(CCACHE_DIR),$(BUILD)/ccache)
check-asan: configured
	@./configure --if-needed --build-dir=$(BUILD)/asan \
	    --qemu-source="$$(cat $(BUILD)/source)" -- --enable-asan --enable-ubsan
	@BUILD=$(BUILD)/asan scripts/build
	@export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1; \
	UBSAN_OPTIONS=$$UBSAN_OPTIONS:suppressions=$$PWD/tests/sanitizers.supp; \
	BUILD=$(BUILD)/asan ASAN_OPTIONS=detect_leaks=0:handle_sigbus=0 \
	    tests/check gmem simkvm kvm-mode

fuzz: build
	@tests/fuzz/run $(SECONDS)

soak: export COUNT := $(COUNT)
soak: export SEED := $(SEED)
soak: build
	@tests/soak/run

# Another kernel in the emulated host: KERNEL=bzImage, or one that is built.
check-lab: export KERNEL := $(and $(KERNEL),$(abspath $(KERNEL)))
check-lab: guest
	@tests/lab/run

bench: configured
	@tests/bench/run

patches: configured
	@scripts/patches

# Downloads, their unpacked sources and what guests wrote out are kept.
clean:
	test ! -d $(BUILD) || find $(BUILD) -mindepth 1 -maxdepth 1 \
	    ! -name downloads ! -name 'pristine*' ! -name share \
	    ! -name ccache -exec rm -rf {} +

distclean:
	rm -rf $(BUILD)

.PHONY: help all configured build guest run shell host check check-asan \
	check-lab fuzz soak bench patches clean distclean
