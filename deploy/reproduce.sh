#!/bin/sh
# Builds penstock twice from one commit, HEAD or COMMIT, in two folders, with a cache of its
# own for each, and compares the bytes; the program is left as PROGRAM when that is given.
# Takes twice the time of a build from nothing.
#
#   deploy/reproduce.sh [PROGRAM]
set -eu
out=${1:+$(realpath -m "$1")}
cd "$(dirname "$0")/.."
# Said once: somebody may commit meanwhile.
COMMIT=$(git rev-parse --verify "${COMMIT:-HEAD}^{commit}")
export COMMIT
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for n in one another-with-a-longer-name; do
	mkdir "$work/$n"
	git archive "$COMMIT" | tar -x -C "$work/$n"
	(
		cd "$work/$n"
		GOCACHE="$work/cache-$n" sh deploy/build.sh "$work/$n.bin"
	)
	rm -rf "$work/cache-$n"
	sha256sum "$work/$n.bin" | sed "s,$work/,,"
done
cmp "$work/one.bin" "$work/another-with-a-longer-name.bin"
echo "the same bytes, of $COMMIT"
[ -z "$out" ] || cp "$work/one.bin" "$out"
