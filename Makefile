# make run           set up, export a small Llama, and answer PROMPT
# make chat          talk with it
# make export MODEL=llama3-8b [TARGET= WEIGHTS= CACHE= CONTEXT= BUCKETS= BATCH= ROPE_SCALING= TOKENIZER= LORA= CALIBRATION= OUT= SYNTHETIC=1 SEED= VERIFY=0]
# make plan MODEL=llama3-8b [TARGET= WEIGHTS= CACHE= CONTEXT= BUCKETS= BATCH= ROPE_SCALING= MEASURED=]
#              before an export: the memory that the model needs, the boards that hold it, and the speed limit of each.
#              MEASURED= compares the plan with a report of `bench --json`
# make convert ARTIFACT=... [SOC= OUT=]   compile an artifact of an Ascend target with CANN;
#              SOC= is the version of the chip, and is required on a host without the NPU
# make board-check [PROBE= DEVICE=]       run this first on a board; exits with 2 if there is no board
# make board-probe TARGET=ascend310b [WEIGHTS=int4]   export the tiny model of board-check, for a board that cannot export
# make bench         measure an artifact (ARTIFACT=; default: the one of `make run`)
# make bench-peers [QUICK=1 ISAS=1 LLAMA_BENCH= LLAMA_MODEL=]   measure it beside llama.cpp, OpenVINO, ONNX Runtime and
#              PyTorch (.venv-peers: about 2 GB); tests/peers/README.md
# make kernels       build and install the Ascend operator package (needs CANN)
# make test          set up and run all tests; make test-fast leaves out those that take minutes
# make browser       install Chromium for the test of the chat page, with apt-get if allowed; part of `make test`
# make torture [ONLY= SEED= QUICK=1]      inject faults into everything (minutes to hours), and print what happened;
#              ONLY= names fault classes, QUICK=1 is the five-minute form of CI
# make mutants [PART= SAMPLE= ALL=1 SEED=]   change modules in small ways, and report which changes no test notices (an hour)
# make fuzz [TARGET_NAME= SECONDS= SEED=]   fuzz everything that reads files and requests of strangers, a minute in all;
#              TARGET_NAME= names one target, SECONDS= is for each target (the default is 8)
# make lint          run ruff, mypy and import-linter
# make check-kernels   test the CPU kernels with sanitizers, and for aarch64 in an emulator
# make wheel [MACHINE=aarch64]   build the wheels for x86-64 and aarch64 in build/wheels; a board needs no compiler for them
# make check-wheel   install the aarch64 wheel in an emulated Debian, and compare its answers (5 minutes)
# make check-install   install this machine's wheel in an empty environment without a compiler, and generate an answer there
# make lock [UPGRADE=1]   write the lock files of requirements/ from setup.cfg and pyproject.toml, and its table of
#              licences; UPGRADE=1 takes the newest versions instead of those that still fit
# make audit         look for known vulnerabilities of the locked packages, if a database can be reached
# make clean         remove the environment and the build folder, but not the artifacts

PYTHON3 ?= python3
VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(VENV)/bin/pip --disable-pip-version-check
# Packages come only from the lock files: as wheels, because a source package would run code and fetch unlocked tools.
# The exception is yattag, which has no wheel: it is built with the locked tools.
INSTALL_LOCKED := install --require-hashes --only-binary :all:
# The package itself is built with the locked tools, so outside pip's isolated environment, which would fetch others.
# pip compares setup.cfg and pyproject.toml with what is installed; without an index it can add nothing.
INSTALL_PACKAGE := install --no-index --no-build-isolation --check-build-dependencies

MODEL ?= smollm2-135m-instruct
PROMPT ?= Why is the sky blue?
JOBS ?= 2

# The variables that become options of the exporter if they are set: BATCH=4 becomes --batch 4. The exporter declares
# the options and their defaults (exporter/export_options.py).
PLAN_OPTIONS := TARGET WEIGHTS CACHE CONTEXT BUCKETS BATCH ROPE_SCALING
EXPORT_OPTIONS := $(PLAN_OPTIONS) TOKENIZER LORA CALIBRATION OUT VERIFY SYNTHETIC SEED
SWITCHES := VERIFY SYNTHETIC ALL# 1 becomes --name, 0 becomes --no-name

# Every value reaches its command through the environment: a recipe contains "$$MODEL", never the value of MODEL, so no
# shell and no make function interprets it. `value` takes the text as it was given; make would expand $ in it.
GIVEN := MODEL PROMPT ARTIFACT MACHINE $(EXPORT_OPTIONS) MEASURED SOC PROBE DEVICE ONLY QUICK PART SAMPLE ALL TARGET_NAME SECONDS UPGRADE LLAMA_BENCH LLAMA_MODEL ISAS
define take
ifneq ($(origin $(1)),undefined)
override $(1) := $$(value $(1))
export $(1)
endif
endef
$(foreach name,$(GIVEN),$(eval $(call take,$(name))))

