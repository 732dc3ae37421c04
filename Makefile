# Each target makes what it needs. PYTHON may name another interpreter: make venv PYTHON=python3.11

VENV := .venv
BOARD := .venv-board
ORT_TRAINING := .venv-ort-training
CLUSTER := .venv-cluster
BROKERS := .brokers
OLDEST := .venv-torch-oldest
NEWEST := .venv-torch-newest
WHEELS := $(BOARD)/wheels
SOURCES := edge_runtime broker_server export devices

# The first of some interpreters that is Python 3.10 to 3.$(1) with the means to make a virtual environment.
SUITS = import ensurepip, sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, $(1)))
first = $(shell for p in $(2) python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c "$(SUITS)" 2>/dev/null && echo $$p && break; done)
PYTHON ?= $(call first,14)
# onnxruntime-training and the oldest onnx have wheels up to Python 3.12 alone.
OLDER_PYTHON ?= $(call first,12,$(PYTHON))

# Exact versions for development and CI; users have those that pyproject.toml allows.
PINNED := -c constraints.txt

# Modules that say of themselves that every branch is tested: those without I/O or clock, and all that reads what comes
# from outside.
PURE := $(shell grep -rlx --include='*.py' '\# coverage: every branch' $(SOURCES))

PREFIX := /opt/mas-edge
EXTRAS := board

empty :=
comma := ,
PURE_LIST := $(subst $(empty) $(empty),$(comma),$(strip $(PURE)))

.PHONY: help install venv venv-board venv-ort-training venv-cluster board lint site settings check test test-workstation test-board test-arm test-boards test-brokers test-page test-processors test-cluster test-long \
	test-torch test-random-models fuzz coverage-operators \
	apt apt-brokers apt-emulation demo bench bench-device bench-examples bench-export bench-footprint bench-split bench-reconstruction bench-link bench-stragglers bench-security bench-server compare compare-pairs compare-air compare-rooms compare-long compare-time \
	compare-nine compare-fedbone compare-full clean

help:
	@echo "make venv         .venv: everything for export, server, trial devices and development"
	@echo "make venv-board   .venv-board: what a board installs, without torch"
	@echo "make venv-ort-training  .venv-ort-training: onnxruntime-training 1.19.2 (x86-64), for its training artifacts"
	@echo "make board        measures what a board installs and checks our own wheel"
	@echo "make install      an environment at PREFIX with EXTRAS (board, server, export …), as the Dockerfile has it"
	@echo "make lint         style, types and import contracts"
	@echo "make site         the documents as a site: build/site/README.html"
	@echo "make settings     docs/settings.md and its JSON schema, from the code"
	@echo "make check        lint, and the quick tests on two cores: under two minutes, before each commit"
	@echo "make test         lint, and the tests in both environments"
	@echo "make test-long    tests that show on more cases what make test shows (10 minutes)"
	@echo "make test-arm     a board's install under QEMU's user emulation: trains as it does here (3 minutes)"
	@echo "make test-processors  parity on other processors, emulated: x86-64 with SSE4.2 and AVX2, and a Raspberry Pi's (10 minutes)"
	@echo "make test-brokers the same federation on Mosquitto, RabbitMQ, NATS and aedes, with faults, and on clusters (5 minutes)"
	@echo "make test-page    the live page in Chromium, in each of its states (half a minute)"
	@echo "make test-cluster a simulation, and a server, on a Ray cluster of two nodes on this machine (3 minutes)"
	@echo "make test-torch   the exporter's tests with the oldest and the newest torch (10 GB; half an hour)"
	@echo "make test-random-models  500 drawn models against PyTorch (half an hour)"
	@echo "make fuzz         a live server among hostile clients, MINUTES=10"
	@echo "make coverage-operators  PyTorch's own samples of its operators, exported and compared, into docs/operators.md (an hour)"
	@echo "make test-boards  an emulated board from an image to the report, as root (half an hour at first)"
	@echo "make apt          Mosquitto, Chromium, mtools and dosfstools for the tests that use them, where apt-get may be used"
	@echo "make demo         four devices train over MQTT: runs/demo/report.html"
	@echo "make bench        measurements against peers into benchmarks/results/"
	@echo "make bench-device measurements of the device runtime into benchmarks/results/ and docs/device.md"
	@echo "make bench-export  steps of whole networks against PyTorch and onnxruntime-training (10 minutes)"
	@echo "make bench-examples  the worked examples against PyTorch, into docs/measurements.md (10 minutes)"
	@echo "make bench-footprint  predicted against measured memory of training into docs/footprint.md"
	@echo "make bench-split  split training against training on the device into docs/split_learning.md"
	@echo "make bench-reconstruction  what comes back of images in split learning, and what keeping it back costs (5 minutes)"
	@echo "make bench-link   a round over slow and bad lines into docs/link.md (half an hour, nearly idle)"
	@echo "make bench-stragglers  time to a loss with slow boards, by synchronous and buffered rounds (10 minutes)"
	@echo "make bench-server what one server bears: up to 1,000 devices and 50 MB, into docs/link.md (half an hour)"
	@echo "make bench-security  what signatures and TLS cost the demo (3 minutes)"
	@echo "make compare      does the split pay, and what chooses groups best: compare-pairs and compare-air, into docs/comparison.md; goes on where it was stopped"
	@echo "make compare-pairs  two garments in one picture, eight devices, six tasks, all divisions into two groups"
	@echo "make compare-air  Beijing's air, twelve stations, nine forecasts, from AIR=prsa_csv.tar.xz or a folder of its CSV files"
	@echo "make compare-rooms  what methods cost on rendered rooms into benchmarks/results/rooms5 (40 minutes)"
	@echo "make compare-long  the methods that matter most with 40 rounds instead of 15"
	@echo "make compare-time  what each method makes of half of one-by-one's time (20 minutes)"
	@echo "make compare-nine  as make compare-rooms, with nine tasks (70 minutes on two cores)"
	@echo "make compare-fedbone  a task for each client: FedBone beside others (half an hour)"
	@echo "make compare-full the same with five and nine tasks, more pixels and rounds: most of a day on two cores"
	@echo "make clean        removes environments, caches and runs"

