#!/usr/bin/env bash
# Tries compose.yaml, unchanged, with the demo's S3 and SQS endpoint, and then the
# overrides in deploy:
#
#   tests/compose/run.sh [single] [cluster] [tls]      all three, unless some are named
#
#   single    from nothing to the first event; what containers may do and see; the login;
#             every stage three times, each restarted in turn, NATS too, all while events
#             flow; in the end each event that was fed is there, once, and the books balance
#   cluster   three NATS servers, one killed while events flow, and begun again
#   tls       who has no certificate, or speaks without TLS, is refused
#
# Leaves nothing behind but images. Where no image registry can be reached, stand-ins of
# golang:1.26 and nats:2 are made, see tests/compose/standin-images.sh.
#
# COMPOSE_TEST_NO_BUILD=1 takes the image penstock:local as it is.
#
# Needs: docker with a running engine, docker compose or docker-compose, curl.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec </dev/null

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(single cluster tls)
stages=(ingest fetch parse dedupe route deliver)
limit=${COMPOSE_TEST_SECONDS:-900}
password='' books=''

say() { printf '%4ds  %s\n' "$SECONDS" "$*"; }
fail() {
	say "FAILED: $*"
	exit 1
}

if docker compose version >/dev/null 2>&1; then
	tool=(docker compose)
elif command -v docker-compose >/dev/null; then
	tool=(docker-compose)
else
	fail "neither docker compose nor docker-compose is here"
fi

# project NAME FILE... is what the functions below talk about.
project() {
	project=penstock-$1-$$
	files=()
	shift
	for f in "$@"; do files+=(-f "$f"); done
	# A port of this machine that nobody else has.
	until CONSOLE_PORT=$((20000 + RANDOM % 10000)) && ! (exec 3<>"/dev/tcp/127.0.0.1/$CONSOLE_PORT") 2>/dev/null; do :; done
	export CONSOLE_PORT
}
compose() { "${tool[@]}" -p "$project" "${files[@]}" --env-file deploy/demo.env "$@"; }

end() {
	local code=$?
	if [ "$code" -ne 0 ] && [ -n "${project:-}" ]; then
		compose ps || true
		compose logs --no-color --tail=25 || true
	fi
	[ -z "${project:-}" ] || down || true
	exit "$code"
}
trap end EXIT
down() {
	docker rm -f "$project-look" >/dev/null 2>&1 || true
	compose down --volumes --timeout 5 >/dev/null 2>&1
}

# until_ok WHAT COMMAND... repeats the command until it succeeds.
until_ok() {
	local what=$1 deadline=$((SECONDS + limit))
	shift
	until "$@"; do
		[ "$SECONDS" -lt "$deadline" ] || fail "not in time: $what"
		sleep 0.5
	done
}

quiet() { "$@" >/dev/null 2>&1; }

# ids SERVICE: its containers.
ids() {
	docker ps -aq --filter "label=com.docker.compose.project=$project" --filter label=com.docker.compose.oneoff=False ${1:+--filter "label=com.docker.compose.service=$1"}
}

# inspect FORMAT of every container of the project, a line each.
inspect() {
	local all
	mapfile -t all < <(ids)
	docker inspect --format "$1" "${all[@]}"
}

service='{{index .Config.Labels "com.docker.compose.service"}}'

# all_well CONTAINERS: that many run, healthy where there is a check, and no other but
# those that do their work and end.
all_well() {
	local now
	now=$(inspect "$service {{.State.Status}}{{if .State.Health}} {{.State.Health.Status}}{{end}}" | grep -vE '^(secrets|topology|routes|certificates) exited') || return 1
	[ "$(wc -l <<<"$now")" -eq "$1" ] && ! grep -qvE ' running( healthy)?$' <<<"$now"
}

# penstock ARGS: a command where the console runs.
penstock() { docker exec "$(ids console)" /penstock "$@"; }

# look SCRIPT: in a container beside the others, which sees what was delivered.
look() { docker exec "$project-look" sh -c "$1"; }
begin_look() {
	docker run -d --name "$project-look" --network "${project}_default" -v "${project}_delivered:/delivered:ro" golang:1.26 sleep 100000 >/dev/null
}
arrived() { look 'cat /delivered/*/events* 2>/dev/null | wc -l'; }
more_than() { [ "$(arrived)" -gt "$1" ]; }
flows() { # FOR-HOW-MANY more events
	until_ok "$1 more events arrive" more_than $(($(arrived) + $1))
}

