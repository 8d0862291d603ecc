#!/usr/bin/env bash
# Unpacks rsyslog with its driver for TLS beside BIN_DIR and puts rsyslogd into it, a
# wrapper that finds libraries and modules there: .ci/receivers/rsyslog.sh BIN_DIR.
# Nothing is installed or started: the distribution's own daemon would run, be confined,
# and conflict with syslog-ng.
set -euo pipefail
bin=$(mkdir -p "$1" && cd "$1" && pwd)
root=$(dirname "$bin")/rsyslog
if [ -x "$bin/rsyslogd" ] && "$bin/rsyslogd" -v >/dev/null 2>&1; then
	exit 0
fi
"$(dirname "$0")/unpack" "$root" rsyslog rsyslog-gnutls
modules=$(dirname "$(find "$root" -name lmnsd_gtls.so)")
cat >"$bin/rsyslogd.new" <<END
#!/bin/sh
LD_LIBRARY_PATH="$(dirname "$modules")" exec "$root/usr/sbin/rsyslogd" -M "$modules" "\$@"
END
chmod +x "$bin/rsyslogd.new"
mv "$bin/rsyslogd.new" "$bin/rsyslogd"
"$bin/rsyslogd" -v >/dev/null
