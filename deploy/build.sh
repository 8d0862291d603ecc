#!/bin/sh
# Builds penstock as the image has it: static, small, and the same bytes from the same
# commit and the same Go, wherever it is built.
#
#   VERSION=v1.2.3 COMMIT=0123abc deploy/build.sh PROGRAM
#
# grpcnotrace leaves out a page of gRPC that nobody can open here; it is made by html/template,
# and what that costs is in docs/decisions/0030-image-size.md.
set -eu
out=$1
telemetry=github.com/penstock/penstock/services/internal/telemetry
CGO_ENABLED=0 go build -trimpath -buildvcs=false -tags grpcnotrace \
	-ldflags "-s -w -X $telemetry.version=${VERSION:-} -X $telemetry.commit=${COMMIT:-}" \
	-o "$out" ./services/penstock
