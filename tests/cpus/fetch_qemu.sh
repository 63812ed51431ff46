#!/usr/bin/env bash
# Prints the path of an emulator of x86-64 processors: the system's, or Debian's, fetched into a folder without
# installing it.
#
#   fetch_qemu.sh FOLDER
set -euo pipefail

folder=$(realpath -m "${1:?a folder is expected}")
for name in qemu-x86_64-static qemu-x86_64; do
    if command -v "$name"; then exit; fi
done
program=$folder/usr/bin/qemu-x86_64-static
if [ ! -x "$program" ]; then
    command -v apt-get >/dev/null || {
        echo "fetch_qemu.sh: there is neither qemu-x86_64 nor apt-get here; install QEMU's user mode emulation" >&2
        exit 1
    }
    mkdir -p "$folder/apt/lists/partial" "$folder/apt/cache/archives/partial"
    options=(-qq -o "Dir::State::lists=$folder/apt/lists" -o "Dir::Cache=$folder/apt/cache" -o "APT::Sandbox::User=$(id -un)")
    apt-get "${options[@]}" update >&2
    # From Debian 13 on, qemu-user is the static one, and qemu-user-static is empty.
    for package in qemu-user-static qemu-user; do
        (cd "$folder/apt" && apt-get "${options[@]}" download "$package" >&2) || continue
        # The package has emulators of thirty processors, of which one is wanted.
        dpkg --fsys-tarfile "$folder/apt/$package"_*.deb |
            tar -x -C "$folder" --wildcards './usr/bin/qemu-x86_64*' 2>/dev/null || continue
        [ -e "$program" ] || mv "$folder/usr/bin/qemu-x86_64" "$program"
        break
    done
    rm -rf "$folder/apt"
    "$program" --version >&2
fi
echo "$program"
