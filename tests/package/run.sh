#!/usr/bin/env bash
# Tries the Debian package and the systemd units: builds it, lets lintian and
# systemd-analyze judge it, installs it into a fresh Debian, runs penstock there as the
# user of the service, updates, removes and purges it, and looks for what is left behind.
#
#   BINARY  a penstock that is built already; without, deploy/build.sh builds it
#
# Needs Go, git, and root on a Debian or a descendant of it; exit code 3 without. Installs by
# apt-get what it lacks: debootstrap, lintian, systemd and iproute2. The fresh Debian is
# kept in ~/.cache/penstock-debian (or below XDG_CACHE_HOME) for the next time.
set -euo pipefail
[ -z "${BINARY:-}" ] || BINARY=$(realpath "$BINARY")
cd "$(dirname "$0")/../.."
exec </dev/null
export PATH=$PATH:/usr/sbin:/sbin

say() { printf '%4ds  %s\n' "$SECONDS" "$*"; }
fail() {
	say "FAILED: $*"
	exit 1
}
skip() {
	echo "SKIPPED: $*"
	exit 3
}
[ "$(id -u)" -eq 0 ] || skip "needs root, for a Debian of its own"

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
lacking() {
	command -v debootstrap >/dev/null || echo debootstrap
	command -v lintian >/dev/null || echo lintian
	command -v systemd-analyze >/dev/null || echo systemd
	command -v ip >/dev/null || echo iproute2
	[ -s "$keyring" ] || echo debian-archive-keyring
}
for tool in go git dpkg-deb apt-get unshare runuser; do
	command -v "$tool" >/dev/null || skip "$tool is absent"
