# Sourced by the other scripts: where things are, and a terraform that finds the
# provider that was just built.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VERSION=${VERSION:-0.1.0}

# use_built_provider lays bin/terraform-provider-edge out as a filesystem mirror
# and points terraform (and OpenTofu, which knows another registry) at it.
use_built_provider() {
  local work=$1 host dir
  for host in registry.terraform.io registry.opentofu.org; do
    dir=$work/mirror/$host/edgewright/edge/$VERSION/$(go env GOOS)_$(go env GOARCH)
    mkdir -p "$dir"
    ln -sfn "$root/bin/terraform-provider-edge" "$dir/terraform-provider-edge_v$VERSION"
  done
  cat > "$work/cli.tfrc" <<RC
provider_installation {
  filesystem_mirror {
    path    = "$work/mirror"
    include = ["edgewright/edge"]
  }
  direct {
    exclude = ["edgewright/edge"]
  }
}
RC
  export TF_CLI_CONFIG_FILE=$work/cli.tfrc CHECKPOINT_DISABLE=1
}

state_dir() { echo "${EDGE_STATE_DIR:-$HOME/.edge}"; }
