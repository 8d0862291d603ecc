#!/usr/bin/env bash
# Builds mock-es, Elastic's stand-in for a bulk API that refuses some of what it gets, as mock-es
# in BIN_DIR: .ci/receivers/mock-es.sh BIN_DIR.
set -euo pipefail
bin=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/mock-es"

# Built from just these files: nothing to do.
sum=$(cat go.mod go.sum | sha256sum | cut -d' ' -f1)
if [ -x "$bin/mock-es" ] && [ "$(cat "$bin/mock-es.sum" 2>/dev/null)" = "$sum" ]; then
	exit 0
fi
CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "$bin/mock-es.new" github.com/elastic/mock-es/cmd/mock-es
mv "$bin/mock-es.new" "$bin/mock-es"
echo "$sum" >"$bin/mock-es.sum"
