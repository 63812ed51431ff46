# The two commands of the README: `make demo` edits a video, `make test` runs everything that CI runs.
# A stamp file is written when an environment is complete, so an interrupted run continues there.

PYTHON ?= python3
SAMPLE ?= examples/sample.mp4
INSTRUCTION ?= <video1> Make it night
OUT ?= demo-out

# The build of PyTorch. pip has to get the exact version before it installs anything that needs a range of versions.
# TORCH="torch==2.13.0 --index-url URL" takes it from elsewhere.
TORCH ?= torch==2.13.0

RUNTIME := $(shell find editverse_rt -type f -not -path '*/__pycache__/*') pyproject.toml README.md LICENSE
PYTEST := --timeout=900 -q

.DEFAULT_GOAL := help
.PHONY: help demo evaluate-demo docs serve test-serve-kills test-serve-fuzz test browser test-pins lint typecheck test-source test-wheel test-cpus test-ray wheel native test-native test-wan-native native-clang native-format native-tidy sanitize fuzz fuzz-media fuzz-media-native format clean test-wan
.DELETE_ON_ERROR:

help:
	@echo "make demo    edit $(SAMPLE) with the bundle that ships, in an environment of its own (no PyTorch)"
	@echo "make serve   the HTTP server and its page, in an environment of its own, SERVE=options"
	@echo "make evaluate-demo    a miniature benchmark with nano, to $(EVALUATE_OUT)/out/page.html"
	@echo "make test    all that CI runs: linters, types, floors, the tests, the wheel and its tests"
	@echo "make lint typecheck test-source test-wheel test-native test-cpus    its parts;  make format, wheel, clean"
	@echo "make docs    the pages and the Python API as a site, in build/site"
	@echo "make test-pins PYTHON=... PINS=oldest|newest    the wheel's tests with another Python, or the oldest dependencies"
	@echo "make test-wan    every class of Wan as a whole bundle, at tiny sizes; some 15 minutes"
	@echo "make native  the C library and its examples, in $(NATIVE);  make sanitize    its tests, sanitized"
	@echo "make test-ort-cuda-shim    node placement on CUDA without a GPU; downloads 255 MB"
	@echo "make test-ray    a batch, a benchmark and a server over a Ray cluster of two nodes on this machine; downloads 79 MB"
	@echo "make test-serve-kills test-serve-fuzz    a server that is killed 200 times; 10,000 altered requests"
	@echo "make fuzz    its parsers under libFuzzer, FUZZ_SECONDS=$(FUZZ_SECONDS) each;  make fuzz-media fuzz-media-native    altered videos and pictures"

# --- demo ---------------------------------------------------------------------------------------------

.venv-demo/ready: $(RUNTIME)
	@test -x .venv-demo/bin/python && .venv-demo/bin/python -m pip --version >/dev/null 2>&1 \
	    || { rm -rf .venv-demo; $(PYTHON) -m venv .venv-demo; }
	.venv-demo/bin/python -m pip install --quiet .
	@touch $@

demo: .venv-demo/ready
	@mkdir -p $(OUT)
	.venv-demo/bin/editverse-rt edit "$(SAMPLE)" "$(INSTRUCTION)" \
	    -o "$(OUT)/edited.mp4" --preview "$(OUT)/side-by-side.png"
	@echo "The result:              $(OUT)/edited.mp4"
	@echo "Side by side, as a PNG:  $(OUT)/side-by-side.png"

# --- serve --------------------------------------------------------------------------------------------

.venv-serve/ready: $(RUNTIME)
	@test -x .venv-serve/bin/python && .venv-serve/bin/python -m pip --version >/dev/null 2>&1 \
	    || { rm -rf .venv-serve; $(PYTHON) -m venv .venv-serve; }
	.venv-serve/bin/python -m pip install --quiet '.[serve]'
	@touch $@

# SERVE="--bundle DIR --port 8080" is passed on.
serve: .venv-serve/ready
	.venv-serve/bin/editverse-rt serve $(SERVE)

# Slow, so not a part of `make test`, which kills a dozen times: no accepted job may be lost.
KILLS ?= 200
KILLS_SEED ?= 0
test-serve-kills: .venv/ready
	.venv/bin/python tests/editverse_rt/serve/kills.py --kills $(KILLS) --seed $(KILLS_SEED) --video examples/sample.mp4

