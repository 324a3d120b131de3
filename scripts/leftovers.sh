#!/usr/bin/env bash
# Says what of a cluster is left on this machine and fails if anything is:
#   leftovers.sh <uid8>
set -euo pipefail
uid=$1
sudo=()
if [ "$(id -u)" != 0 ]; then
  sudo=(sudo -n)
  # Without root the looks below would find nothing and prove nothing.
  "${sudo[@]}" true || { echo 'cannot look for what is left without root: type `sudo -v` and run this again' >&2; exit 2; }
fi
left=0
check() { # check <what> <lines>
  if [ -n "$2" ]; then
    printf 'left: %s\n%s\n' "$1" "$2" >&2
    left=1
  else
    printf 'none: %s\n' "$1"
  fi
}
# Processes by their arguments and by the marker in their environment.
processes=$("${sudo[@]}" bash -c '
  for p in /proc/[0-9]*; do
    [ "$p" = /proc/$$ ] && continue
    if { tr "\0" "\n" < $p/cmdline; tr "\0" "\n" < $p/environ | grep "^EDGE_"; } 2>/dev/null | grep -q -- "-$1\(/\|\$\)"; then
      echo "${p#/proc/} $(tr "\0" " " < $p/cmdline 2>/dev/null)"
    fi
  done' _ "$uid" | grep -v leftovers.sh || true)
check processes "$processes"
check mounts "$("${sudo[@]}" grep -h -- "-$uid/" /proc/self/mountinfo || true)"
check 'network namespaces' "$(ls /run/netns 2>/dev/null | grep -- "^edge-$uid-" || true)"
check links "$("${sudo[@]}" ip link | grep -E "alias edge-$uid-" || true)"
check 'nftables tables' "$("${sudo[@]}" env PATH="$PATH:/usr/sbin:/sbin" nft list tables 2>/dev/null | grep -E "$uid" || true)"
check cgroups "$(find /sys/fs/cgroup -type d -path "*edge*$uid*" 2>/dev/null | head || true)"
exit $left
