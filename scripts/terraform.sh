#!/usr/bin/env bash
# Prints the path of the terraform (or OpenTofu) to use: the one on the PATH, or
# an OpenTofu built once from its module into the cache.
set -euo pipefail
for program in terraform tofu; do
  if command -v "$program" >/dev/null; then command -v "$program"; exit; fi
done
version=v1.12.6
cache=${XDG_CACHE_HOME:-$HOME/.cache}/edge/tools
tofu=$cache/tofu-$version
if [ ! -x "$tofu" ]; then
  echo "there is no terraform here: building OpenTofu $version once (about 4 minutes)" >&2
  tmp=$(mktemp -d)
  trap 'rm -rf "$tmp"' EXIT
  cd "$tmp"
  go mod download "github.com/opentofu/opentofu@$version" >&2
  mod=$(go env GOMODCACHE)/cache/download/github.com/opentofu/opentofu/@v/$version.mod
  {
    echo 'module edge.local/tofu'
    grep -E '^go ' "$mod"
    echo "require github.com/opentofu/opentofu $version"
    # Replacements are not inherited: OpenTofu builds with its own HCL.
    grep -E '=> github.com/' "$mod" | sed -E 's/^\s*(replace )?\s*/replace /'
  } > go.mod
  GOFLAGS=-mod=mod CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o tofu github.com/opentofu/opentofu/cmd/tofu >&2
  mkdir -p "$cache"
  mv tofu "$tofu"
fi
echo "$tofu"