done
mapfile -t wanted < <(lacking)
if [ ${#wanted[@]} -gt 0 ]; then
	say "install ${wanted[*]}"
	apt-get update -qq >/dev/null 2>&1 || true # what is known of packages may do
	DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${wanted[@]}" >/dev/null 2>&1 ||
		skip "apt-get cannot install ${wanted[*]}"
fi

work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT

package=$(deploy/debian/build.sh "$work" | tail -1)
say "built $(basename "$package"), $(($(stat -c %s "$package") / 1024 / 1024)) MiB"

lintian --allow-root --fail-on error,warning --tag-display-limit 0 "$package" || fail "lintian has something to say"
say "lintian has nothing to say"

# The units name /usr/bin/penstock, which this machine need not have.
mkdir "$work/units" "$work/unpacked"
dpkg-deb -x "$package" "$work/unpacked"
for unit in penstock.service penstock@.service; do
	sed "s|/usr/bin/penstock|$work/unpacked/usr/bin/penstock|" "deploy/systemd/$unit" >"$work/units/$unit"
done
said=$({ systemd-analyze verify --man=no "$work/units/penstock.service" "$work/units/penstock@parse.service" 2>&1 || true; } | sed -n /penstock/p)
[ -z "$said" ] || fail "systemd-analyze verify: $said"
for unit in penstock.service penstock@.service; do # 0 is closed, 100 is open
	systemd-analyze security --no-pager --offline=true --threshold=15 "deploy/systemd/$unit" >"$work/security" 2>&1 ||
		fail "$unit is more open than it was: $(tail -1 "$work/security")"
	say "$unit: $(tail -1 "$work/security" | sed 's/[^ -~]//g')"
done

cache=${XDG_CACHE_HOME:-$HOME/.cache}/penstock-debian
with=adduser,ca-certificates # what the package depends on
fresh=$cache/bookworm-$(dpkg --print-architecture)-$with.tar
if [ ! -s "$fresh" ]; then
	mirror=
	if grep -q '^ID=debian' /etc/os-release; then # the mirror of this machine, as it may reach no other
		mirror=$(find /etc/apt -name '*.list' -o -name '*.sources' | LC_ALL=C sort |
			xargs sed -n 's/^URIs: *\([^ ]*\).*/\1/p; s/^deb \(\[[^]]*\] \)\?\([^ ]*\).*/\2/p' | sed -n '/\/debian\/\?$/{p;q}')
	fi
	mirror=${mirror:-http://deb.debian.org/debian}
	/usr/lib/apt/apt-helper download-file "$mirror/dists/bookworm/Release" "$work/release" >"$work/log" 2>&1 ||
		skip "no Debian from $mirror: $(tail -1 "$work/log")"
	# In namespaces of its own: what it mounts and starts ends with it, however it ends.
	unshare --mount --pid --fork --kill-child debootstrap --variant=minbase --include="$with" --keyring="$keyring" \
		bookworm "$work/fresh" "$mirror" >"$work/log" 2>&1 ||
		fail "debootstrap: $(tail -3 "$work/log")"
	rm -f "$work"/fresh/var/cache/apt/archives/*.deb "$work"/fresh/var/lib/apt/lists/*_*
	mkdir -p "$cache"
	tar -C "$work/fresh" -cf "$work/fresh.tar" .
	mv "$work/fresh.tar" "$fresh.new"
	mv "$fresh.new" "$fresh"
	mv "$work/fresh" "$work/host"
	say "debootstrap made a Debian, from $mirror"
else
	mkdir "$work/host"
	tar -C "$work/host" -xf "$fresh"
fi
host=$work/host
cp "$package" "$host/tmp/penstock.deb"
say "a fresh Debian is there"

# in COMMAND... runs it there, with a network of its own.
in_host() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C unshare --net --pid --fork --kill-child chroot "$host" "$@"; }
as_service() { in_host runuser -u penstock -- "$@"; }
files() { (cd "$host" && find . -path ./var/lib/dpkg -prune -o -path ./var/log -prune -o -path ./run -prune -o -path ./tmp -prune -o -path ./var/cache -prune -o \( -name passwd- -o -name shadow- -o -name group- -o -name gshadow- \) -o -print | LC_ALL=C sort); }
people() { cat "$host/etc/passwd" "$host/etc/group"; }

files >"$work/before"
people >"$work/people"
in_host dpkg -i /tmp/penstock.deb >"$work/log" 2>&1 || fail "install: $(cat "$work/log")"
grep -q 'systemctl enable --now penstock' "$work/log" || fail "nobody is told what to do next: $(cat "$work/log")"
[ ! -e "$host/etc/systemd/system/multi-user.target.wants/penstock.service" ] || fail "it starts by itself"
in_host getent passwd penstock | grep -q ':/var/lib/penstock:/usr/sbin/nologin$' || fail "the user is not as it should be"
[ "$(stat -c '%U %a' "$host/etc/penstock")" = "root 750" ] || fail "/etc/penstock: $(stat -c '%U %a' "$host/etc/penstock")"
[ "$(in_host stat -c '%U:%G %a' /etc/penstock/penstock.yaml)" = "root:penstock 640" ] || fail "the configuration is not closed"
say "installed"

as_service penstock config check /etc/penstock/penstock.yaml || fail "the configuration of the package has a mistake"
if as_service penstock run --config /etc/penstock/penstock.yaml 2>"$work/log"; then
	fail "it runs without a source"
fi
grep -q 'has no sources' "$work/log" || fail "without a source it says: $(cat "$work/log")"
in_host bash -n /usr/share/bash-completion/completions/penstock || fail "the completion is no bash"
# The network of this Debian is its own: not even its loopback is up.
# shellcheck disable=SC2016 # $0 is for that shell
env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/var/lib/penstock LC_ALL=C unshare --net --pid --fork --kill-child \
	sh -c 'ip link set lo up && exec chroot "$0" runuser -u penstock -- sh -c "cd /var/lib/penstock && TMPDIR=/var/lib/penstock penstock demo --once"' "$host" >"$work/demo" 2>"$work/log" ||
	fail "the demo: $(tail -5 "$work/demo" "$work/log")"
say "the demo ran as the user of the service: $(tail -1 "$work/demo")"

echo '# mine' >>"$host/etc/penstock/penstock.yaml"
touch "$host/var/lib/penstock/kept"
in_host dpkg -i /tmp/penstock.deb >"$work/log" 2>&1 || fail "update: $(cat "$work/log")"
grep -q '^# mine' "$host/etc/penstock/penstock.yaml" || fail "an update loses the configuration"
in_host dpkg -r penstock >"$work/log" 2>&1 || fail "remove: $(cat "$work/log")"
[ ! -e "$host/usr/bin/penstock" ] || fail "removing leaves the program"
[ -e "$host/etc/penstock/penstock.yaml" ] || fail "removing takes the configuration"
[ -e "$host/var/lib/penstock/kept" ] || fail "removing takes what is stored"
in_host dpkg -P penstock >"$work/log" 2>&1 || fail "purge: $(cat "$work/log")"
files >"$work/after"
diff "$work/before" "$work/after" || fail "this is left behind, or gone"
people | diff "$work/people" - || fail "the user is left behind"
say "updated, removed and purged: nothing is left"
