#!/usr/bin/env bash
# Unpacks syslog-ng beside BIN_DIR and puts syslog-ng into it, a wrapper that finds
# libraries and modules there: .ci/receivers/syslog-ng.sh BIN_DIR. Nothing is installed:
# it would conflict with rsyslog.
set -euo pipefail
bin=$(mkdir -p "$1" && cd "$1" && pwd)
root=$(dirname "$bin")/syslog-ng
if [ -x "$bin/syslog-ng" ] && "$bin/syslog-ng" --version >/dev/null 2>&1; then
	exit 0
fi
"$(dirname "$0")/unpack" "$root" syslog-ng-core
modules=$(dirname "$(find "$root" -name libafsocket.so)")
libraries=$(find "$root" -name '*.so*' -not -path "$modules/*" -printf '%h\n' | sort -u | paste -sd:)
cat >"$bin/syslog-ng.new" <<END
#!/bin/sh
LD_LIBRARY_PATH="$libraries" exec "$root/usr/sbin/syslog-ng" --module-path="$modules" "\$@"
END
chmod +x "$bin/syslog-ng.new"
mv "$bin/syslog-ng.new" "$bin/syslog-ng"
"$bin/syslog-ng" --version >/dev/null
