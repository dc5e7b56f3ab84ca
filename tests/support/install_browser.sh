#!/usr/bin/env bash
# A browser for the chat page's test: Debian's chromium package, unless there is a browser (CHROMIUM=path names another).
set -uo pipefail
command -v "${CHROMIUM:-chromium}" >/dev/null || command -v google-chrome >/dev/null && exit 0
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo -n)
if command -v apt-get >/dev/null && "${as_root[@]}" true 2>/dev/null; then
  echo "Installing the chromium package, for the chat page's test."
  install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install chromium)
  "${install[@]}" >/dev/null 2>&1 || { "${as_root[@]}" apt-get -qq update && "${install[@]}" >/dev/null; }
fi
command -v chromium >/dev/null && exit 0
echo "note: no browser, so the chat page's test will be skipped (and fails in .ci/run)." >&2
echo "      Install one (Debian: apt-get install chromium; Fedora: dnf install chromium), or set CHROMIUM=path." >&2
