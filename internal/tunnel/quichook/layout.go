package quichook

import (
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/qlogwriter"
)

// layout is where in quic-go's structs the things are that the hook touches,
// found by name and checked by type.
type layout struct {
	connRecorder, connHandler      uintptr // in quic.Conn
	connFinder, connPayload        uintptr // in quic.Conn
	connAlarm                      uintptr // in quic.Conn
	congestion, stats              uintptr // in the sent packet handler
	window, lostPackets, lostBytes uintptr // in the statistics
	finder                         finderLayout
}

// finderLayout is where the fields of what finds the path's MTU are.
type finderLayout struct {
	min, inFlight, lastLost, generation uintptr
	lost                                uintptr
	losses                              int // how many lost has
}

// lostSizes is the finder's array of the sizes that were lost, the smallest first.
func (l *finderLayout) lostSizes(finder unsafe.Pointer) []int64 {
	return unsafe.Slice(at[int64](finder, l.lost), l.losses)
}

// connLayout is the part that quic.Conn's type alone tells.
var connLayout = sync.OnceValues(func() (*layout, error) {
	conn := reflect.TypeFor[quic.Conn]()
	l := &layout{}
	var err error
	if l.connRecorder, err = field(conn, "qlogger", is(reflect.TypeFor[qlogwriter.Recorder]())); err != nil {
		return nil, err
	}
	if l.connHandler, err = field(conn, "sentPacketHandler", func(t reflect.Type) bool { return t.Kind() == reflect.Interface }); err != nil {
		return nil, err
	}
	isFinder := func(t reflect.Type) bool { return t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Struct }
	if l.connFinder, err = field(conn, "mtuDiscoverer", isFinder); err != nil {
		return nil, err
	}
	if l.connPayload, err = field(conn, "maxPayloadSizeEstimate", is(reflect.TypeFor[atomic.Uint32]())); err != nil {
		return nil, err
	}
	if l.connAlarm, err = alarm(conn); err != nil {
		return nil, err
	}
	finderField, _ := conn.FieldByName("mtuDiscoverer")
	if l.finder, err = readFinder(finderField.Type.Elem()); err != nil {
		return nil, err
	}
	return l, nil
})

// alarm returns where in a connection it is kept when the next acknowledgement is due:
// in a struct of a struct that it holds.
func alarm(conn reflect.Type) (uintptr, error) {
	isStruct := func(t reflect.Type) bool { return t.Kind() == reflect.Struct }
	var offset uintptr
	t := conn
	for _, name := range []string{"receivedPacketHandler", "appDataPackets"} {
		o, err := field(t, name, isStruct)
		if err != nil {
			return 0, err
		}
		offset += o
		f, _ := t.FieldByName(name)
		t = f.Type
	}
	o, err := field(t, "ackAlarm", func(t reflect.Type) bool { return t.Kind() == reflect.Int64 })
	return offset + o, err
}

// finderFields are all that quic-go's mtuFinder has. To begin anew is to set what its
// Reset sets; one more field could be one more thing to set.
const finderFields = 8

// readFinder returns the layout of what finds the path's MTU.
func readFinder(t reflect.Type) (finderLayout, error) {
	var l finderLayout
	if n := t.NumField(); n != finderFields {
		return l, fmt.Errorf("quic-go's %s has %d fields, want %d", t, n, finderFields)
	}
	kind := func(want reflect.Kind) func(reflect.Type) bool {
		return func(t reflect.Type) bool { return t.Kind() == want }
	}
	sizes := func(t reflect.Type) bool {
		return t.Kind() == reflect.Array && t.Elem().Kind() == reflect.Int64 && t.Len() > 0
	}
	for _, f := range []struct {
		name   string
		offset *uintptr
		wanted func(reflect.Type) bool
	}{
		{"min", &l.min, kind(reflect.Int64)},
		{"inFlight", &l.inFlight, kind(reflect.Int64)},
		{"lastProbeWasLost", &l.lastLost, kind(reflect.Bool)},
		{"generation", &l.generation, kind(reflect.Uint8)},
		{"lost", &l.lost, sizes},
	} {
		var err error
		if *f.offset, err = field(t, f.name, f.wanted); err != nil {
			return l, err
		}
	}
	lost, _ := t.FieldByName("lost")
	l.losses = lost.Type.Len()
	return l, nil
}

