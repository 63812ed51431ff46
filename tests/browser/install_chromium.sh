#!/usr/bin/env bash
# Installs Chromium for the page's tests, where there is none: Debian's package, or else the build that Playwright
# downloads.
#
#   install_chromium.sh PYTHON
set -euo pipefail

python=${1:?a Python with the package playwright is expected}
for name in chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v "$name" >/dev/null; then exit; fi
done
as_root=
if [ "$(id -u)" != 0 ]; then as_root="sudo -n"; fi
# Ubuntu's package of this name installs a snap, which does not start in containers.
if grep -qs '^ID=debian' /etc/os-release && $as_root true; then
    $as_root apt-get -qq update
    DEBIAN_FRONTEND=noninteractive $as_root apt-get -qq install --yes --no-install-recommends chromium >/dev/null
else
    "$python" -m playwright install chromium
fi
