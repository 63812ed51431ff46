#!/usr/bin/env bash
# Fails unless a shared library exports the functions of the header and nothing else: check_symbols.sh LIBRARY
set -euo pipefail
library=$1
header=$(dirname "${BASH_SOURCE[0]}")/../include/editverse_rt.h
exported=$(nm -D --defined-only "$library" | awk '{print $3}' | sort)
declared=$(grep -oE '^EV_API .*' "$header" | grep -oE 'ev_[a-z_]+\(' | tr -d '(' | sort)
if [ "$exported" != "$declared" ]; then
    echo "exported (left) and declared (right) differ:" >&2
    diff <(echo "$exported") <(echo "$declared") >&2 || true
    exit 1
fi
echo "$(echo "$exported" | wc -l) symbols, all of the header"
