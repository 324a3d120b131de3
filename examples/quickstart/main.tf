# A Kubernetes cluster with two sites behind NAT, on this machine.
#
#   make quickstart           from the top of the repository
#   make quickstart-destroy   removes it and proves that nothing is left

terraform {
  required_version = ">= 1.11"
  required_providers {
    edge = {
      source = "edgewright/edge"
    }
  }
}

provider "edge" {}

resource "edge_cluster" "quickstart" {
  name    = "quickstart"
  version = "1.36.3"
  local   = {}
}

resource "edge_node_pool" "site" {
  for_each = toset(["berlin", "tokyo"])

  cluster_id = edge_cluster.quickstart.id
  name       = each.key
  labels     = { "example.com/site" = each.key }
}

resource "edge_node" "node" {
  for_each = {
    berlin-1 = "berlin"
    berlin-2 = "berlin"
    tokyo-1  = "tokyo"
  }

  cluster_id = edge_cluster.quickstart.id
  pool       = edge_node_pool.site[each.value].name
  name       = each.key
  local      = {}
}

resource "edge_unit_deployment" "web" {
  cluster_id = edge_cluster.quickstart.id
  name       = "web"
  namespace  = "default"

  template = {
    containers = {
      web = {
        image = "registry.k8s.io/e2e-test-images/agnhost:2.63.0"
        args  = ["netexec", "--http-port=8080"]
        ports = { http = { port = 8080 } }
      }
    }
  }

  pools = {
    berlin = { replicas = 2, env = { SITE = "berlin" } }
    tokyo  = { replicas = 1, env = { SITE = "tokyo" } }
  }

  service = {
    ports = { http = { port = 80, target_port = "http" } }
  }

  depends_on = [edge_node.node]
}

output "cluster_id" {
  value = edge_cluster.quickstart.id
}

output "next" {
  value = <<-EOT
    export PATH="$HOME/.edge/bin:$PATH"
    edge status quickstart                                   # nodes and their tunnel
    edge kubectl -c quickstart get nodes,pods -o wide
    edge kubectl -c quickstart logs deploy/web-tokyo         # through the tunnel
    edge kubectl -c quickstart exec deploy/web-tokyo -- env
    edge lab cut quickstart tokyo                            # cut a site off, watch, and
    edge lab restore quickstart tokyo                        # bring it back
  EOT
}
