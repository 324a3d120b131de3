// Package image makes and reads container images as files, for hosts that reach
// no registry: OCI image layouts in a tar archive, which containerd imports.
//
// It never talks to a registry. An archive is the same bytes each time it is made
// from the same files, so a digest names what is in it.
//
// # Layout of an archive
//
//	oci-layout
//	index.json            one descriptor per image; annotations carry its name:
//	                        io.containerd.image.name           full reference
//	                        org.opencontainers.image.ref.name  its tag
//	blobs/sha256/<hex>    manifest, configuration, layer (uncompressed)
//
// # From a file to a node
//
//	edge image load web.tar --Check, copy--> <state_dir>/images/web.tar
//	                                                |
//	          Dir.Run on every local node: import what containerd has not
package image
