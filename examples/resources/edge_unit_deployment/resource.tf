resource "edge_unit_deployment" "web" {
  cluster_id = edge_cluster.main.id
  name       = "web"

  template = {
    containers = {
      web = {
        image = "registry.k8s.io/e2e-test-images/agnhost:2.63.0"
        args  = ["netexec", "--http-port=8080"]
        ports = { http = { port = 8080 } }
        resources = {
          requests = { cpu = "50m", memory = "32Mi" }
        }
      }
    }
  }

  # One unit in each of these pools, with what differs there.
  pools = {
    (edge_node_pool.berlin.name) = {
      replicas = 2
      env      = { SITE = "berlin" }
    }
    (edge_node_pool.tokyo.name) = {
      env = { SITE = "tokyo" }
    }
  }

  service = {
    ports = { http = { port = 80, target_port = "http" } }
  }

  # Pods need nodes: without this, the rollout waits for them.
  depends_on = [edge_node.berlin, edge_node.tokyo]
}
