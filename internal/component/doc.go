// Package component knows the upstream programs that a cluster is made of, and
// gets them: from the cache, from a mirror, or by building their Go module.
//
// It never runs what it fetched, never asks which version is the newest, and
// never takes a file whose sha256 it cannot check.
//
// # From a name to a file
//
//	catalogue              sources, in this order                cache
//	Kubernetes 1.36.3 ---> 1 cache     complete and unchanged?  ---> paths
//	  component, version,  2 mirror    index -> manifest -> files -+
//	  recipe               3 module    go build, verified sums ----+-> temp
//	                       (publisher's releases: not built yet)      dir, rename
//
// A recipe is everything that decides what a build makes: the build module
// (go.mod and go.sum with every checksum, both part of this package), our own
// sources, packages, tags and linker flags. Its hash is part of the cache key, so
// that a changed recipe never meets an old file.
//
// # Layout of the cache, which is also the layout of a mirror
//
//	index.json                               entry -> sha256 of its manifest.json
//	v1/<component>/<version>/<os>-<arch>/<recipe hash, 12 hex>/
//	    manifest.json                        files with size, mode and sha256
//	    <program> ...                        programs or image archives
//	    .verified.json                       size and time each file had when its hash was last taken
//	locks/<key>.lock                         one builder or fetcher per entry, across processes
//	logs/<key>.log                           output of the last build
//	tmp/<key>.<random>/                      unfinished work
//
// To make a mirror, copy index.json and v1/ to a directory or a web server. Point
// EDGE_COMPONENT_MIRROR at it: a path, or a URL. The index can be pinned by its
// own digest, "https://host/path#sha256=<hex>"; a URL that is not https must be.
//
// # States of an entry
//
//	absent --lock--> tmp/ being filled --manifest written--> rename --> complete
//	   ^                     |                                             |
//	   |              killed: removed by the next holder of the lock       |
//	   +------------- a file's hash differs from the manifest -------------+
//
// The rename is the only way to become complete, so whatever interrupts a fetch
// leaves nothing that is taken for complete.
package component