// handlerLayout is the part that the type behind the connection's sent packet
// handler tells, a cache. There is one such type in a quic-go.
var handlerLayout sync.Map // reflect.Type -> *layout

// layoutOf returns the layout for c's type of handler.
func layoutOf(c *quic.Conn) (*layout, error) {
	base, err := connLayout()
	if err != nil {
		return nil, err
	}
	handlerField, _ := reflect.TypeFor[quic.Conn]().FieldByName("sentPacketHandler")
	// Set when the connection was made and not changed since.
	handler := reflect.NewAt(handlerField.Type, unsafe.Add(unsafe.Pointer(c), base.connHandler)).Elem().Elem()
	t := handler.Type()
	if known, ok := handlerLayout.Load(t); ok {
		return known.(*layout), nil
	}
	l, err := readHandler(*base, t)
	if err != nil {
		return nil, err
	}
	handlerLayout.Store(t, l)
	return l, nil
}

func readHandler(l layout, t reflect.Type) (*layout, error) {
	if t.Kind() != reflect.Pointer || t.Elem().Kind() != reflect.Struct {
		return nil, fmt.Errorf("quic-go's sent packet handler is a %s, want a pointer to a struct", t)
	}
	t = t.Elem()
	var err error
	if l.congestion, err = field(t, "congestion", sameMethods); err != nil {
		return nil, err
	}
	isStats := func(t reflect.Type) bool { return t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Struct }
	if l.stats, err = field(t, "connStats", isStats); err != nil {
		return nil, err
	}
	statsField, _ := t.FieldByName("connStats")
	counter := is(reflect.TypeFor[atomic.Uint64]())
	for name, offset := range map[string]*uintptr{"CongestionWindow": &l.window, "PacketsLost": &l.lostPackets, "BytesLost": &l.lostBytes} {
		if *offset, err = field(statsField.Type.Elem(), name, counter); err != nil {
			return nil, err
		}
	}
	return &l, nil
}

// field returns the offset of a struct's field if its type is as wanted.
func field(t reflect.Type, name string, wanted func(reflect.Type) bool) (uintptr, error) {
	f, ok := t.FieldByName(name)
	if !ok || len(f.Index) != 1 {
		return 0, fmt.Errorf("quic-go's %s has no field %s", t, name)
	}
	if !wanted(f.Type) {
		return 0, fmt.Errorf("field %s of quic-go's %s has another type than expected: %s", name, t, f.Type)
	}
	return f.Offset, nil
}

func is(want reflect.Type) func(reflect.Type) bool {
	return func(t reflect.Type) bool { return t == want }
}

// sameMethods reports whether an interface type has the methods of Algorithm,
// with parameters and results of the same kinds. Then a value of one can stand
// in for the other: a method table is in the order of the names, and a named
// integer is passed as its kind is.
func sameMethods(t reflect.Type) bool {
	want := reflect.TypeFor[Algorithm]()
	if t.Kind() != reflect.Interface || t.NumMethod() != want.NumMethod() {
		return false
	}
	for i := range want.NumMethod() {
		a, b := t.Method(i), want.Method(i)
		if a.Name != b.Name || !sameKinds(a.Type.NumIn(), a.Type.In, b.Type.NumIn(), b.Type.In) ||
			!sameKinds(a.Type.NumOut(), a.Type.Out, b.Type.NumOut(), b.Type.Out) {
			return false
		}
	}
	return true
}

func sameKinds(n int, a func(int) reflect.Type, m int, b func(int) reflect.Type) bool {
	if n != m {
		return false
	}
	for i := range n {
		if a(i).Kind() != b(i).Kind() {
			return false
		}
	}
	return true
}
