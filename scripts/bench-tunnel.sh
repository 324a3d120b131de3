#!/usr/bin/env bash
# Measures the tunnel beside its peers, built once from their modules into the
# cache. Needs root, namespaces and TUN. Arguments are passed on:
#   bench-tunnel.sh [-quick] [-full] [-seeds 5] [-only newstream,bulk,stalled,lan,crowd] [-line text] [-subject text]
# With five seeds it takes some twenty-five minutes; -quick, some four.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$root"
tools=${XDG_CACHE_HOME:-$HOME/.cache}/edge/tools

KONNECTIVITY=v0.36.0
CHISEL=v1.10.1
FRP=v0.64.0
tool() { # tool <name> <package> <version> <module>
  local file=$tools/$1-$3
  [ -x "$file" ] || nice scripts/install-tool.sh "$2" "$3" "$file" "$4" >&2
  echo "$file"
}
konnectivity=sigs.k8s.io/apiserver-network-proxy
server=$(tool konnectivity-server $konnectivity/cmd/server $KONNECTIVITY $konnectivity)
agent=$(tool konnectivity-agent $konnectivity/cmd/agent $KONNECTIVITY $konnectivity)
chisel=$(tool chisel github.com/jpillora/chisel $CHISEL github.com/jpillora/chisel)
frps=$(tool frps github.com/fatedier/frp/cmd/frps $FRP github.com/fatedier/frp)
frpc=$(tool frpc github.com/fatedier/frp/cmd/frpc $FRP github.com/fatedier/frp)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
CGO_ENABLED=0 go build -ldflags "-s -w" -o "$work/tunnel" ./internal/bench/cmd/tunnel
sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
$sudo "$work/tunnel" -konnectivity-server "$server" -konnectivity-agent "$agent" \
  -chisel "$chisel" -frps "$frps" -frpc "$frpc" "$@"
[ -z "$sudo" ] || $sudo chown -R "$(id -u):$(id -g)" bench
