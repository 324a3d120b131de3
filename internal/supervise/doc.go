// Package supervise runs upstream programs as child processes of a daemon, and
// the daemon itself under a small parent.
//
// It never links a program into the daemon, never uses a shell, never lets the
// caller's environment reach a child, and never signals a process whose
// identity it has not proved.
//
// # Children
//
// A child runs in its own session and writes straight to its log file, so it
// outlives the daemon. A daemon that starts again adopts it.
//
//	         dependencies ready          probe ok
//	waiting ───────────────────▶ starting ───────▶ ready
//	                                ▲  │             │
//	                    delay over  │  │ exit        │ exit
//	                                │  ▼             ▼
//	                                backoff ◀────────┘        Stop ──▶ stopped
//
// A process is known by its identity: pid, start time and boot id. The three
// are kept in <RunDir>/<name>.json together with a digest of what was asked
// for (path, arguments, environment …). At start:
//
//	record alive, digest equal    adopt it
//	record alive, digest differs  stop it, start the new one
//	record of an unknown name     stop it
//	no record, but a process      adopt or stop it by the digest in its marker
//	  carries our marker
//	anything else                 start
//
// The marker is EDGE_SUPERVISED=<RunDir>:<name> in the child's environment. It
// covers the moment between fork and record, and a lost state directory. A
// program's own children inherit the marker; they are told apart because only
// our child leads its session and has the command line whose hash is in
// EDGE_SUPERVISED_DIGEST.
//
// # Daemon and parent
//
//	edge supervise ──starts, restarts──▶ daemon ──starts, restarts──▶ children
//	       ▲                               │
//	       └────starts a new one when──────┘
//	            the parent is gone
//
// Each watches the other by pidfd. Either may be killed. When both are, the
// children go on and the next `up` starts the pair again, which adopts them.
// Files in the run directory of a daemon, all 0600:
//
//	supervise.json   the parent: identity, command, the daemon it started
//	supervise.lock   flock held by the parent
//	daemon.json      the daemon: identity, and whether it ended on purpose
//	daemon.lock      flock held by the daemon: two never run for one directory
//	<name>.json      one for each child
//
// Everything but this page is for linux.
package supervise
