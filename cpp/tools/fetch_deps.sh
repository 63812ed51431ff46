#!/usr/bin/env bash
# Fetches what the library is built with into a folder, and installs nothing: Debian's packages, unpacked, and the
# shared library of ONNX Runtime out of the Python package. For a machine with apt on which these are not installed.
#
#   fetch_deps.sh FOLDER [--python PYTHON] [PACKAGE ...]
#
# FOLDER/usr is then a prefix for CMAKE_PREFIX_PATH. PYTHON has the package onnxruntime (default: python3).
# PACKAGE: further packages, with all that they need, such as libavformat-dev or clang-14.
# Takes up what is there already; a set of packages that was fetched is not fetched again.
set -euo pipefail

folder=$(realpath -m "${1:?a folder is expected}")
shift
python=python3
if [ "${1:-}" = --python ]; then
    python=$2
    shift 2
fi

# The suite that has ONNX Runtime's headers. They are not in older ones, and in no Python package.
headers_suite=trixie
base=(libsentencepiece-dev nlohmann-json3-dev libssl-dev)

# apt with lists, cache and sources of its own; what the machine has installed is known to it, so that nothing that
# is there is fetched again.
private_apt() { # STATE SOURCES STATUS COMMAND ...
    local state=$1 sources=$2 status=$3
    shift 3
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
    apt-get -qq -o "Dir::State=$state" -o "Dir::Cache=$state/cache" -o "Dir::State::status=$status" \
        -o "Dir::Etc::sourcelist=$sources/sources.list" -o "Dir::Etc::sourceparts=$sources/sources.list.d" \
        -o Debug::NoLocking=1 -o "APT::Sandbox::User=$(id -un)" "$@"
}

fetch_packages() { # PACKAGE ...
    local state=$folder/apt stamp
    stamp=$folder/.have-$(printf '%s\n' "$@" | sort | sha256sum | cut -c1-16)
    [ -e "$stamp" ] && [ -z "$(list_dangling_libraries)" ] && return
    private_apt "$state" /etc/apt /var/lib/dpkg/status update
    private_apt "$state" /etc/apt /var/lib/dpkg/status --download-only --yes --no-install-recommends install "$@" \
        >/dev/null
    # Named packages that are installed are wanted here all the same only if something else is missing: CMake looks
    # on the system too.
    for package in "$state"/cache/archives/*.deb; do
        case $package in
        # Programs run with these libraries in their path; the C library and the compiler's are the system's own.
        */libc6_* | */libstdc++6_* | */libgcc-s1_*) ;;
        *) [ -e "$package" ] && dpkg -x "$package" "$folder" ;;
        esac
    done
    rm -rf "$state/cache"
    link_installed_libraries
    touch "$stamp"
}

list_dangling_libraries() {
    find "$folder/usr/lib" "$folder/lib" -name 'lib*.so' -xtype l 2>/dev/null || true
}

# A package of headers links to a library of another package. Where that one is installed on the machine it was not
# fetched, and the link leads nowhere; CMake would then take the static library beside it.
link_installed_libraries() {
    local link name found
    list_dangling_libraries | while read -r link; do
        name=$(basename "$(readlink "$link")")
        found=$(find /usr/lib /lib /usr/local/lib -name "$name" -print -quit 2>/dev/null || true)
        if [ -z "$found" ]; then
            echo "fetch_deps.sh: $link leads nowhere: $name is neither fetched nor installed" >&2
        else
            ln -sf "$found" "$link"
        fi
    done
}

fetch_onnxruntime_headers() {
    local header=usr/include/onnxruntime/onnxruntime_c_api.h state=$folder/apt-$headers_suite source
    [ -e "$folder/$header" ] && return
    mkdir -p "$state/etc/sources.list.d"
    # The machine's own sources, with one suite in place of another.
    # shellcheck source=/dev/null
    for source in /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list; do
        if [ -e "$source" ] && grep -q debian "$source"; then
            sed -E "s/\b$(. /etc/os-release && echo "$VERSION_CODENAME")\b/$headers_suite/g" "$source" \
                >"$state/etc/sources.list.d/$(basename "$source")"
        fi
    done
    if [ -e "$state/etc/sources.list.d/sources.list" ]; then
        mv "$state/etc/sources.list.d/sources.list" "$state/etc/sources.list"
    fi
    private_apt "$state" "$state/etc" /dev/null update
    (cd "$state" && private_apt "$state" "$state/etc" /dev/null download libonnxruntime-dev >/dev/null)
    dpkg -x "$state"/libonnxruntime-dev_*.deb "$state/root"
    mkdir -p "$folder/usr/include"
    rm -rf "$folder/usr/include/onnxruntime"
    mv "$state/root/usr/include/onnxruntime" "$folder/usr/include/"
    rm -rf "$state"
}

# The Python package has the library without the names under which linkers and loaders look for it.
link_onnxruntime_library() {
    local library
    library=$("$python" -c '
import importlib.util, pathlib
spec = importlib.util.find_spec("onnxruntime")
if spec is None:
    raise SystemExit("onnxruntime is not installed for this Python; pip install onnxruntime, or use --python")
found = sorted(pathlib.Path(spec.origin).parent.glob("capi/libonnxruntime.so.*"))
if not found:
    raise SystemExit(f"there is no libonnxruntime.so in {spec.origin}; a newer onnxruntime has one")
print(found[-1])')
    mkdir -p "$folder/usr/lib"
    ln -sf "$library" "$folder/usr/lib/libonnxruntime.so.1"
    ln -sf libonnxruntime.so.1 "$folder/usr/lib/libonnxruntime.so"
}

mkdir -p "$folder"
command -v apt-get >/dev/null || {
    echo "fetch_deps.sh: there is no apt-get here; install SentencePiece, nlohmann-json, OpenSSL and ONNX Runtime" \
        "with their headers, and leave this script out" >&2
    exit 1
}
fetch_packages "${base[@]}" "$@"
fetch_onnxruntime_headers
link_onnxruntime_library
