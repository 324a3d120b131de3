#!/usr/bin/env bash
# Prints a directory with `pulumi` and the language host of YAML programs, of the
# versions that the bridge is tested with, built once from their modules into the
# cache. Programs in Go and TypeScript run inside their own process and need no
# host.
set -euo pipefail
pulumi=v3.232.0
yaml=v1.30.1
cache=${XDG_CACHE_HOME:-$HOME/.cache}/edge/tools
dir=$cache/pulumi-$pulumi

build() { # build <package> <file> <module> <version> [<module> <version>]...
  local package=$1 file=$2 tmp
  shift 2
  [ -x "$file" ] && return
  echo "building ${package##*/} $2 once (about 2 minutes)" >&2
  tmp=$(mktemp -d)
  {
    echo 'module edge.local/tool'
    echo 'go 1.26.0'
    while [ $# -gt 0 ]; do
      echo "require $1 $2"
      shift 2
    done
  } > "$tmp/go.mod"
  mkdir -p "${file%/*}"
  # A module of its own, because `go install` refuses pulumi's for its replace
  # directive.
  (cd "$tmp" && GOFLAGS=-mod=mod CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X github.com/pulumi/pulumi/sdk/v3/go/common/version.Version=$pulumi" -o program "$package") >&2
  mv "$tmp/program" "$file.tmp"
  mv "$file.tmp" "$file"
  rm -rf "$tmp"
}

build github.com/pulumi/pulumi/pkg/v3/cmd/pulumi "$dir/pulumi" \
  github.com/pulumi/pulumi/pkg/v3 "$pulumi" github.com/pulumi/pulumi/sdk/v3 "$pulumi"
build github.com/pulumi/pulumi-yaml/cmd/pulumi-language-yaml "$dir/pulumi-language-yaml" \
  github.com/pulumi/pulumi-yaml "$yaml"
echo "$dir"