# Slow as well: `make test` sends 400 altered requests.
REQUESTS ?= 10000
test-serve-fuzz: .venv/ready
	.venv/bin/python tests/editverse_rt/serve/fuzz_endpoints.py --requests $(REQUESTS) \
	    --video examples/sample.mp4 --picture docs/images/page.png

# --- evaluate -----------------------------------------------------------------------------------------

# A miniature benchmark, from edits by nano to a report. The metric models are random, and are labelled so.
EVALUATE_OUT ?= build/evaluate-demo
evaluate-demo: .venv/ready
	.venv/bin/python -m export.minibench $(EVALUATE_OUT)/data --frames 5
	test -f build/metrics-random/evaluation.json \
	    || .venv/bin/python -m export.metrics build/metrics-random --random-small
	.venv/bin/editverse-rt evaluate editverse-bench --data $(EVALUATE_OUT)/data -o $(EVALUATE_OUT)/out \
	    --metrics build/metrics-random --judge offline --threads 1 --workers 2

# --- test ---------------------------------------------------------------------------------------------

.venv/ready: pyproject.toml
	@test -x .venv/bin/python && .venv/bin/python -m pip --version >/dev/null 2>&1 \
	    || { rm -rf .venv; $(PYTHON) -m venv .venv; }
	.venv/bin/python -m pip install --quiet $(TORCH)
	.venv/bin/python -m pip install --quiet --editable '.[evaluate,export,serve,test]'
	@touch $@

test: lint typecheck test-source test-wheel test-native test-cpus

lint: .venv/ready native-format
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports

typecheck: .venv/ready
	.venv/bin/mypy

# The headers that the TensorRT plugin is compiled against, where there is a compiler for it.
build/plugin-headers/headers.txt: cpp/plugin/headers.txt cpp/plugin/fetch_headers.py .venv/ready
	! command -v nvcc >/dev/null || .venv/bin/python cpp/plugin/fetch_headers.py build/plugin-headers

# Chromium for the tests of the page, where there is none.
browser: .venv/ready
	@tests/browser/install_chromium.sh .venv/bin/python

test-source: .venv/ready browser build/plugin-headers/headers.txt
	.venv/bin/python -m pytest $(PYTEST)

# Every class of Wan as a whole bundle, at tiny sizes: some 15 minutes.
test-wan: .venv/ready
	.venv/bin/python -m pytest $(PYTEST) --timeout=3600 -m slow tests/export/families

wheel: .venv/ready
	@rm -rf dist
	.venv/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# Only this system has wheels of it. Elsewhere the tests that need it are skipped with a message.
ifeq ($(shell uname -s)-$(shell uname -m),Linux-x86_64)
CUDA_BINDINGS := 'cuda-bindings>=13,<14'
endif

.venv-wheel/ready: pyproject.toml
	@test -x .venv-wheel/bin/python && .venv-wheel/bin/python -m pip --version >/dev/null 2>&1 \
	    || { rm -rf .venv-wheel; $(PYTHON) -m venv .venv-wheel; }
	.venv-wheel/bin/python -m pip install --quiet 'pytest>=9,<10' hypothesis pytest-timeout scikit-video \
	    'httpx>=0.28,<0.29' 'openai==3.57.0' 'schemathesis>=4.30,<5' \
	    $(CUDA_BINDINGS)
	@touch $@

# The tests are copied away, so that nothing can import the source tree in place of the wheel.
test-wheel: wheel .venv-wheel/ready
	.venv-wheel/bin/python -m pip install --quiet "$$(ls dist/editverse_rt-*.whl)[evaluate,serve]"
	.venv-wheel/bin/python -m pip install --quiet --force-reinstall --no-deps dist/editverse_rt-*.whl
	@rm -rf build/wheel-tests && mkdir -p build/wheel-tests/tests
	@cp -r tests/conftest.py tests/editverse_rt tests/vectors build/wheel-tests/tests/
	@printf '[pytest]\naddopts = --import-mode=importlib -m "not slow"\nmarkers = slow: left out\n' \
	    > build/wheel-tests/pytest.ini
	cd build/wheel-tests && EDITVERSE_TEST_INSTALLED=1 ../../.venv-wheel/bin/pytest $(PYTEST) tests