# up: from nothing to the first event.
up() {
	local before=$SECONDS
	compose up -d >/dev/null 2>&1 || fail "up: $(compose up -d 2>&1 | tail -5)"
	begin_look
	until_ok "the first event" more_than 0
	say "from nothing to the first delivered event: $((SECONDS - before)) s"
}

# number KEY of the books: the first one is that of the total.
number() { grep -oE "\"$1\": ?[0-9]+" <<<"$books" | head -1 | grep -oE '[0-9]+$' || echo 0; }

# balanced: nothing open, and what was logged is confirmed, as many as were fed.
balanced() {
	books=$(penstock ledger --json 2>/dev/null) || return 1
	[ "$(number open)" = 0 ] && [ "$(number logged)" = "$1" ] && [ "$(number confirmed)" = "$1" ]
}

fed() {
	look "wget -qO /tmp/fed.json --header 'Authorization: AWS4-HMAC-SHA256 Credential=demo/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0' http://demo:9000/penstock-demo-fed/fed.json 2>/dev/null"
}

# settle: ends the feed, waits for the rest, and compares each event with what was fed.
settle() {
	! fed || fail "the feed ended before it was told to"
	docker kill -s HUP "$(ids demo)" >/dev/null
	until_ok "the feed says what it was" fed
	local events
	events=$(look "tr , '\n' </tmp/fed.json | grep -o '\"events\":[0-9]*' | grep -o '[0-9]*\$'")
	until_ok "the books balance" balanced "$events"
	look '
		cat /delivered/*/events* >/tmp/lines
		grep -oE "^\{\"id\":\"[^\"]+" /tmp/lines | sort >/tmp/ids
		sort -u /tmp/ids >/tmp/once
		grep -oE "\"eventID\": ?\"[^\"]+" /tmp/lines | grep -oE "[^\"]+\$" | sort -u >/tmp/trail
		tr , "\n" </tmp/fed.json | grep -oE "[0-9a-f]{8}-[0-9a-f-]{27}" | sort -u >/tmp/trail-fed
	'
	local lines once missing
	lines=$(look 'wc -l </tmp/lines') once=$(look 'wc -l </tmp/once')
	missing=$(look 'sort /tmp/trail /tmp/trail-fed /tmp/trail | uniq -u | wc -l')
	[ "$(look 'wc -l </tmp/trail-fed')" -gt 1000 ] || fail "the feed names no ids"
	say "events: $events fed, $(number logged) logged, $(number confirmed) confirmed, $lines lines in the files, $once different, $missing of the trail missing"
	[ "$once" -eq "$events" ] || fail "lost, or not fed: $((events - once)) events"
	[ "$missing" -eq 0 ] || fail "$missing events of the trail are lost"
	[ "$((lines - once))" -le "$1" ] || fail "$((lines - once)) events are there twice"
}

# confined: no container has more than it needs.
confined() {
	local name user wrong
	wrong=$(inspect "$service user={{.Config.User}} readonly={{.HostConfig.ReadonlyRootfs}} drop={{.HostConfig.CapDrop}} add={{.HostConfig.CapAdd}} privileged={{.HostConfig.Privileged}} {{.HostConfig.SecurityOpt}}" |
		grep -vE 'user=[1-9][0-9]*:[0-9]+ readonly=true drop=\[ALL\] add=\[\] privileged=false \[no-new-privileges:true\]$' || true)
	[ -z "$wrong" ] || fail "not confined: $wrong"
	# As the kernel has it, seen from inside.
	for name in "${stages[@]}" console nats; do
		local c status
		c=$(ids "$name" | head -1)
		status=$(docker run --rm --network none --pid "container:$c" golang:1.26 cat /proc/1/status)
		for want in '^CapEff:\s*0{16}$' '^CapBnd:\s*0{16}$' '^NoNewPrivs:\s*1$' '^Uid:(\s*65532){4}$'; do
			grep -qE "$want" <<<"$status" || fail "$name: /proc/1/status lacks $want"
		done
		[ "$name" != nats ] || continue # it has no program that writes
		for folder in / $([ "$name" != ingest ] || echo /etc /secrets/admin /run/penstock); do
			if docker exec "$c" /penstock topology routes --dir "$folder/new" --node a --node b --node c >/dev/null 2>&1; then
				fail "$name can write below $folder"
			fi
		done
	done
	# It is for the folder that this is refused.
	docker exec "$(ids console)" /penstock topology routes --dir /tmp/new --node a --node b --node c >/dev/null || fail "the console cannot write to /tmp"
	# Each sees its own password and no other.
	for name in "${stages[@]}" topology console nats; do
		user=$name
		[ "$name" != topology ] || user="admin" # quoted: it is no command
		[ "$name" != console ] || user=operate
		wrong=$(docker inspect --format '{{range .Mounts}}{{println .Name .RW}}{{end}}' "$(ids "$name" | head -1)" | grep "_secrets-" || true)
		[ "$wrong" = "${project}_secrets-$user false" ] || fail "$name has the secrets $wrong"
	done
	[ "$(for name in "${stages[@]}" console; do docker exec "$(ids "$name" | head -1)" /penstock parse --format lines --json /run/penstock/password | sha256sum; done | sort -u | wc -l)" = 7 ] || fail "two services share a password"
	for other in operate admin parse; do
		! docker exec "$(ids fetch | head -1)" /penstock parse --format lines "/secrets/$other/password" >/dev/null 2>&1 || fail "fetch reads the password of $other"
	done
	! docker exec "$(ids fetch | head -1)" /penstock topology apply --wait 5s >/dev/null 2>&1 || fail "fetch may manage the streams"
	say "each container: no root, no capabilities, nothing to write but its volumes, its own password alone"
}

# guarded: the console is for this machine, and asks who one is.
guarded() {
	local url=http://127.0.0.1:$CONSOLE_PORT jar token code
	jar=$(mktemp)
	[ "$(docker port "$(ids console)")" = "9180/tcp -> 127.0.0.1:$CONSOLE_PORT" ] || fail "the console is published at $(docker port "$(ids console)")"
	! inspect "$service {{range \$p, \$b := .HostConfig.PortBindings}}{{range \$b}}{{.HostIp}}{{end}}{{end}}" | grep -E ' .' | grep -v ' 127\.0\.0\.1$' || fail "a port is open to others"
	until_ok "the console answers" curl -sf -o /dev/null "$url/login"
	for path in /pipeline /events /quarantine /settings; do
		code=$(curl -s -o /dev/null -w '%{http_code} %{redirect_url}' "$url$path")
		[[ $code == "303 $url/login"* ]] || fail "without a login $path answers $code"
	done
	password=$(penstock console password | sed -n 's/^password  *//p')
	login() { # PASSWORD
		token=$(curl -s -c "$jar" -b "$jar" "$url/login" | grep -oE 'name="csrf" value="[^"]+' | head -1 | cut -d'"' -f4)
		curl -s -o /dev/null -w '%{http_code}' -c "$jar" -b "$jar" -H "Origin: $url" --data-urlencode "csrf=$token" --data-urlencode name=operator --data-urlencode "password=$1" "$url/login"
	}
	code=$(login wrong-password)
	[ "$code" = 401 ] || fail "a wrong password: $code"
	code=$(login "$password")
	[ "$code" = 303 ] || fail "the password: $code"
	code=$(curl -s -o /dev/null -w '%{http_code}' -b "$jar" "$url/quarantine")
	rm -f "$jar"
	[ "$code" = 200 ] || fail "after the login: $code"
	say "the console: on 127.0.0.1, with a login"
}

