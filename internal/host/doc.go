// Package host asks a machine whether it can carry local edge nodes, before
// anything is made on it. Each probe either really does what a node will need,
// inside namespaces that vanish with it, or reads what the kernel says.
//
// The package changes nothing on the machine: no module is loaded on purpose,
// no sysctl, firewall rule or file stays behind.
package host
