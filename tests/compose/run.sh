#!/usr/bin/env bash
# Tries compose.yaml, unchanged, with the demo's S3 and SQS endpoint: every
# container gets healthy, the books balance, the events are in the file, a second
# parse joins, and a stop is in time. Leaves nothing behind but images.
#
# Where no image registry can be reached, run tests/compose/standin-images.sh first;
# this script does so itself when golang:1.26 or nats:2 is neither here nor to be had.
#
# Needs: docker with a running engine, and docker compose or docker-compose.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec </dev/null

deadline=$((SECONDS + ${COMPOSE_TEST_SECONDS:-900}))
project=penstock-test-$$
export PENSTOCK_CONFIG=${PENSTOCK_CONFIG:-./deploy/penstock.demo.yaml}
export COMPOSE_IGNORE_ORPHANS=1

say() { printf '%4ds  %s\n' "$SECONDS" "$*"; }
fail() {
	say "FAILED: $*"
	exit 1
}

if docker compose version >/dev/null 2>&1; then
	compose() { docker compose -p "$project" --profile demo "$@"; }
elif command -v docker-compose >/dev/null; then
	compose() { docker-compose -p "$project" --profile demo "$@"; }
else
	fail "neither docker compose nor docker-compose is here"
fi

end() {
	local code=$?
	if [ "$code" -ne 0 ]; then
		compose ps -a 2>/dev/null || compose ps || true
		compose logs --no-color --tail=40 || true
	fi
	compose down --volumes --timeout 5 >/dev/null 2>&1 || true
	exit "$code"
}
trap end EXIT

# until_ok WHAT COMMAND... repeats the command until it succeeds.
until_ok() {
	local what=$1
	shift
	until "$@"; do
		[ "$SECONDS" -lt "$deadline" ] || fail "not in time: $what"
		sleep 1
	done
	say "$what"
}

# inspect FORMAT of every container of the project, a line each.
inspect() {
	local ids
	mapfile -t ids < <(docker ps -aq --filter "label=com.docker.compose.project=$project" --filter label=com.docker.compose.oneoff=False)
	docker inspect --format "$1" "${ids[@]}"
}

# all_well CONTAINERS: that many run, and are healthy where there is a check.
all_well() {
	local now
	now=$(inspect '{{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{else}}unchecked{{end}}') || return 1
	[ "$(wc -l <<<"$now")" -eq "$1" ] && ! grep -qvE '^running (healthy|unchecked)$' <<<"$now"
}

penstock() { compose run --rm --no-deps -T route "$@"; }

# balanced: nothing open, nothing missing, and something there.
balanced() {
	books=$(penstock ledger --json --nats nats://nats:4222 2>/dev/null) || return 1
	grep -qE '"open": ?0\b' <<<"$books" && [ "$(number logged)" -gt 0 ] && [ "$(number logged)" = "$(number confirmed)" ]
}

# number KEY of the books: the first one is that of the total.
number() { grep -oE "\"$1\": ?[0-9]+" <<<"$books" | head -1 | grep -oE '[0-9]+$' || echo 0; }

delivered() { docker run --rm --network none -v "${project}_delivered:/d:ro" golang:1.26 sh -c 'cat /d/events*.ndjson*'; }

for image in golang:1.26 nats:2; do
	if ! docker image inspect "$image" >/dev/null 2>&1 && ! docker pull -q "$image" 2>/dev/null; then
		say "$image is not to be had: stand-ins are made"
		tests/compose/standin-images.sh
		break
	fi
done

# Stand-ins may be of older modules or of another Go.
if [ -n "$(docker image inspect --format '{{index .Config.Labels "penstock.standin"}}' golang:1.26 2>/dev/null)" ]; then
	say "with stand-in images"
	tests/compose/standin-images.sh >/dev/null
fi

compose build ingest >/dev/null
say "image is built: $(docker image inspect --format '{{.Size}} bytes, user {{.Config.User}}' penstock:local)"
compose up -d
until_ok "8 containers are up, the 6 stages healthy" all_well 8
until_ok "the books balance" balanced

lines=$(delivered | wc -l)
distinct=$(delivered | grep -oE '"eventID": ?"[^"]+"' | sort -u | wc -l)
say "events: $(number logged) logged, $(number confirmed) confirmed, $lines lines in the file, $distinct ids"
[ "$lines" -ge "$(number logged)" ] || fail "the file lacks events"

compose up -d --scale parse=2
until_ok "a second parse is healthy" all_well 9
penstock topology show --nats nats://nats:4222 >/dev/null || fail "topology show"

before=$SECONDS
compose stop --timeout 25
took=$((SECONDS - before))
[ "$took" -lt 20 ] || fail "the stop took $took s"
bad=$(inspect '{{.Name}} {{.State.ExitCode}} {{.State.OOMKilled}}' | grep -v '_nats_\|-nats-' | grep -v ' 0 false$' || true)
[ -z "$bad" ] || fail "did not end well: $bad"
say "stopped in $took s, exit code 0"
