// Package gateway is the cloud end of the tunnel. It serves:
//
//   - ServePacket: a UDP socket on which nodes hold their sessions (ALPN
//     "edgetun/1", mutual TLS) and devices join ("edge-join/1", no client
//     certificate);
//   - ServeTCP: the same over TLS on TCP, for networks that block UDP;
//   - ServeEgress: the socket of the apiserver's egress selector, HTTP CONNECT.
//
// What crosses it:
//
//	apiserver --CONNECT--> egress --stream--> agent --> kubelet, pods
//	hub       --------->   agent  --stream--> gateway --> apiserver
//	device    --edge-join--> gateway --> Enroller
//
// Several gateways mesh (SetGateways): each tells the others which nodes it holds,
// and passes dials of nodes that it does not hold on. See mesh.go.
//
// The states of a node's session:
//
//	connected --authorised, HELLO--> welcomed --newest--> current
//	current --a newer one is welcomed, here or at another gateway--> superseded
//	superseded --no streams, or 15 min--> closed
//	superseded --5 s--> takes no new streams of the node's
//	superseded, with eight newer superseded ones --> closed
//	current or superseded --Kick, at any gateway--> closed at once
//	current --Close--> draining --moved to another gateway, no streams, or deadline--> closed
//
// What a gateway process can do that was taken over: deny service, and see which
// nodes talk how much. What it carries is encrypted end to end by those who talk.
// It cannot aim a node's agent at anything that the cluster's authority has not
// signed, nor name other gateways to it: it holds no key for either. In a local
// cluster the control plane's daemon runs a gateway and holds the authority's key
// in one process; that separation begins with gateways of their own (package
// process).
//
// The gateway identifies a node by its certificate alone and reads nothing of
// what it carries. It makes no API call: whether a node may connect and who
// owns an address are asked of caches behind Config, so that ten thousand nodes
// that return at once cost the apiserver nothing. It never retries a dial and
// never lets a caller wait longer than tunnel.GatewayDialTimeout.
package gateway
