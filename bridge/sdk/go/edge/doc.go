// Kubernetes clusters whose nodes are at the edge: behind NAT, on links that fail, on any hardware.
package edge
