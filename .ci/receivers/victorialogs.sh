#!/usr/bin/env bash
# Builds VictoriaLogs v1.110.0, which has the bulk API of Elasticsearch, as victoria-logs
# in BIN_DIR: .ci/receivers/victorialogs.sh BIN_DIR.
set -euo pipefail
bin=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/victorialogs"

# Built from just these files: nothing to do.
sum=$(cat go.mod go.sum | sha256sum | cut -d' ' -f1)
if [ -x "$bin/victoria-logs" ] && [ "$(cat "$bin/victoria-logs.sum" 2>/dev/null)" = "$sum" ]; then
	exit 0
fi
CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "$bin/victoria-logs.new" github.com/VictoriaMetrics/VictoriaMetrics/app/victoria-logs
mv "$bin/victoria-logs.new" "$bin/victoria-logs"
echo "$sum" >"$bin/victoria-logs.sum"
