#!/usr/bin/env bash
# Measures the hub beside its peers, built once from their modules into the cache.
# Needs bin/edge, the components in the cache, and for all but the memory root,
# namespaces and TUN. Takes about twenty-five minutes. Arguments are passed on:
#   bench-autonomy.sh [-rounds 3] [-reboots 5] [-window 10m] [-only memory,traffic,reboot,day]
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$root"
tools=${XDG_CACHE_HOME:-$HOME/.cache}/edge/tools

OPENYURT=v1.5.0
yurthub=$tools/yurthub-$OPENYURT
only=
for ((i = 1; i <= $#; i++)); do
  case ${!i} in
    -only | --only) j=$((i + 1)) only=${!j-} ;;
    -only=* | --only=*) only=${!i#*=} ;;
  esac
done
case ,$only, in
  ,, | *,memory,*) ;;
  *) yurthub= ;; # the memory's peer
esac
[ -z "$yurthub" ] || [ -x "$yurthub" ] || nice scripts/install-tool.sh github.com/openyurtio/openyurt/cmd/yurthub $OPENYURT "$yurthub" github.com/openyurtio/openyurt replaces >&2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
CGO_ENABLED=0 go build -ldflags "-s -w" -o "$work/autonomy" ./internal/bench/cmd/autonomy
sudo=
[ "$(id -u)" = 0 ] || sudo="sudo env HOME=$HOME"
$sudo "$work/autonomy" -yurthub "$yurthub" "$@"
[ -z "$sudo" ] || $sudo chown -R "$(id -u):$(id -g)" bench
