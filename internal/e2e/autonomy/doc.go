// Package autonomy holds the promises of a node that is cut off, restarted or
// rebooted: it carries on. The node is a real one, with kubelet, containerd and
// runc, and the cut is made in its network. What runs on it is found by its
// processes, which the cut cannot hide.
package autonomy
