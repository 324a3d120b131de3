// Package congestion decides how much a sender may have on the way and how fast
// it sends, for lines that lose packets without being full: radio, satellites,
// bad copper. It knows nothing of QUIC, holds no clock and starts no goroutine.
//
// It models the path (after the idea of BBR: Cardwell et al., ACM Queue 14-5,
// 2016) by two numbers that are measured with every acknowledgement: the rate at
// which it delivers, and its shortest round trip. Their product is what the path
// holds; what is more than that waits in a queue and helps nobody.
//
//	startup --rate grows no more, a queue stands, or loss--> drain
//	drain   --no more on the way than the path holds-------> cruise
//	cruise: each round trip one of the gains 1.25, 0.75, 1, 1, 1, 1, 1, 1
//	cruise  --shortest round trip not seen for 10 s--------> probe-rtt
//	probe-rtt --200 ms-------------------------------------> cruise
//
// What is a sign of congestion, and what is not:
//
//   - the delivery rate: it is never sent faster than it was delivered, but for
//     one round trip in eight;
//   - delay: a queue that stands in front of a whole round ends the startup, and
//     in cruise lowers the rate until it is gone. Single late packets are jitter;
//   - loss above a tenth: then only what was delivered lately is believed. Loss
//     below that is the line's own and changes nothing;
//   - ECN marks end the startup and drain;
//   - silence: what was on the way in an outage is not counted as loss, and what
//     was on the way when the path changed counts neither as lost nor as on the
//     way. The rate from before is kept, and used once something has come of the
//     new path; see Controller.Moved for why, and for where RFC 9000 differs.
//
// What a packet that is late but not lost does is the same as if it had not been
// late: losses that turn out spurious are taken back.
package congestion