single() {
	project single compose.yaml
	export DEMO_MORE=1000000 DEMO_PAUSE=500ms
	up
	confined
	guarded
	flows 100

	# docker-compose 1 starts what it depends on anew each time, unless it is told not to.
	# shellcheck disable=SC2046 # a word for each of them
	compose up -d --no-deps --no-recreate $(printf -- '--scale %s=3 ' "${stages[@]}") "${stages[@]}" >/dev/null 2>&1
	until_ok "three of each stage are healthy" all_well 21
	flows 500
	say "three of each stage, all healthy: $(arrived) events so far, and they flow"

	local before=$SECONDS name c
	for name in "${stages[@]}" nats console; do
		for c in $(ids "$name"); do
			docker restart -t 30 "$c" >/dev/null
		done
		flows 100
	done
	say "each container restarted, one after another, NATS among them, in $((SECONDS - before)) s: $(arrived) events so far, and they flow"
	settle "${COMPOSE_TEST_TWICE:-0}"

	before=$SECONDS
	compose stop --timeout 25 >/dev/null 2>&1
	[ $((SECONDS - before)) -lt 25 ] || fail "the stop took $((SECONDS - before)) s"
	local bad
	bad=$(inspect "$service {{.State.ExitCode}} {{.State.OOMKilled}}" | grep -v '^nats' | grep -v ' 0 false$' || true)
	[ -z "$bad" ] || fail "did not end well: $bad"
	say "stopped in $((SECONDS - before)) s, exit code 0"
	down
}

