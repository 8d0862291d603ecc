#!/usr/bin/env bash
# Unpacks Prometheus' promtool, which reads and tries the alert rules, and links it into
# BIN_DIR: .ci/receivers/promtool.sh BIN_DIR. The server is not installed: it would start.
set -euo pipefail
bin=$(mkdir -p "$1" && cd "$1" && pwd)
root=$(dirname "$bin")/prometheus
if [ -x "$bin/promtool" ] && "$bin/promtool" --version >/dev/null 2>&1; then
	exit 0
fi
"$(dirname "$0")/unpack" "$root" prometheus
ln -sf "$root/usr/bin/promtool" "$bin/promtool"
"$bin/promtool" --version >/dev/null
