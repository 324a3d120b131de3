terraform {
  required_providers {
    edge = {
      source = "edgewright/edge"
    }
  }
}

# Enough for clusters on this machine: keys are kept in ~/.edge.
provider "edge" {}