cluster() {
	project cluster compose.yaml deploy/compose.cluster.yaml
	export DEMO_MORE=1000000 DEMO_PAUSE=500ms
	up
	until_ok "the streams are on three servers" quiet compose run --rm --no-deps -T topology topology diff --config /etc/penstock/penstock.yaml
	flows 500
	docker kill "$(ids nats-2)" >/dev/null
	flows 2000
	say "one of three servers is killed: $(arrived) events so far, and they flow"
	docker start "$(ids nats-2)" >/dev/null
	until_ok "the server is back" quiet penstock health --url http://nats-2:8222/healthz
	flows 500
	settle "${COMPOSE_TEST_TWICE:-0}"
	down
}

# pong ADDRESS JSON: what a client without TLS is answered, who says what JSON has.
pong() {
	(
		exec 3<>"/dev/tcp/$1/4222" || exit 0
		printf 'CONNECT %s\r\nPING\r\n' "$2" >&3
		timeout 5 cat <&3 | grep -ac '^PONG'
	) || true
}

tls() {
	project tls compose.yaml deploy/compose.tls.yaml
	export DEMO_MORE=1000000 DEMO_PAUSE=500ms
	up
	flows 500
	local address secret
	address=$(docker inspect --format "{{(index .NetworkSettings.Networks \"${project}_bus\").IPAddress}}" "$(ids nats)")
	secret=$(docker run --rm --network none -v "${project}_secrets-operate:/s:ro" golang:1.26 cat /s/password)
	[ "$(pong "$address" "{\"user\":\"operate\",\"pass\":\"$secret\",\"verbose\":false}")" = 0 ] || fail "NATS answers without TLS"
	# The same command, with the same password: once with all that it needs, then without.
	until_ok "with a certificate it is let in" quiet penstock topology show
	for without in PENSTOCK_BUS_CERT_FILE,PENSTOCK_BUS_KEY_FILE PENSTOCK_BUS_CA_FILE; do
		local unset=()
		for name in ${without//,/ }; do unset+=(-e "$name="); done
		! docker exec "${unset[@]}" "$(ids console)" /penstock topology show >/dev/null 2>&1 || fail "without $without: not refused"
	done
	say "NATS takes nobody without TLS, certificate and password"
	settle "${COMPOSE_TEST_TWICE:-0}"
	down
}

for image in golang:1.26 nats:2; do
	if ! docker image inspect "$image" >/dev/null 2>&1 && ! docker pull -q "$image" 2>/dev/null; then
		say "$image is not to be had: stand-ins are made"
		tests/compose/standin-images.sh
		break
	fi
done
# Stand-ins may be of older modules or of another Go.
if [ -z "${COMPOSE_TEST_NO_BUILD:-}" ] && [ -n "$(docker image inspect --format '{{index .Config.Labels "penstock.standin"}}' golang:1.26 2>/dev/null)" ]; then
	tests/compose/standin-images.sh >/dev/null
	say "with stand-in images"
fi
export PENSTOCK_IMAGE=${PENSTOCK_IMAGE:-penstock:local}
if [ -z "${COMPOSE_TEST_NO_BUILD:-}" ]; then
	project image compose.yaml
	compose build secrets >/dev/null
	project=''
fi
say "the image: $(docker image inspect --format '{{.Size}} bytes, user {{.Config.User}}' "$PENSTOCK_IMAGE")"
for part in "${parts[@]}"; do
	say "--- $part"
	"$part"
done
say "done"
