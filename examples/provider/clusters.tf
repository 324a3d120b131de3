# Another operator, or a CI runner, reaches an existing cluster without the
# state directory it was made with.
provider "edge" {
  alias = "elsewhere"

  clusters = {
    "local/quickstart-1f2e3d4c" = {
      kubeconfig_path = "/etc/edge/quickstart.kubeconfig"
    }
  }
}