venv: $(VENV)/.stamp
venv-board: $(BOARD)/.stamp board
venv-ort-training: $(ORT_TRAINING)/.stamp
venv-cluster: $(CLUSTER)/.stamp

# A half-made environment is made again.
.DELETE_ON_ERROR:

define make_venv
@test -n "$($(1))" || { echo "Python 3.10 to 3.$(2) with the venv module is needed: say which with $(1)="; exit 1; }
$($(1)) -m venv $(@:/bin/python=)
$@ -m pip install --quiet --upgrade pip
endef

$(VENV)/bin/python:
	$(call make_venv,PYTHON,14)

$(VENV)/.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install $(PINNED) --editable '.[workstation,dev]'
	@touch $@

$(BOARD)/bin/python:
	$(call make_venv,PYTHON,14)

$(ORT_TRAINING)/bin/python:
	$(call make_venv,OLDER_PYTHON,12)

# onnxruntime-training has onnxruntime's import name: it needs an environment of its own. The tree is what runs in it.
$(ORT_TRAINING)/.stamp: pyproject.toml | $(ORT_TRAINING)/bin/python
	$(ORT_TRAINING)/bin/python -m pip install '.[ort-training]'
	$(ORT_TRAINING)/bin/python -m pip uninstall --quiet --yes mas-edge
	@touch $@

$(OLDEST)/bin/python:
	$(call make_venv,OLDER_PYTHON,12)

# The oldest torch and onnx that pyproject.toml allows, and the oldest onnxruntime that tells what graphs allocate.
$(OLDEST)/.stamp: pyproject.toml | $(OLDEST)/bin/python
	$(OLDEST)/bin/python -m pip install 'torch==2.10.*' 'onnx==1.17.*' 'onnxruntime==1.28.*' pytest hypothesis '.[workstation]'
	$(OLDEST)/bin/python -m pip uninstall --quiet --yes mas-edge
	@touch $@

$(NEWEST)/bin/python:
	$(call make_venv,PYTHON,14)

# The newest that there are.
$(NEWEST)/.stamp: pyproject.toml | $(NEWEST)/bin/python
	$(NEWEST)/bin/python -m pip install --upgrade torch onnx onnxruntime pytest hypothesis '.[workstation]'
	$(NEWEST)/bin/python -m pip uninstall --quiet --yes mas-edge
	@touch $@

$(CLUSTER)/bin/python:
	$(call make_venv,PYTHON,14)

