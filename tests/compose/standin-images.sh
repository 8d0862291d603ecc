#!/usr/bin/env bash
# Builds images named golang:1.26 and nats:2 from what this machine has, so that
# compose.yaml and the Dockerfile can be tried, unchanged, where no image registry
# can be reached. An image of that name that is here already and was not made by
# this script is left alone.
#
# The stand-ins are not the public images: golang:1.26 is busybox, this machine's
# Go and the modules of go.sum, compiled; nats:2 is the nats-server of go.mod. They
# have the label penstock.standin.
#
# Needs: docker with a running engine, go, and busybox-static (fetched with
# apt-get download when it is not installed).
set -euo pipefail
cd "$(dirname "$0")/../.."
exec </dev/null

label=penstock.standin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# wanted IMAGE CONTENT tells whether the stand-in of CONTENT is still to be made.
wanted() {
	local have
	if ! have=$(docker image inspect --format "{{index .Config.Labels \"$label\"}}" "$1" 2>/dev/null); then
		echo "$1: is to be made"
	elif [ -z "$have" ]; then
		echo "$1: is here and is no stand-in: left alone"
		return 1
	elif [ "$have" = "$2" ]; then
		echo "$1: the stand-in is up to date"
		return 1
	else
		echo "$1: the stand-in is out of date"
	fi
}

static_busybox() {
	local b
	if b=$(type -P busybox) && "$b" --help 2>&1 | grep -q 'multi-call binary' && ! ldd "$b" >/dev/null 2>&1; then
		echo "$b"
		return
	fi
	(
		cd "$work"
		apt-get download busybox-static >&2 || { apt-get update >&2 && apt-get download busybox-static >&2; }
		dpkg-deb -x busybox-static_*.deb busybox
	)
	echo "$work/busybox/bin/busybox"
}

golang() {
	local root=$work/golang box applet
	box=$(static_busybox)
	mkdir -p "$root"/{bin,etc/ssl/certs,go,goproxy,root,usr/bin,usr/local,tmp}
	chmod 1777 "$root/tmp"
	echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
	echo 'root:x:0:' >"$root/etc/group"
	cp "$box" "$root/bin/busybox"
	for applet in $("$box" --list); do
		[ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
	done
	ln -s /bin/env "$root/usr/bin/env"
	cp -L "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$root/etc/ssl/certs/ca-certificates.crt"
	cp -RL "$(go env GOROOT)" "$root/usr/local/go"
	rm -rf "$root"/usr/local/go/{test,api,doc}

	# The modules, as a module proxy in a folder: a build in a container may have no
	# way out. go.sum is checked all the same.
	go mod download -json | sed -nE 's/^\t"(Info|GoMod|Zip)": "(.*)",?$/\2/p' >"$work/modules"
	(
		cd "$(go env GOMODCACHE)/cache/download"
		sed "s,^$PWD/,," "$work/modules"
		find . -name '*.mod' -o -name '*.info' # of versions that were weighed and not taken
	) | sed 's,^\./,,' | sort -u | tar -C "$(go env GOMODCACHE)/cache/download" -cf - -T - | tar -C "$root/goproxy" -xf -

	# What the modules compile to, so that a changed line does not cost minutes. The
	# flags are those of the image. It is kept for the next stand-in.
	local cache=${XDG_CACHE_HOME:-$HOME/.cache}/penstock-standin
	mkdir -p "$cache"
	GOCACHE=$cache sh deploy/build.sh /dev/null
	cp -a "$cache" "$root/gocache"

	tar -C "$root" -cf - . | docker import \
		--change "LABEL $label=$1" \
		--change 'ENV PATH=/go/bin:/usr/local/go/bin:/usr/bin:/bin' \
		--change 'ENV GOPATH=/go' \
		--change 'ENV GOCACHE=/gocache' \
		--change 'ENV GOTOOLCHAIN=local' \
		--change 'ENV GOPROXY=file:///goproxy' \
		--change 'WORKDIR /go' \
		--change 'CMD ["sh"]' \
		- golang:1.26
}

nats() {
	mkdir "$work/nats"
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$work/nats/nats-server" github.com/nats-io/nats-server/v2
	printf '%s\n' 'FROM scratch' 'COPY nats-server /nats-server' 'EXPOSE 4222 8222 6222' \
		"LABEL $label=$1" 'ENTRYPOINT ["/nats-server"]' >"$work/nats/Dockerfile"
	docker build -q -t nats:2 "$work/nats"
}

# A stand-in is what it was made from: this script, Go, and the modules.
content=$(cat tests/compose/standin-images.sh go.sum <(go version) | sha256sum | cut -c1-16)
if wanted golang:1.26 "$content"; then golang "$content"; fi
if wanted nats:2 "$content"; then nats "$content"; fi
docker image ls --filter "label=$label"
