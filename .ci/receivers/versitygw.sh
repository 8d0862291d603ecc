#!/usr/bin/env bash
# Builds the S3 gateway versitygw v1.8.0 as versitygw in BIN_DIR:
# .ci/receivers/versitygw.sh BIN_DIR. The first build takes minutes.
set -euo pipefail
bin=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/versitygw"

# Built from just these files: nothing to do.
sum=$(cat go.mod go.sum | sha256sum | cut -d' ' -f1)
if [ -x "$bin/versitygw" ] && [ "$(cat "$bin/versitygw.sum" 2>/dev/null)" = "$sum" ]; then
	exit 0
fi
CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "$bin/versitygw.new" github.com/versity/versitygw/cmd/versitygw
mv "$bin/versitygw.new" "$bin/versitygw"
echo "$sum" >"$bin/versitygw.sum"
