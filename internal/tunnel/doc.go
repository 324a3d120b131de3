// Package tunnel is what the two ends of the tunnel, gateway and agent, both
// speak: names and codes, the frames, the QUIC settings, a socket that survives
// send errors, a net.Conn over a stream, and a copy loop that keeps half-close.
// It holds no policy: who may connect or dial what is decided in packages
// gateway and agent. It never logs and never verifies a certificate.
//
// One connection per node carries everything. The agent dials it (ALPN
// "edgetun/1", mutual TLS 1.3) and opens the first stream, the control stream.
// After that either end opens one stream per carried connection:
//
//	agent                                             gateway
//	  | stream 0: control                                |
//	  |  HELLO  ---------------------------------------> |  authorised, newest wins
//	  |  <--------------------------------------- WELCOME|
//	  |  PING, PONG, DRAIN in both directions            |
//	  |  HEARTBEAT, PAD  ------------------------------> |  the node's lease, its autonomy
//	  |  <--------------------------- GATEWAYS, POLICY   |  signed by the cluster's authority
//	  |  <------------------------------------- SPREAD   |  how slowly all its nodes are to return
//	  |                                                  |
//	  | dial stream, opened by the gateway               |
//	  |  <----- header(kubelet | tcp target) [raw bytes] |
//	  |  response ------------------------------------>  |
//	  |  <=============== raw bytes, both ways ========> |
//	  |                                                  |
//	  | dial stream, opened by the agent                 |
//	  |  header(apiserver) ---------------------------->  |
//	  |  <----------------------------------- response   |
//	  |  <=============== raw bytes, both ways ========> |
//
// A control message ("varint" is QUIC's, RFC 9000 section 16):
//
//	+-------------+------------+---------------------------+
//	| type varint | len varint | body, len bytes (<= 64 KiB)|
//	+-------------+------------+---------------------------+
//
//	HELLO 1, WELCOME 3: JSON objects; unknown members are ignored.
//	PING 2, PONG 4: 8 bytes that come back as they were sent.
//	SPREAD 16: a varint, in milliseconds.
//	DRAIN 6: a JSON object. HEARTBEAT 8: varints and text, see Heartbeat. GATEWAYS
//	10, POLICY 12: documents of package signed. PAD 14: filling, skipped. Of types
//	that are not known the even ones are skipped and the odd ones end the session:
//	whoever adds a message chooses.
//
// A dial header, sent by whoever opens the stream, in one write:
//
//	+----+------+-------+------------+--------+--------------+-----------------+
//	| u8 | u8   | u8    | varint len | target | trace varint | deadline varint |
//	| =1 | kind | flags |            |        |              | milliseconds    |
//	+----+------+-------+------------+--------+--------------+-----------------+
//
//	kinds: tcp 1 (target "ip:port"), kubelet 3 and apiserver 4 (no target: the
//	other end knows where that is, so neither can be aimed elsewhere).
//	udp 2 and tun 5 are not supported by this version: they are assigned, as are
//	the capability bits by which an end would say that it serves them, and
//	answered with "unsupported".
//	flags: OPTIMISTIC 0x01, the opener sends payload without awaiting the
//	response. Unknown flags of the upper four bits refuse the dial; of the
//	lower four they are ignored.
//
// The response, before the first raw byte of the other direction:
//
//	+-----------+------------+------------------------+
//	| u8 status | varint len | text, len bytes (<=1 KiB)|
//	+-----------+------------+------------------------+
//
// After that QUIC's own framing is all there is. FIN is a half-close, a reset
// stream is a reset connection; see Splice.
//
// A session is carried by QUIC, or by TLS over TCP with a multiplexer where UDP
// does not pass (MuxSession); its users see no difference. Over TCP one notice
// says why a session closes, on a stream of its own; see notice.go.
//
// A path may come to carry smaller packets than it did and not say so. Both ends
// notice that large ones are lost and small ones not, and go on with small ones (see
// blackHole); the agent does so at once when its machine's way out changes (Moved).
//
// What a connection does is recorded when somebody asks, packet by packet (Qlog).
// An agent always keeps the last thousand events of its sessions and their paths
// (History); a gateway none, see package quichook.
//
// Readers that do not read cost others nothing until what they hold is most of
// the credit of their session or of the process; then the longest stalled are
// cut. See Stalls.
//
// Gateways speak the same among themselves (ALPN "edge-mesh/1", both with a
// gateway's certificate): on the first stream MESH-HELLO 5, OWNED 7 (which nodes
// the sender holds, with their epochs) and KICK 9, in both directions; on every
// other one a dial for a node of the other end: a Forward, then a dial header and
// all that follows as above.
//
// Joining (ALPN "edge-join/1", no client certificate) is one stream with one
// message each way, each a 4-byte big-endian length and that many bytes (at
// most 64 KiB) of JSON; see WriteFrame and package enroll for the content.
//
// Renewing (ALPN "edge-renew/1", client certificate verified in all but its end)
// is the same with the messages RenewRequest and Response. Nothing else is served
// on such a connection.
package tunnel
