// Package edgenode is the node daemon and what puts it on a host. On a node run
// containerd, kubelet, kube-proxy and CoreDNS, unmodified, as child processes;
// the tunnel's agent, the hub and the pod network run inside of the daemon.
//
//	edge node up ──makes──▶ site, namespaces ──starts in them──▶ edge supervise
//	                                                                  │
//	                                  containerd ◀──supervises── edge node run
//	                                  kubelet    ◀──┤                 │ in process
//	                                  kube-proxy ◀──┤                 ├─ agent ── tunnel ── gateway
//	                                  CoreDNS    ◀──┘                 ├─ hub   127.0.0.1:6443
//	                                                                  └─ pod network
//
// A node's life as its status shows it:
//
//	           token accepted           children healthy, pod network written
//	joining ───────────────▶ starting ─────────────────────────▶ running
//	   │ refused                 ▲                                  │
//	   ▼                         └── the daemon starts again ───────┘
//	failed (a new token is waited for)
//
// A local node has a network namespace at its pool's site, and mount and UTS
// namespaces with a root directory of its own:
//
//	/usr /bin /lib …   the machine's, read-only     /dev /proc /sys   the machine's
//	/run /etc /tmp     new, in memory               /var              <node dir>/data/var
//	<node dir>, programs, images                    at their own paths
//
// Nothing that the node mounts is seen by the machine, and it ends with the
// node's last process. Processes are found by their cgroup, never by name:
//
//	/edge/<uid>/<node>/host   the daemon and its children, containerd's shims
//	/edge/<uid>/<node>/pods   pods (kubelet's cgroup root)
//
// The daemon never stops its children when it ends itself: a daemon that starts
// again adopts them. Only `edge node down` stops them. The package changes no
// sysctl, firewall rule or forwarding of the machine.
//
// Files of a node dir (see also internal/supervise for run/):
//
//	node.json     the spec, the engine's       status.json  what the daemon says
//	place.json    where the site has put it    ../.<node>.lock  who converges it
//	proxy.json    HTTP proxy of the tunnel; may hold a password
//	pki/          keys and certificates        conf/        generated configuration
//	logs/  run/   of the processes             data/        what only root may see
package edgenode