# The wheel's tests with another Python (PYTHON=python3.13) or with the oldest versions that pyproject.toml allows
# (PINS=oldest). Needs neither PyTorch nor the environment of `make test`.
PINS ?= newest
PINS_VENV = build/venv-$(notdir $(PYTHON))-$(PINS)

test-pins:
	rm -rf $(PINS_VENV) build/pins-tests && $(PYTHON) -m venv $(PINS_VENV) && mkdir -p build/pins-tests/tests build/pins-dist
	rm -f build/pins-dist/*.whl && $(PINS_VENV)/bin/python -m pip wheel --quiet --no-deps --wheel-dir build/pins-dist .
	$(PINS_VENV)/bin/python -m pip install --quiet 'pytest>=9,<10' hypothesis pytest-timeout scikit-video \
	    'httpx>=0.28,<0.29' 'openai==3.57.0' 'schemathesis>=4.30,<5' \
	    $(CUDA_BINDINGS) "$$(ls build/pins-dist/editverse_rt-*.whl)[evaluate,serve]" \
	    $(if $(filter oldest,$(PINS)),$$($(PYTHON) tests/oldest_pins.py))
	@cp -r tests/conftest.py tests/editverse_rt tests/vectors build/pins-tests/tests/
	@printf '[pytest]\naddopts = --import-mode=importlib -m "not slow"\nmarkers = slow: left out\n' \
	    > build/pins-tests/pytest.ini
	cd build/pins-tests && EDITVERSE_TEST_INSTALLED=1 $(CURDIR)/$(PINS_VENV)/bin/pytest $(PYTEST) tests

# --- the site ---------------------------------------------------------------------------------------------

# The pages of docs/ and the docstrings as a site, in build/site. A broken link fails.
.venv-docs/ready: pyproject.toml
	@test -x .venv-docs/bin/python && .venv-docs/bin/python -m pip --version >/dev/null 2>&1 \
	    || { rm -rf .venv-docs; $(PYTHON) -m venv .venv-docs; }
	.venv-docs/bin/python -m pip install --quiet --editable '.[docs]'
	@touch $@

docs: .venv-docs/ready
	.venv-docs/bin/mkdocs build --strict --site-dir build/site

# --- other processors ------------------------------------------------------------------------------------

# The same work on emulated x86-64 processors with fewer instructions, compared with this processor. The emulator is
# the system's, or is downloaded from Debian. Without one, the target prints a message, and CI fails.
ifeq ($(shell uname -s)-$(shell uname -m),Linux-x86_64)
test-cpus: .venv/ready
	@qemu=$$(tests/cpus/fetch_qemu.sh build/qemu) || qemu=; \
	if [ -n "$$qemu" ]; then .venv/bin/python tests/cpus/compare.py "$$qemu"; \
	else echo "test-cpus: SKIPPED: there is no emulator, and none can be fetched"; test -z "$(CI)"; fi
else
test-cpus:
	@echo "test-cpus: SKIPPED: it emulates x86-64 on Linux on x86-64"
	@test -z "$(CI)"
endif

# Not a part of `make test`, since it downloads 255 MB: where ONNX Runtime's CUDA provider runs nano's nodes, over a CUDA
# that computes nothing. Needs g++, nm and CUDA's headers.
CUDA_INCLUDE ?= /usr/local/cuda/include

.venv-ort-cuda/ready:
	@test -x .venv-ort-cuda/bin/python || $(PYTHON) -m venv .venv-ort-cuda
	.venv-ort-cuda/bin/python -m pip install --quiet numpy 'onnxruntime-gpu>=1.23,<2'
	@touch $@

test-ort-cuda-shim: .venv-ort-cuda/ready
	.venv-ort-cuda/bin/python tests/ort_cuda_shim/check_placement.py --include $(CUDA_INCLUDE)

# Not a part of `make test`, since Ray is 79 MB: a batch, a benchmark and a server over two nodes on this machine.
.venv-ray/ready: pyproject.toml
	@test -x .venv-ray/bin/python || $(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python -m pip install --quiet --editable '.[ray,serve]' 'pytest>=9,<10' pytest-timeout \
	    'httpx>=0.28,<0.29'
	@touch $@

test-ray: .venv-ray/ready
	.venv-ray/bin/python -m pytest $(PYTEST) tests/ray_batch/check_ray_batch.py \
	    tests/ray_batch/check_ray_evaluate.py tests/ray_batch/check_ray_serve.py

# --- the C library --------------------------------------------------------------------------------------

NATIVE := build/native
NATIVE_DEPS := build/native-deps
# FFMPEG=OFF builds a library that takes frames in memory only.
FFMPEG ?= ON
# TENSORRT=OFF builds one without TensorRT, which is the default without a CUDA toolkit. Only headers are needed.
TENSORRT ?= $(if $(CMAKE_PREFIX_PATH),OFF,$(if $(shell command -v nvcc),ON,OFF))
FFMPEG_PACKAGES := $(if $(filter ON,$(FFMPEG)),libavformat-dev libavcodec-dev libswscale-dev)
# CMAKE_PREFIX_PATH=... uses ONNX Runtime, SentencePiece, nlohmann-json and OpenSSL of your own. Nothing is downloaded.
NATIVE_CMAKE = cmake -S cpp -DCMAKE_EXPORT_COMPILE_COMMANDS=ON -DEDITVERSE_FFMPEG=$(FFMPEG) -DEDITVERSE_TENSORRT=$(TENSORRT) -DEDITVERSE_TESTS=ON \
    -DEDITVERSE_HEADERS="$(CURDIR)/build/plugin-headers" -DCMAKE_PREFIX_PATH="$(or $(CMAKE_PREFIX_PATH),$(CURDIR)/$(NATIVE_DEPS)/usr)" \
    $(if $(shell command -v ninja),-G Ninja)
# FFmpeg's libraries need other downloaded libraries, and a sanitized library has no path to ONNX Runtime.
NATIVE_LIBS = $(CURDIR)/$(NATIVE_DEPS)/usr/lib
NATIVE_RUN = $(if $(CMAKE_PREFIX_PATH),,LD_LIBRARY_PATH=$(NATIVE_LIBS)/$(shell cc -print-multiarch):$(NATIVE_LIBS))

$(NATIVE_DEPS)/ready-$(FFMPEG): cpp/tools/fetch_deps.sh .venv/ready
	cpp/tools/fetch_deps.sh $(NATIVE_DEPS) --python .venv/bin/python $(FFMPEG_PACKAGES)
	@touch $@

NATIVE_NEEDS = $(if $(CMAKE_PREFIX_PATH),,$(NATIVE_DEPS)/ready-$(FFMPEG) \
    $(if $(filter ON,$(TENSORRT)),build/plugin-headers/headers.txt))

native: $(NATIVE_NEEDS)
	$(NATIVE_CMAKE) -B $(NATIVE) -DCMAKE_BUILD_TYPE=Release
	cmake --build $(NATIVE)

# Without a compiler there is nothing to test, and the target says so. CI has a compiler, and fails without one.
ifneq ($(and $(shell command -v c++),$(shell command -v cmake)),)
test-native: native-tidy
	$(NATIVE_RUN) ctest --test-dir $(NATIVE) --output-on-failure
	$(NATIVE_RUN) .venv/bin/python -m pytest $(PYTEST) cpp/tests
else
test-native:
	@echo "test-native: SKIPPED: there is no C++ compiler or no cmake on this machine"
	@test -z "$(CI)"
endif

# .clang-format has the layout; `make format` applies it.
NATIVE_SOURCES = $(shell find cpp -regex '.*\.\(c\|cpp\|cu\|h\|hpp\|inc\)')

native-format: .venv/ready
	@.venv/bin/clang-format --dry-run --Werror $(NATIVE_SOURCES)

# .clang-tidy has the checks, and why some are left out.
native-tidy: native
	.venv/bin/python cpp/tools/check_with_clang_tidy.py $(NATIVE) --clang-tidy .venv/bin/clang-tidy

# Slow: random checkpoints of the Wan family are exported first, and kept in build/wan.
test-wan-native: native
	$(NATIVE_RUN) .venv/bin/python -m pytest -q --timeout=7200 -m slow cpp/tests/test_wan.py

# Slow, so not a part of `make test`: memory errors and leaks, undefined behaviour, races. The tests of plans are driven
# by Python, which runs sanitized programs beside the plain library.
sanitize: native
	$(NATIVE_CMAKE) -B build/asan -DEDITVERSE_EXAMPLES=OFF -DEDITVERSE_SANITIZE=address,undefined
	cmake --build build/asan
	ctest --test-dir build/asan --output-on-failure
	EDITVERSE_PLANS_BUILD=build/asan $(NATIVE_RUN) .venv/bin/python -m pytest $(PYTEST) cpp/tests/test_plans.py
	$(NATIVE_CMAKE) -B build/tsan -DEDITVERSE_EXAMPLES=OFF -DEDITVERSE_SANITIZE=thread
	cmake --build build/tsan
	ctest --test-dir build/tsan --output-on-failure
	EDITVERSE_PLANS_BUILD=build/tsan TSAN_OPTIONS=suppressions=$(CURDIR)/cpp/tests/tsan.supp $(NATIVE_RUN) \
	    .venv/bin/python -m pytest $(PYTEST) cpp/tests/test_plans.py

# The library and its tests by another compiler, whose warnings are errors as well.
native-clang: $(if $(CMAKE_PREFIX_PATH),,$(NATIVE_DEPS)/ready-clang) $(NATIVE_NEEDS)
	$(NATIVE_RUN) $(NATIVE_CMAKE) -B build/native-clang -DCMAKE_CXX_COMPILER=$(FUZZ_CXX) \
	    -DCMAKE_C_COMPILER=$(patsubst %clang++-14,%clang-14,$(patsubst %clang++,%clang,$(FUZZ_CXX)))
	$(NATIVE_RUN) cmake --build build/native-clang
	$(NATIVE_RUN) ctest --test-dir build/native-clang --output-on-failure

# `make test` fuzzes for a few seconds with a driver of our own; this is libFuzzer, slower to compile and for longer. With
# CMAKE_PREFIX_PATH, clang++ is the system's as well.
FUZZ_SECONDS ?= 20
FUZZ_CXX = $(if $(CMAKE_PREFIX_PATH),clang++,$(CURDIR)/$(NATIVE_DEPS)/usr/bin/clang++-14)

$(NATIVE_DEPS)/ready-clang: cpp/tools/fetch_deps.sh .venv/ready
	cpp/tools/fetch_deps.sh $(NATIVE_DEPS) --python .venv/bin/python clang-14 libclang-rt-14-dev
	@touch $@

# Altered files of 27 kinds through the Python host's readers: no crash, 10 s and 3 GiB a file at most.
FUZZ_MEDIA_FILES ?= 10000
FUZZ_MEDIA_SEED ?= 0
fuzz-media: .venv/ready
	.venv/bin/python tests/editverse_rt/media/fuzz_media.py --files $(FUZZ_MEDIA_FILES) --seed $(FUZZ_MEDIA_SEED)

# The same files through the C library's reader.
fuzz-media-native: native
	$(NATIVE_RUN) .venv/bin/python cpp/tests/fuzz_media.py --files $(FUZZ_MEDIA_FILES) --seed $(FUZZ_MEDIA_SEED)

fuzz: $(if $(CMAKE_PREFIX_PATH),,$(NATIVE_DEPS)/ready-clang)
	$(NATIVE_RUN) cmake -S cpp -B build/fuzz $(if $(shell command -v ninja),-G Ninja) \
	    -DEDITVERSE_RUNTIME=OFF -DEDITVERSE_FUZZ=ON -DEDITVERSE_FUZZ_SECONDS=$(FUZZ_SECONDS) \
	    -DCMAKE_CXX_COMPILER=$(FUZZ_CXX) \
	    -DCMAKE_PREFIX_PATH="$(or $(CMAKE_PREFIX_PATH),$(CURDIR)/$(NATIVE_DEPS)/usr)"
	$(NATIVE_RUN) cmake --build build/fuzz
	$(NATIVE_RUN) ctest --test-dir build/fuzz --output-on-failure

# --- the rest -----------------------------------------------------------------------------------------

format: .venv/ready
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .
	.venv/bin/clang-format -i $(NATIVE_SOURCES)

clean:
	rm -rf .venv .venv-ray .venv-demo .venv-docs .venv-serve .venv-ort-cuda .venv-wheel build dist demo-out
