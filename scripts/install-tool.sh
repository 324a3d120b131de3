#!/usr/bin/env bash
# Installs a Go program of an exact version under its own name:
#   install-tool.sh <package> <version> <file> [module [replaces]]
# With its module named it is built from a module that requires just that. Some
# programs need this: go install refuses a module that replaces others, and asks
# the proxy for lists of versions that not every proxy has. With "replaces" it is
# built from a copy of its own module instead: what the module replaces is replaced.
set -euo pipefail
package=$1 version=$2 file=$3 module=${4:-} replaces=${5:-}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
echo "building ${package##*/} $version (once; kept in ${file%/*})"
if [ "$replaces" = replaces ]; then
  source=$(cd "$tmp" && GOFLAGS=-mod=mod go mod download -json "$module@$version" | sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p')
  cp -r "$source" "$tmp/source"
  chmod -R u+w "$tmp/source"
  (cd "$tmp/source" && CGO_ENABLED=0 go build -mod=mod -o "$tmp/${package##*/}" "$package")
elif [ -n "$module" ]; then
  printf 'module tool\n\ngo 1.26.0\n\nrequire %s %s\n' "$module" "$version" >"$tmp/go.mod"
  (cd "$tmp" && CGO_ENABLED=0 go build -mod=mod -o "$tmp/${package##*/}" "$package")
else
  GOFLAGS=-mod=mod GOBIN=$tmp go install "$package@$version"
fi
mkdir -p "${file%/*}"
mv "$tmp/${package##*/}" "$file"
