#!/usr/bin/env bash
# Checks what this machine must have and installs what Debian or Ubuntu can
# give. Says everything that is missing at once, before minutes of work begin.
#   prerequisites.sh [test]    with what only the tests need
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }
fail=0

[ "$(uname -s)" = Linux ] || { say "This needs Linux; this is $(uname -s)."; exit 1; }

if ! command -v go >/dev/null; then
  say "There is no go program. Install Go 1.26 or newer from https://go.dev/dl/ and put it on the PATH."
  fail=1
elif ! (cd "$(dirname "$0")/.." && go version >/dev/null 2>&1 && go list -m >/dev/null 2>&1); then
  say "$(go version) is too old for this module and cannot fetch a newer toolchain: $(cd "$(dirname "$0")/.." && go list -m 2>&1 | head -n 1)"
  fail=1
fi

# package:program-or-file that shows it is there
needed=(
  nftables:nft
  gcc:gcc
  pkg-config:pkg-config
  libseccomp-dev:/usr/include/seccomp.h
  iproute2:ip
  curl:curl
  ca-certificates:/etc/ssl/certs/ca-certificates.crt
)
# One test makes a user without root and lets it use sudo.
[ "${1:-}" = test ] && needed+=(sudo:sudo)
missing=()
for entry in "${needed[@]}"; do
  what=${entry#*:}
  case $what in
    /*) [ -e "$what" ] || missing+=("${entry%%:*}") ;;
    *) PATH=$PATH:/usr/sbin:/sbin command -v "$what" >/dev/null || missing+=("${entry%%:*}") ;;
  esac
done

# The SDK for TypeScript is packed, installed and run. Distributions' own Node.js is
# often too old for Pulumi's SDK, so it is not installed here.
if [ "${1:-}" = test ]; then
  if ! command -v node >/dev/null || ! command -v npm >/dev/null || [ "$(node --version | sed -E 's/^v([0-9]+).*/\1/')" -lt 20 ]; then
    say "The tests of the Pulumi SDK need Node.js 20 or newer with npm: https://nodejs.org"
    fail=1
  fi
fi

sudo=()
if [ "$(id -u)" != 0 ]; then
  if ! command -v sudo >/dev/null; then
    say "Local nodes need root and there is no sudo here. Run as root or install sudo."
    fail=1
  elif ! sudo -n true 2>/dev/null; then
    say "Local nodes need root: type your password once now ('sudo -v'), or allow sudo without one."
    sudo -v || fail=1
  fi
  sudo=(sudo -n)
fi

if [ ${#missing[@]} -gt 0 ]; then
  if command -v apt-get >/dev/null && [ $fail = 0 ]; then
    say "installing ${missing[*]}"
    "${sudo[@]}" apt-get update -qq
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    say "Install these packages: ${missing[*]}"
    fail=1
  fi
fi

# 6 GiB of modules and build cache, 2 GiB of programs and running nodes.
cache=${XDG_CACHE_HOME:-$HOME/.cache}
mkdir -p "$cache"
free=$(df -Pk "$cache" | awk 'NR==2 {print int($4/1048576)}')
if [ "$free" -lt 8 ] && [ ! -d "$cache/edge/components" ]; then
  say "$cache has $free GiB free; building upstream's programs once takes 8."
  fail=1
fi
exit $fail
