resource "edge_cluster" "main" {
  name    = "quickstart"
  version = "1.36.3"
  local   = {}

  # All of it may be left out: free ranges and ports are chosen and kept.
  network = {
    pod_cidrs     = ["10.64.0.0/16"]
    service_cidrs = ["10.65.0.0/20"]
  }
  gateway = { port = 20443 }
}

# A kubeconfig that holds no secret: it asks `edge credentials` when it is used.
output "kubeconfig" {
  value = edge_cluster.main.kubeconfig
}
