#!/bin/sh
# Fails when the program in an image, or a program, has grown above a limit, or when the
# linker keeps methods that nothing calls again; see docs/decisions/0030-image-size.md.
#
#   deploy/weigh.sh IMAGE|PROGRAM [MIB]
set -eu
limit=${2:-58}
program=$1
if [ ! -f "$program" ]; then
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	container=$(docker create "$1")
	docker cp "$container:/penstock" "$work/penstock"
	docker rm "$container" >/dev/null
	program=$work/penstock
	printf '%s: %s bytes of image\n' "$1" "$(docker image inspect --format '{{.Size}}' "$1")"
fi
size=$(wc -c <"$program")
printf '%s bytes of program, %s compressed; at most %s MiB\n' "$size" "$(gzip -6 -c "$program" | wc -c)" "$limit"

# Every program has this one: without it, the search below would prove nothing.
if ! grep -qaF 'service/s3.(*Client).GetObject' "$program"; then
	echo 'the names of functions cannot be read: mend this script' >&2
	exit 1
fi
# Nothing calls it. It is there when the program can call methods by name.
if grep -qaF 'service/s3.(*Client).PutBucketAcl' "$program"; then
	echo 'methods that nothing calls are kept: something calls reflect.Value.MethodByName, as text/template does.' >&2
	echo 'find it: go build -tags grpcnotrace -ldflags=-dumpdep -o /dev/null ./services/penstock 2>&1 | grep "ReflectMethod"' >&2
	exit 1
fi
[ "$size" -le $((limit * 1024 * 1024)) ] || {
	echo "too large: find what has grown with go tool nm -size -sort size, or raise the limit with a word in the decision" >&2
	exit 1
}