# Apart, because a workstation needs no Ray and not every Python has one.
$(CLUSTER)/.stamp: pyproject.toml constraints.txt | $(CLUSTER)/bin/python
	$(CLUSTER)/bin/python -m pip install $(PINNED) --editable '.[workstation,dev,cluster]'
	@touch $@

# The wheels that `pip install .[board]` would fetch, kept to be counted and weighed, and installed from there alone.
# What the tests need besides is installed apart.
$(BOARD)/.stamp: pyproject.toml constraints.txt | $(BOARD)/bin/python
	rm -rf $(WHEELS) build
	$(BOARD)/bin/python -m pip wheel $(PINNED) --wheel-dir $(WHEELS) '.[board]'
	$(BOARD)/bin/python -m pip install --no-index --find-links $(WHEELS) 'mas-edge[board]'
	$(BOARD)/bin/python -m pip install --quiet $(PINNED) 'setuptools>=77' pytest pytest-cov pytest-xdist hypothesis
	@touch $@

# Our own wheel anew from the sources (build/ would keep files that are gone), a real install of it, and the figures.
board: $(BOARD)/.stamp
	@rm -rf build $(WHEELS)/mas_edge-*.whl
	@$(BOARD)/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir $(WHEELS) .
	@$(BOARD)/bin/python -m pip install --quiet --no-index --no-deps --force-reinstall $(WHEELS)/mas_edge-*.whl
	@$(BOARD)/bin/python benchmarks/board_install.py --wheels $(WHEELS)

# An environment of its own, as the Dockerfile installs it: make install PREFIX=/opt/mas-edge EXTRAS=board
install:
	python3 -m venv $(PREFIX)
	$(PREFIX)/bin/python -m pip install --no-cache-dir '.[$(EXTRAS)]'

lint: $(VENV)/.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	@$(VENV)/bin/python docs/site/build.py

# The documents as a site, without a warning: build/site/README.html.
site: $(VENV)/.stamp
	@$(VENV)/bin/python docs/site/build.py

# The documents of the settings, from the structs that the code uses.
settings: $(VENV)/.stamp
	$(VENV)/bin/python -m broker_server settings --document > docs/settings.md
	$(VENV)/bin/python -m broker_server settings --schema > docs/settings.schema.json

# What belongs before each commit: under two minutes on two cores.
check: lint
	$(VENV)/bin/python -m pytest -q -n 2 -m 'not emulated and not long and not process and not slow'

test: lint test-workstation test-board

# Two processes, each with one thread in PyTorch: more would wait for each other.
test-workstation: $(VENV)/.stamp $(BOARD)/.stamp apt
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist worksteal --cov=edge_runtime --cov=broker_server --cov=devices --cov=export.memory --cov-branch --cov-report=
	$(VENV)/bin/python -m coverage report --include='$(PURE_LIST)' --show-missing --skip-covered --fail-under=100

# The tree, not the installed copy, is what is tested; `board` has checked that they agree.
test-board: board
	PYTHONPATH=$(CURDIR) $(BOARD)/bin/python -m pytest -n 2 --dist worksteal -p no:cacheprovider

# What of the packages that hold these programs is not here is installed, where apt-get may be used.
define apt_get
@missing=""; \
for need in $(1); do \
	PATH="$$PATH:/usr/sbin" command -v $${need%:*} > /dev/null || missing="$$missing $${need#*:}"; \
done; \
test -n "$$missing" || exit 0; \
sudo=""; test "$$(id -u)" = 0 || sudo="sudo -n"; \
if command -v apt-get > /dev/null && $$sudo true 2> /dev/null; then \
	$$sudo apt-get update -qq && $$sudo apt-get install -y -qq --no-install-recommends $$missing && exit 0; \
fi; \
echo "not installed here:$$missing; the tests that need them are skipped, or fail and say so"
endef

apt:
	$(call apt_get,mosquitto:mosquitto chromium:chromium mcopy:mtools mkfs.vfat:dosfstools mke2fs:e2fsprogs)

# Of the brokers RabbitMQ and NATS are programs of the distribution; aedes is a package for Node.js.
apt-brokers:
	$(call apt_get,mosquitto:mosquitto rabbitmq-server:rabbitmq-server nats-server:nats-server node:nodejs npm:npm)

$(BROKERS)/node_modules/aedes: | apt-brokers
	-npm install --silent --no-audit --no-fund --prefix $(BROKERS) aedes@1

