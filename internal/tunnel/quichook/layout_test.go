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
			switch {
			case tc.want == "" && (err != nil || l.congestion == 0 || l.stats == 0):
				t.Errorf("%+v, %v", l, err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("error: %v", err)
			}
		})
	}
}
