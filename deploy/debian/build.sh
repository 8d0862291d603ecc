#!/usr/bin/env bash
# Builds a Debian package: deploy/debian/build.sh [FOLDER]. Prints where it is.
#
#   VERSION  default: 0.1.0, with the date and the commit of the checkout behind it
#   ARCH     amd64 or arm64; default: that of this machine
#   BINARY   a penstock that is built already, for Linux on ARCH
#
# Needs Go, git and dpkg-deb. Two builds of one commit are the same, byte by byte.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(realpath -m "${1:-.}")
target=${BINARY:+$(realpath "$BINARY")}
cd "$here/../.."

arch=${ARCH:-$(dpkg --print-architecture)}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
commit=$(git rev-parse HEAD)
version=${VERSION:-0.1.0~git$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M).${commit:0:8}}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root

# The program; what makes its manual page has to run here, so it is built for here, too.
if [ -z "$target" ]; then
	target=$work/penstock
	GOOS=linux GOARCH=$arch VERSION=$version COMMIT=$commit deploy/build.sh "$target"
fi
native=$target
if [ "$arch" != "$(dpkg --print-architecture)" ]; then
	native=$work/native
	go build -buildvcs=false -o "$native" ./services/penstock
fi

install -D -m 0755 "$target" "$root/usr/bin/penstock"
install -D -m 0644 -t "$root/lib/systemd/system" deploy/systemd/penstock.service deploy/systemd/penstock@.service
install -D -m 0644 deploy/debian/penstock.yaml "$root/etc/penstock/penstock.yaml"
install -D -m 0644 deploy/debian/default "$root/etc/default/penstock"

"$native" completion bash >"$work/bash"
"$native" completion zsh >"$work/zsh"
"$native" completion fish >"$work/fish"
install -D -m 0644 "$work/bash" "$root/usr/share/bash-completion/completions/penstock"
install -D -m 0644 "$work/zsh" "$root/usr/share/zsh/vendor-completions/_penstock"
install -D -m 0644 "$work/fish" "$root/usr/share/fish/vendor_completions.d/penstock.fish"

go run ./deploy/debian/man "$native" >"$work/penstock.1"
install -d "$root/usr/share/man/man1"
gzip -9n <"$work/penstock.1" >"$root/usr/share/man/man1/penstock.1.gz"

doc=$root/usr/share/doc/penstock
install -D -m 0644 deploy/debian/copyright "$doc/copyright"
install -D -m 0644 -t "$doc/examples" deploy/penstock.example.yaml deploy/nats.conf deploy/prometheus/penstock.rules.yaml deploy/grafana/penstock.json
gzip -9n <CHANGELOG.md >"$doc/CHANGELOG.md.gz"
printf 'penstock (%s) unstable; urgency=medium\n\n  * What changed is in CHANGELOG.md.gz.\n\n -- %s  %s\n' "$version" \
	"$(sed -n 's/^Maintainer: //p' deploy/debian/control)" "$(date -u -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$doc/changelog.gz"
go run ./deploy/sbom "$target" "$work/sbom" # what it is made of, and under which licences
gzip -9n <"$work/sbom/sbom.cdx.json" >"$doc/sbom.cdx.json.gz"
gzip -9n <"$work/sbom/LICENSES.txt" >"$doc/LICENSES.txt.gz"
install -D -m 0644 deploy/debian/lintian-overrides "$root/usr/share/lintian/overrides/penstock"

install -d "$root/DEBIAN"
size=$(du -sk --apparent-size "$root" | cut -f1)
sed -e "s/@VERSION@/$version/" -e "s/@ARCH@/$arch/" -e "s/@SIZE@/$size/" deploy/debian/control >"$root/DEBIAN/control"
install -m 0644 deploy/debian/conffiles "$root/DEBIAN/conffiles"
install -m 0755 -t "$root/DEBIAN" deploy/debian/postinst deploy/debian/prerm deploy/debian/postrm
(cd "$root" && find . -type f ! -path './DEBIAN/*' -printf '%P\n' | LC_ALL=C sort | xargs md5sum) >"$root/DEBIAN/md5sums"
chmod -R u+rwX,go+rX,go-w "$root"
find "$root" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +

mkdir -p "$out"
package=$out/penstock_${version}_$arch.deb
dpkg-deb --root-owner-group -Zxz -z1 --build "$root" "$package" >/dev/null
echo "$package"
