ephemeral "edge_cluster_credentials" "admin" {
  cluster_id = edge_cluster.main.id
  ttl        = "1h"
}

# Another provider works on the cluster in the same apply that makes it.
provider "kubernetes" {
  host                   = ephemeral.edge_cluster_credentials.admin.host
  cluster_ca_certificate = ephemeral.edge_cluster_credentials.admin.ca_certificate
  client_certificate     = ephemeral.edge_cluster_credentials.admin.client_certificate
  client_key             = ephemeral.edge_cluster_credentials.admin.client_key
}