lower = $(shell echo $(1) | tr '[:upper:]_' '[:lower:]-')
dash = $(filter -%,$(firstword $($(1))))# not empty if the value begins with a dash, as an option does
option = --$(2)$(if $(dash),=, )"$$$(1)"
switch = --$(if $(filter 0,$($(1))),no-)$(call lower,$(1))
options = $(foreach name,$(1),$(if $($(name)),$(if $(filter $(name),$(SWITCHES)),$(call switch,$(name)),$(call \
  option,$(name),$(call lower,$(name))))))
path = "$(if $(dash),./)$$$(1)"

# The shell variable `artifact` of run, chat, bench, convert and check-install: ARTIFACT, or the folder that export
# chooses for MODEL and the options.
EXPORTER = $(or $(wildcard $(PYTHON)),$(PYTHON3)) -m exporter
find_artifact = artifact=$(if $(ARTIFACT),$(call path,ARTIFACT),$$($(EXPORTER) artifact-folder $(call path,MODEL) \
  $(call options,$(filter-out OUT,$(EXPORT_OPTIONS)))))

.DELETE_ON_ERROR:
.PHONY: run chat named-artifact artifact export plan convert board-check board-probe bench bench-peers kernels kernels-model check-kernels wheel check-wheel check-install test browser test-fast torture fuzz mutants lint lock audit clean

run: artifact
	@$(find_artifact) && $(PYTHON) -m edgellama generate "$$artifact" $(call option,PROMPT,prompt)

chat: artifact
	@$(find_artifact) && $(PYTHON) -m edgellama chat "$$artifact"

export: $(VENV)/ready
	@$(PYTHON) -m edgellama export $(call path,MODEL) $(call options,$(EXPORT_OPTIONS))

plan: $(VENV)/ready
	@$(PYTHON) -m edgellama plan $(call path,MODEL) $(call options,$(PLAN_OPTIONS) MEASURED)

# Uses the Python that has MindSpore Lite for Ascend, not .venv: kernels/ascend/BOARD.md.
convert:
	@$(find_artifact) && $(PYTHON3) -m exporter convert "$$artifact" $(call options,SOC OUT)

board-check:
	@$(PYTHON3) -m exporter board-check $(call options,PROBE) $(if $(DEVICE),$(call option,DEVICE,device-id))

board-probe: $(VENV)/ready
	@$(PYTHON) -m edgellama board-probe $(call options,TARGET WEIGHTS)

# An artifact that ARTIFACT names must exist: a misspelt name must not start an export. Without ARTIFACT, the default
# artifact is exported if it does not exist.
define require_artifact
@test -e $(call path,ARTIFACT)/manifest.json || { printf 'error: no artifact at %s (ARTIFACT): it has no manifest.json. \
Name an existing artifact, export one there with "make export MODEL=... OUT=...", or leave ARTIFACT out: then the \
default artifact is exported\n' "$$ARTIFACT" >&2; exit 2; }
endef
define export_artifact
@$(find_artifact) && { test -e "$$artifact/manifest.json" || $(PYTHON) -m edgellama export $(call path,MODEL) \
  $(call options,$(filter-out OUT,$(EXPORT_OPTIONS))) --out "$$artifact"; }
endef

named-artifact:
	$(if $(ARTIFACT),$(require_artifact),@:)

artifact: named-artifact $(VENV)/ready
	$(if $(ARTIFACT),@:,$(export_artifact))

bench: artifact
	@$(find_artifact) && $(PYTHON) -m edgellama bench "$$artifact"

bench-peers: $(VENV)/ready
	@for weights in int8 int4; do \
	  $(MAKE) --no-print-directory build/peers/ours-$$weights/manifest.json || exit; \
	done
	@$(PYTHON) tests/peers/install.py .venv-peers
	@$(PYTHON) tests/peers build/peers/ours-int8 build/peers/ours-int4 --json build/peers/peers.json \
	  $(call options,LLAMA_BENCH LLAMA_MODEL) $(if $(filter-out 0,$(QUICK)),--quick) $(if $(filter-out 0,$(ISAS)),--isas)

build/peers/ours-%/manifest.json: | $(VENV)/ready
	@$(PYTHON) -m edgellama export smollm2-135m-instruct --target cpu --weights $* --context 8192 --out $(@D)

kernels:
	@kernels/ascend/build.sh

kernels-model: $(VENV)/ready
	@$(PYTHON) -m edgellama.kernels.ascend.model

check-kernels: $(VENV)/ready-test
	@PATH="$$PWD/$(VENV)/bin:$$PATH" kernels/cpu/check.sh

# Has its own environment: building a wheel needs neither mindspore nor torch.
build_wheels = PATH="$$PWD/build/wheels/env/bin:$$PATH" build/wheels/env/bin/python requirements/build_wheels.py
wheel: build/wheels/env/ready
	@$(build_wheels) $(call options,MACHINE)

check-wheel: build/wheels/env/ready
	@PATH="$$PWD/build/wheels/env/bin:$$PATH" build/wheels/env/bin/python requirements/emulated.py

build/wheels/env/ready: requirements/wheel.txt requirements/build.txt
	rm -rf $(@D) && $(PYTHON3) -m venv $(@D)
	$(@D)/bin/pip --disable-pip-version-check $(INSTALL_LOCKED) --quiet -r requirements/wheel.txt
	@touch $@

