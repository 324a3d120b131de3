package quichook

import (
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
)

type moment int64

// named has Algorithm's methods with named types, as quic-go's interface does.
type named interface {
	CanSend(moment) bool
	GetCongestionWindow() moment
	HasPacingBudget(moment) bool
	InRecovery() bool
	InSlowStart() bool
	MaybeExitSlowStart()
	OnCongestionEvent(_, _, _ moment)
	OnPacketAcked(_, _, _, _ moment)
	OnPacketSent(_, _, _, _ moment, _ bool)
	OnRetransmissionTimeout(bool)
	OnSpuriousLoss(moment)
	SetMaxDatagramSize(moment)
	TimeUntilSend(moment) moment
}

type wider interface {
	named
	More()
}

type stats struct{ CongestionWindow, BytesLost, PacketsLost atomic.Uint64 }

// checkRead checks what was read of a layout, and whether that found what is there;
// want is in the error, and empty where there is to be none.
func checkRead(t *testing.T, read any, found bool, err error, want string) {
	t.Helper()
	switch {
	case want == "" && (err != nil || !found):
		t.Errorf("%+v, %v", read, err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("error: %v", err)
	}
}

// What is not as it was written down is refused, not guessed at.
func TestLayoutIsChecked(t *testing.T) {
	for _, tc := range []struct {
		name    string
		handler any
		want    string // in the error; empty: accepted
	}{
		{"as expected", &struct {
			other      int
			congestion named
			connStats  *stats
		}{}, ""},
		{"not a pointer", struct{ congestion named }{}, "want a pointer"},
		{"renamed", &struct{ controller named }{}, "no field congestion"},
		{"one method more", &struct{ congestion wider }{}, "another type"},
		{"a parameter of another kind", &struct {
			congestion interface {
				CanSend(int32) bool
			}
		}{}, "another type"},
		{"a struct in place of the interface", &struct{ congestion stats }{}, "another type"},
		{"no statistics", &struct{ congestion named }{}, "no field connStats"},
		{"other counters", &struct {
			congestion named
			connStats  *struct{ CongestionWindow, BytesLost, PacketsLost uint64 }
		}{}, "another type"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := readHandler(layout{}, reflect.TypeOf(tc.handler))
			checkRead(t, l, l != nil && l.congestion != 0 && l.stats != 0, err, tc.want)
		})
	}
}

// When an acknowledgement is due is written only where it was found.
func TestAlarmIsChecked(t *testing.T) {
	for _, tc := range []struct {
		name string
		conn any
		want string // in the error; empty: accepted
	}{
		{"as expected", struct {
			other                 int
			receivedPacketHandler struct {
				other          any
				appDataPackets struct {
					stats
					ackQueued bool
					ackAlarm  moment
				}
			}
		}{}, ""},
		{"renamed", struct{ received struct{} }{}, "no field receivedPacketHandler"},
		{"a pointer in place of the struct", struct {
			receivedPacketHandler struct{ appDataPackets *struct{ ackAlarm moment } }
		}{}, "another type"},
		{"no alarm", struct {
			receivedPacketHandler struct{ appDataPackets struct{ alarm moment } }
		}{}, "no field ackAlarm"},
		{"another clock", struct {
			receivedPacketHandler struct{ appDataPackets struct{ ackAlarm float64 } }
		}{}, "another type"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			offset, err := alarm(reflect.TypeOf(tc.conn))
			checkRead(t, offset, offset != 0, err, tc.want)
		})
	}
}

type size int64

// What finds the path's MTU is written to only if it is what it was.
func TestFinderLayoutIsChecked(t *testing.T) {
	for _, tc := range []struct {
		name   string
		finder any
		want   string // in the error; empty: accepted
	}{
		{"as expected", struct {
			at, other        int64
			inFlight, min    size
			lost             [3]size
			lastProbeWasLost bool
			generation       uint8
			recorder         any
		}{}, ""},
		{"one field more", struct {
			at, other        int64
			inFlight, min    size
			lost             [3]size
			lastProbeWasLost bool
			generation       uint8
			recorder         any
			more             int
		}{}, "9 fields, want 8"},
		{"renamed", struct {
			at, other        int64
			inFlight, least  size
			lost             [3]size
			lastProbeWasLost bool
			generation       uint8
			recorder         any
		}{}, "no field min"},
		{"a slice in place of the array", struct {
			at, other        int64
			inFlight, min    size
			lost             []size
			lastProbeWasLost bool
			generation       uint8
			recorder         any
		}{}, "another type"},
		{"smaller numbers", struct {
			at, other        int64
			inFlight, min    int32
			lost             [3]size
			lastProbeWasLost bool
			generation       uint8
			recorder         any
		}{}, "another type"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := readFinder(reflect.TypeOf(tc.finder))
			checkRead(t, l, l.min != 0 && l.losses == 3, err, tc.want)
		})
	}
}