apt-emulation:
	$(call apt_get,mmdebstrap:mmdebstrap arch-test:arch-test update-binfmts:binfmt-support \
		qemu-aarch64-static:qemu-user-static qemu-system-aarch64:qemu-system-arm \
		mcopy:mtools mkfs.vfat:dosfstools mke2fs:e2fsprogs sfdisk:fdisk xz:xz-utils)

# A board's install in Debian for arm64 under user emulation: minutes. It needs a network, and no root.
test-arm: $(VENV)/.stamp apt-emulation
	PYTHONPATH=$(CURDIR) $(VENV)/bin/python -m pytest -q -s -m emulated tests/emulation/test_arm.py

# The same federation on each broker, with TLS and authentication, and on clusters: what is not here is skipped.
test-brokers: $(VENV)/.stamp apt-brokers $(BROKERS)/node_modules/aedes
	PYTHONPATH=$(CURDIR) $(VENV)/bin/python -m pytest -q -m brokers tests/federation/test_other_brokers.py

# The live page in a real browser, in each of its states: half a minute. Screenshots into MAS_SCREENSHOTS, if that is set.
test-page: $(VENV)/.stamp apt
	PYTHONPATH=$(CURDIR) $(VENV)/bin/python -m pytest -q -m browser tests/broker_server/operator/test_page_browser.py

# Parity on other processors, emulated: x86-64 with SSE4.2 alone and with AVX2, and a Raspberry Pi's. Ten minutes.
test-processors: $(VENV)/.stamp apt-emulation
	PYTHONPATH=$(CURDIR) $(VENV)/bin/python -m pytest -q -s -m emulated tests/emulation/test_processors.py

# What make test leaves out because a shorter test shows it on fewer cases.
test-long: $(VENV)/.stamp
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist worksteal -m long

# A simulation and a server on a Ray cluster of two nodes on this machine, against this machine alone: three minutes.
test-cluster: $(CLUSTER)/.stamp
	PYTHONPATH=$(CURDIR) $(CLUSTER)/bin/python -m pytest -q tests/federation/test_cluster.py

# A live server among hostile clients, one federation after another: make fuzz MINUTES=60
MINUTES ?= 10
fuzz: $(VENV)/.stamp
	MAS_FUZZ_MINUTES=$(MINUTES) PYTHONPATH=$(CURDIR) $(VENV)/bin/python -m pytest -q -s -m fuzz tests/federation/test_live_fuzz.py

# The exporter's tests with the oldest and with the newest torch that are allowed: builds with CUDA where PyPI has no
# other, several GB each, and half an hour on two cores.
test-torch: $(OLDEST)/.stamp $(NEWEST)/.stamp
	PYTHONPATH=$(CURDIR) $(OLDEST)/bin/python -m pytest -q -p no:cacheprovider tests/export
	PYTHONPATH=$(CURDIR) $(NEWEST)/bin/python -m pytest -q -p no:cacheprovider tests/export

# Models that are drawn, 500 instead of five: half an hour. A failure is shrunk, and kept as an example in the file.
test-random-models: $(VENV)/.stamp
	MAS_RANDOM_MODELS=500 $(VENV)/bin/python -m pytest -q -x -p no:cacheprovider tests/export/test_random_models.py

# PyTorch's samples of its operators and modules, into benchmarks/results/operators.json and docs/operators.md: tens of
# minutes. What passed there, the tests hold (tests/export/test_operators.py).
coverage-operators: $(VENV)/.stamp
	$(VENV)/bin/python -m benchmarks.operators

# A whole board, from an image to a report: half an hour, and root, because a root file system has files of root's.
test-boards: $(VENV)/.stamp apt-emulation
	PYTHONPATH=$(CURDIR) $(VENV)/bin/python -m pytest -q -s -m emulated tests/emulation/test_first_boot.py tests/emulation/test_board.py

demo: $(VENV)/.stamp
	$(VENV)/bin/python -m broker_server demo --out runs/demo

bench: $(VENV)/.stamp
	$(VENV)/bin/python -m benchmarks.run

bench-device: $(VENV)/.stamp
	$(VENV)/bin/python -m benchmarks.device

bench-export: $(VENV)/.stamp $(ORT_TRAINING)/.stamp
	$(VENV)/bin/python -m benchmarks.export

bench-examples: $(VENV)/.stamp
	$(VENV)/bin/python -m benchmarks.examples