# Runs in its own folder: nothing of the checkout can be imported there. Its PATH has no compiler.
check-install: artifact build/wheels/env/ready
	@$(build_wheels) --machine $$(uname -m)
	rm -rf build/installed && $(PYTHON3) -m venv build/installed
	build/installed/bin/pip --disable-pip-version-check $(INSTALL_LOCKED) --quiet -r requirements/runtime.txt
	PATH="$$PWD/build/installed/bin" build/installed/bin/pip --disable-pip-version-check install --no-index --no-deps \
	  build/wheels/edgellama-*_$$(uname -m).whl
	$(find_artifact) && artifact=$$(realpath -- "$$artifact") && cd build/installed && export PATH="$$PWD/bin" && \
	  unset CXX && ! command -v g++ c++ clang++ && bin/python -m edgellama.lite install && \
	  bin/edgellama generate "$$artifact" $(call option,PROMPT,prompt) --max-new-tokens 20

# JOBS test files run at a time: most of the time one of them waits for a child process.
# tests/conftest.py begins with the longest files; pytest-xdist would begin with those of most tests.
test: $(VENV)/ready-test browser
	$(PYTHON) -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

browser:
	@tests/support/install_browser.sh

test-fast: $(VENV)/ready-test
	$(PYTHON) -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder -m "not slow"

fuzz: $(VENV)/ready-test
	@$(PYTHON) tests/fuzz $(if $(TARGET_NAME),$(call option,TARGET_NAME,target)) $(call options,SECONDS SEED)

torture: $(VENV)/ready-test
	$(PYTHON) tests/torture $(if $(filter-out 0,$(QUICK)),--quick) $(call options,ONLY SEED)

mutants: $(VENV)/ready-test
	nice -n 19 $(PYTHON) tests/mutants $(call options,PART SAMPLE ALL SEED)

lint: $(VENV)/ready-test
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	@tests/support/link_package.sh build/typing
	$(PYTHON) -m mypy
	@cd build/typing && PYTHONPATH=. ../../$(VENV)/bin/lint-imports --no-cache ../../setup.cfg

# Has its own environment: with a requirement that no lock file has yet, .venv cannot be made.
lock: build/lock/ready
	build/lock/bin/python requirements/lock.py $(if $(filter 1,$(UPGRADE)),--upgrade)
	@$(MAKE) --no-print-directory $(VENV)/ready-test
	$(PYTHON) requirements/licences.py

build/lock/ready: requirements/lock.txt
	rm -rf $(@D) && $(PYTHON3) -m venv $(@D)
	$(@D)/bin/pip --disable-pip-version-check $(INSTALL_LOCKED) --quiet -r requirements/lock.txt
	@touch $@

audit: $(VENV)/ready-test
	@$(PYTHON) requirements/audit.py

clean:
	rm -rf $(VENV) .venv-peers build *.egg-info

$(PYTHON):
	@echo "Setting up $(VENV): about 4 GB of disk (mindspore alone is 2.8 GB installed) and a few minutes,"
	@echo "most of it download. Needs Python 3.10 to 3.12 and a C++ compiler. 'make clean' removes it."
	@$(PYTHON3) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' || \
	  { echo "error: $$($(PYTHON3) --version) found, 3.10 to 3.12 needed; set PYTHON3=python3.11" >&2; exit 2; }
	@$(PYTHON3) -m venv $(VENV)

LOCKS := $(addprefix requirements/,build.txt runtime.txt serve.txt export.txt test.txt)# what .venv is made of

# pip builds the kernels with the package: a changed source installs it again.
$(VENV)/ready: setup.cfg setup.py pyproject.toml $(wildcard kernels/cpu/CMakeLists.txt kernels/cpu/*/*.cpp kernels/cpu/*/*.h) \
  $(wildcard runtime/lite/*.cpp runtime/lite/*.h) $(filter-out %/test.txt,$(LOCKS)) | $(PYTHON)
	$(PIP) $(INSTALL_LOCKED) -r requirements/export.txt
	PATH="$$PWD/$(VENV)/bin:$$PATH" $(PIP) $(INSTALL_PACKAGE) --editable ".[export]"
	$(PYTHON) -m edgellama.lite install
	@touch $@

# torch comes by its pin: with hashes, pip prefers a file of the registry to a CPU-only one of the machine. The CPU build
# needs nothing more than test.txt; where pip finds only the CUDA build, it adds NVIDIA's packages. --no-deps: test.txt has
# all dependencies but torch, which peft and accelerate need; with hashes pip would refuse it.
$(VENV)/ready-test: $(VENV)/ready $(LOCKS)
	@echo "Adding what the tests need: about 1 GB more (torch, onnxruntime)."
	$(PIP) $(INSTALL_LOCKED) --no-deps --no-binary yattag --no-build-isolation -r requirements/test.txt
	$(PIP) install --only-binary :all: "$$(grep -Eo 'torch==[0-9.]+' setup.cfg)"
	@touch $@
