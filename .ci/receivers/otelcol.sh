#!/usr/bin/env bash
# Builds the OpenTelemetry Collector v0.145.0, with what otelcol/main.go names, as
# otelcol in BIN_DIR: .ci/receivers/otelcol.sh BIN_DIR. The first build takes minutes.
set -euo pipefail
bin=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/otelcol"

# Built from just these files: nothing to do.
sum=$(cat go.mod go.sum main.go | sha256sum | cut -d' ' -f1)
if [ -x "$bin/otelcol" ] && [ "$(cat "$bin/otelcol.sum" 2>/dev/null)" = "$sum" ]; then
	exit 0
fi
CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "$bin/otelcol.new" .
mv "$bin/otelcol.new" "$bin/otelcol"
echo "$sum" >"$bin/otelcol.sum"
