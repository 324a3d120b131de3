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
// The states of a node's session:
//
//	connected --authorised, HELLO--> welcomed --newest--> current
//	current --a newer one is welcomed--> superseded --30 s or no streams--> closed
//	current or superseded --Kick--> closed at once
//	current --Close--> draining --no streams or deadline--> closed
//
// The gateway identifies a node by its certificate alone and reads nothing of
// what it carries. It makes no API call: whether a node may connect and who
// owns an address are asked of caches behind Config, so that ten thousand nodes
// that return at once cost the apiserver nothing. It never retries a dial and
// never lets a caller wait longer than tunnel.GatewayDialTimeout.
package gateway
