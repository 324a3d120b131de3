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
//	installed <-----------  close
//	                      migration: quic-go makes a new NewReno
//	                        next event of the handler: ours again, a new one
//
// It reaches into private structs with package unsafe, so it believes nothing:
// fields are found by name, their types compared, and the controller's interface
// is compared method by method (names, number and kinds of parameters and
// results). If anything differs from what was written down here, Install is an
// error, the connection keeps NewReno, and a test of this package fails, so that
// an update of quic-go cannot lose the controller unnoticed. Nothing is ever
// written to a connection whose shape was not confirmed.
//
// It is no data race: the fields are written by the goroutine that owns them,
// and what other goroutines read of them (SetPriority, AddPath) they may not
// read before Install's channel is closed.
package quichook
