#!/usr/bin/env bash
# Installs a build into an empty folder and builds a program against it in every way that the README names:
# check_install.sh BUILD
set -euo pipefail
build=$(realpath "$1")
work=$build/check-install
prefix=$work/prefix
rm -rf "$work"
mkdir -p "$work/app"

# Where the build found what it needs; a program that links the static library has to find it too.
prefix_path=$(sed -n 's/^CMAKE_PREFIX_PATH:[A-Z]*=//p' "$build/CMakeCache.txt")
cmake --install "$build" --prefix "$prefix" >/dev/null

cat >"$work/app/app.c" <<'END'
#include <editverse_rt.h>
#include <stdio.h>
int main(void) {
    ev_pipeline *pipeline = NULL;
    ev_options options;
    ev_options_init(&options, sizeof options);
    options.bundle = "no-such-folder";
    if (ev_open(&pipeline, &options) != EV_ERROR_BUNDLE) return 1;
    puts(ev_version());
    return 0;
}
END
cat >"$work/app/CMakeLists.txt" <<'END'
cmake_minimum_required(VERSION 3.24)
project(app C CXX)
find_package(EditVerseRT 0.1 REQUIRED COMPONENTS static)
add_executable(shared app.c)
target_link_libraries(shared PRIVATE EditVerseRT::editverse_rt)
add_executable(static app.c)
target_link_libraries(static PRIVATE EditVerseRT::editverse_rt_static)
END

expect() { # PROGRAM
    local version
    version=$("$1")
    [ "$version" = 0.1.0 ] || {
        echo "$1 printed '$version', expected 0.1.0" >&2
        exit 1
    }
}

cmake -S "$work/app" -B "$work/app/build" -DCMAKE_PREFIX_PATH="$prefix;$prefix_path" >/dev/null
cmake --build "$work/app/build" >/dev/null
expect "$work/app/build/shared"
expect "$work/app/build/static"

libdir=$(dirname "$(find "$prefix" -name libeditverse_rt.so)")
sed "s|^prefix=.*|prefix=$prefix|" "$libdir/pkgconfig/editverse_rt.pc" >"$work/editverse_rt.pc"
if command -v pkg-config >/dev/null; then
    # shellcheck disable=SC2046
    cc "$work/app/app.c" $(PKG_CONFIG_PATH=$work pkg-config --cflags --libs editverse_rt) -o "$work/by-pkg-config"
    LD_LIBRARY_PATH=$libdir${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} expect "$work/by-pkg-config"
fi
# As a part of another project: configured only, since building it all once more would show nothing new.
mkdir "$work/parent"
cat >"$work/parent/CMakeLists.txt" <<END
cmake_minimum_required(VERSION 3.24)
project(parent C CXX)
add_subdirectory($(dirname "$(dirname "$(realpath "${BASH_SOURCE[0]}")")") editverse)
add_executable(app $work/app/app.c)
target_link_libraries(app PRIVATE EditVerseRT::editverse_rt)
END
cmake -S "$work/parent" -B "$work/parent/build" -DCMAKE_PREFIX_PATH="$prefix_path" >/dev/null

echo "find_package (shared, static)$(command -v pkg-config >/dev/null && echo ', pkg-config' || true), add_subdirectory: done"
