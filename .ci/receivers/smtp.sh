#!/usr/bin/env bash
# Installs smtp-receiver into BIN_DIR: a mail server on loopback with STARTTLS and AUTH
# that keeps each mail as a file, made of aiosmtpd.
set -euo pipefail
bin=$1
here=$(cd "$(dirname "$0")" && pwd)
if ! /usr/bin/python3 -c 'import aiosmtpd' 2>/dev/null; then
	root=()
	[ "$(id -u)" -eq 0 ] || root=(sudo -n)
	"${root[@]}" apt-get update -qq
	DEBIAN_FRONTEND=noninteractive "${root[@]}" apt-get install -qq -y --no-install-recommends python3-aiosmtpd >/dev/null
fi
install -D -m 0755 "$here/smtp/receiver.py" "$bin/smtp-receiver"
