#!/usr/bin/env bash
# Packs the SDK for TypeScript, installs the package into an empty project with the
# program of examples/pulumi/typescript and the test's runner, and compiles both.
# Prints the directory of the project. Does nothing where nothing has changed.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$root"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/edge/pulumi-typescript
command -v npm >/dev/null || { echo 'there is no npm here: install Node.js 20 or newer (https://nodejs.org)' >&2; exit 1; }

runner=bridge/e2e/quickstart/testdata/run.ts
inputs=$(git ls-files --cached --others --exclude-standard bridge/sdk/nodejs examples/pulumi/typescript "$runner" scripts/pulumi-typescript.sh)
stamp=$({ node --version; sha256sum $inputs; } | sha256sum | cut -c 1-16)
project=$cache/$stamp
if [ ! -d "$project" ]; then
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/tmp.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  npm=(npm --no-audit --no-fund --no-update-notifier --prefer-offline --loglevel=error)
  {
    echo 'packing the SDK for TypeScript'
    mkdir "$work/sdk" "$work/project"
    (cd bridge/sdk/nodejs && git ls-files --cached --others --exclude-standard . | tar -c -T -) | tar -x -C "$work/sdk"
    cd "$work/sdk"
    "${npm[@]}" install
    npx tsc
    # What is published is the directory of compiled files, as Pulumi's packages are.
    cp package.json README.md bin/
    "${npm[@]}" pack --pack-destination "$work" ./bin
    echo 'installing it into an empty project and compiling that'
    cp "$root"/examples/pulumi/typescript/* "$work/project/"
    cp "$root/$runner" "$work/project/"
    cd "$work/project"
    "${npm[@]}" install --save-exact "$work"/edgewright-edge-*.tgz
    npx tsc
    test -f bin/index.js -a -f bin/run.js
    rm -rf "$work/sdk"
  } >&2
  find "$cache" -mindepth 1 -maxdepth 1 ! -path "$work" -exec rm -rf {} +
  mv "$work/project" "$project"
fi
echo "$project"
