#!/usr/bin/env bash
# Measures create, join and quickstart beside their peers, built once from their
# modules into the cache. Arguments are passed on:
#   bench-create.sh [-rounds 5] [-only plugin,cluster,join,quickstart]
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$root"
tools=${XDG_CACHE_HOME:-$HOME/.cache}/edge/tools
terraform=$(scripts/terraform.sh)

KWOK=v0.8.0
PEER=terraform-provider-time
PEER_VERSION=v0.12.1
tool() { # tool <package> <version>
  local file=$tools/${1##*/}-$2
  [ -x "$file" ] || nice scripts/install-tool.sh "$1" "$2" "$file" >&2
  echo "$file"
}
kwokctl=$(tool sigs.k8s.io/kwok/cmd/kwokctl $KWOK)
kwok=$(tool sigs.k8s.io/kwok/cmd/kwok $KWOK)
peer=$(tool github.com/hashicorp/$PEER $PEER_VERSION)
# As providers are released, without symbols; ours is built that way too.
if [ ! -x "$peer-stripped" ] && command -v strip >/dev/null; then
  strip -o "$peer-stripped.tmp" "$peer"
  mv "$peer-stripped.tmp" "$peer-stripped"
fi
[ ! -x "$peer-stripped" ] || peer=$peer-stripped

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
CGO_ENABLED=0 go build -ldflags "-s -w" -o "$work/create" ./internal/bench/cmd/create
"$work/create" -edge bin/edge -plugin bin/terraform-provider-edge -terraform "$terraform" \
  -kwokctl "$kwokctl" -kwok "$kwok" -peer-plugin "$peer" -peer-plugin-name "$PEER ${PEER_VERSION#v}" "$@"
