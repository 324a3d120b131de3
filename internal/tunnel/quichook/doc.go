// Package quichook gives a quic-go connection a congestion controller of our
// own. quic-go has NewReno built in and no way to choose (its issues 341, 776,
// 4565), and NewReno makes 1 to 7 Mbit/s of a 50 Mbit/s line that loses 1 to 5 %.
//
// There are forks with a setter. They are months behind: what they lack most is
// that quic-go learns, since v0.65, how far packets overtake each other. On a
// line with jitter they take nearly every packet for lost, whatever controller
// decides how many there are (the figures are in package tunnel, congestion.go).
//
// So this package uses quic-go as it is released and replaces one field of one
// struct, through the one door that lets code run on the goroutine of the
// connection: the recorder of events (qlog).
//
//	NewSession            connection's goroutine
//	Install ---job------> next packet sent or received: RecordEvent
//	                        sent packet handler's controller = ours
//	                        connection's recorder = nil (events cost as much as packets)
//	Installed <-----------  close
//	                      migration: quic-go makes a new NewReno
//	                        next event of the handler: ours again, a new one
//
// The algorithm can have the size of packets set back (Restart), which quic-go does
// on a new path only: where large packets stop arriving on the one it has, it would
// send them until the connection ends. It can have what was received acknowledged at
// once (Acknowledge): quic-go waits 25 ms for more, and in a process of ten thousand
// connections over each of which a packet goes now and then, waking twice for each
// packet is half of all its work. It is told of probe timeouts too.
//
// Since it holds the only recorder that quic-go takes, it hands events on to who
// wants them (Record), and gives the connection its recorder back meanwhile. No ring
// of the last ones is always kept: a thousand take a hundred kilobytes, as much as
// all else that a gateway keeps of an idle node, and every packet would pay for its
// event. What is always kept is told by the algorithm, at the agent, see
// tunnel.History.
//
// It reaches into private structs with package unsafe, so it believes nothing:
// fields are found by name, their types compared, and the controller's interface
// is compared method by method (names, number and kinds of parameters and
// results), as is the number of fields of the struct that Restart sets back. If
// anything differs from what was written down here, Install is an error, the
// connection keeps NewReno, and a test of this package fails, so that an update of
// quic-go cannot lose the controller unnoticed. Nothing is ever written to a
// connection whose shape was not confirmed.
//
// The fields are written by the goroutine that owns them, and what other
// goroutines read of them (SetPriority, AddPath) they may not read before
// Installed, and SetPriority goes through the hook, so that it is no data race.
// But for one place: where more packets of a connection wait than quic-go keeps
// (256), the goroutine that reads the socket looks at the connection's recorder to
// tell of the loss. What it may see there is either value or half of each; the
// half without a type is taken for none, and the one without a value is a recorder
// that does nothing.
package quichook