bench-footprint: $(VENV)/.stamp
	$(VENV)/bin/python -m benchmarks.footprint

bench-security: $(VENV)/.stamp
	$(VENV)/bin/python -m benchmarks.security

bench-split: $(VENV)/.stamp
	$(VENV)/bin/python -m benchmarks.split

bench-reconstruction: $(VENV)/.stamp
	$(VENV)/bin/python -m benchmarks.reconstruction

bench-link: $(VENV)/.stamp
	$(VENV)/bin/python -m benchmarks.link

bench-stragglers: $(VENV)/.stamp
	$(VENV)/bin/python -m benchmarks.stragglers

bench-server: $(VENV)/.stamp apt
	$(VENV)/bin/python -m benchmarks.server

# Rendered buildings, as data sets of so many pixels. What is there stays: runs that go on know their data by its times.
runs/rooms8-32/building_07/dataset.json: IMAGES := 72
runs/rooms8-64/building_07/dataset.json: IMAGES := 200
runs/rooms8-%/building_07/dataset.json: | $(VENV)/.stamp
	$(VENV)/bin/python -m broker_server rooms --out runs/rooms8-$*-src --buildings 8 --images $(IMAGES) --size $* --seed 0
	$(VENV)/bin/python -m edge_runtime datasets import runs/rooms8-$*-src --out runs/rooms8-$* --size $*

# More of them for tests, where a task is measured on one building alone.
runs/rooms8-32-many/building_07/dataset.json: | $(VENV)/.stamp
	$(VENV)/bin/python -m broker_server rooms --out runs/rooms8-32-many-src --buildings 8 --images 160 --size 32 --seed 0
	$(VENV)/bin/python -m edge_runtime datasets import runs/rooms8-32-many-src --out runs/rooms8-32-many --size 32 --val 0.1 --test 0.4

# Garments in pairs, from Debian's package, which is installed where apt-get may be used.
FASHION := /usr/share/datasets/fashion-mnist
runs/pairs/device_07/dataset.json: | $(VENV)/.stamp
	test -d $(FASHION) || apt-get install -y -qq dataset-fashion-mnist
	$(VENV)/bin/python docs/experiments/pairs.py --source $(FASHION) --out runs/pairs

# The stations' files, in a folder or an archive: the user's copy of UCI's Beijing Multi-Site Air Quality.
AIR ?= ../shared/data/air/prsa_csv.tar.xz
runs/air/wanshouxigong/dataset.json: | $(VENV)/.stamp
	@test -e $(AIR) || { echo "make compare-air needs the stations' files: give AIR=FOLDER or AIR=ARCHIVE (docs/comparison.md)"; exit 1; }
	$(VENV)/bin/python docs/experiments/air.py $(AIR) --out runs/air

# What was stopped goes on: a run that has finished is not run again.
COMPARE = $(VENV)/bin/python -m broker_server simulate docs/experiments/$(1).toml --out runs/$(or $(2),$(1)) && \
	$(VENV)/bin/python -m broker_server compare runs/$(or $(2),$(1)) --out benchmarks/results/$(1)

compare: compare-pairs compare-air
	$(VENV)/bin/python -m benchmarks.headline

compare-pairs: runs/pairs/device_07/dataset.json
	$(call COMPARE,pairs,pairs-compare)

compare-air: runs/air/wanshouxigong/dataset.json
	$(call COMPARE,air,air-compare)

compare-rooms: runs/rooms8-32/building_07/dataset.json
	$(call COMPARE,rooms5)

compare-long: runs/rooms8-32/building_07/dataset.json
	$(call COMPARE,rooms5-long)

compare-time: runs/rooms8-32/building_07/dataset.json
	$(call COMPARE,rooms5-time)

compare-nine: runs/rooms8-32/building_07/dataset.json
	$(call COMPARE,rooms9)

compare-fedbone: runs/rooms8-32-many/building_07/dataset.json
	$(call COMPARE,fedbone)

compare-full: runs/rooms8-64/building_07/dataset.json
	$(call COMPARE,rooms5-full)
	$(call COMPARE,rooms9-full)

clean:
	rm -rf $(VENV) $(BOARD) $(ORT_TRAINING) $(CLUSTER) $(OLDEST) $(NEWEST) $(BROKERS) .emulation build dist runs htmlcov .coverage .hypothesis *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find $(SOURCES) benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
