#!/usr/bin/env bash
# Installs a Go program of an exact version under its own name:
#   install-tool.sh <package> <version> <file>
set -euo pipefail
package=$1 version=$2 file=$3
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
echo "building ${package##*/} $version (once; kept in ${file%/*})"
GOFLAGS=-mod=mod GOBIN=$tmp go install "$package@$version"
mkdir -p "${file%/*}"
mv "$tmp/${package##*/}" "$file"
