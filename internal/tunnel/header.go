package tunnel

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"
	"unicode/utf8"

	"github.com/quic-go/quic-go/quicvarint"
)

// HeaderVersion is the first byte of a dial header.
const HeaderVersion = 1

const (
	// MaxHeader bounds a dial header in bytes, whatever it carries later.
	MaxHeader = 4 << 10
	// maxTarget leaves room in MaxHeader for the fixed fields (3 bytes and three
	// varints of up to 8).
	maxTarget = MaxHeader - 32
	// maxText bounds the text of a response: one sentence for a person.
	maxText = 1 << 10
)

// Kind is what a dial stream carries.
type Kind uint8

// The kinds. KindUDP and KindTun are assigned so that nothing else takes their
// numbers. No end serves them (Supported has neither CapUDP nor CapTun), and
// StatusUnsupported is the answer to them: nothing would use them, since the
// apiserver's egress carries TCP alone.
const (
	KindTCP       Kind = 1
	KindUDP       Kind = 2
	KindKubelet   Kind = 3
	KindAPIServer Kind = 4
	KindTun       Kind = 5
)

var kindNames = [...]string{KindTCP: "tcp", KindUDP: "udp", KindKubelet: "kubelet", KindAPIServer: "apiserver", KindTun: "tun"}

// String implements fmt.Stringer.
func (k Kind) String() string {
	if int(k) < len(kindNames) && kindNames[k] != "" {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// urgency is the QUIC scheduling priority (RFC 9218, 0 is first) of a stream of
// this kind. The control stream has 0. What a person or a component waits for
// goes before carried pod traffic.
func (k Kind) urgency() int8 {
	switch k {
	case KindKubelet, KindAPIServer:
		return 2
	default:
		return 3
	}
}

// urgencyBulk is that of a direction that carries bulk, see flow.
const urgencyBulk = 6

// Flags of a dial header.
type Flags uint8

const (
	// FlagOptimistic: payload follows without awaiting the response.
	FlagOptimistic Flags = 0x01
	// flagsCritical are the bits that may not be ignored by who does not know them.
	flagsCritical Flags = 0xf0
)

// Header opens a dial stream. See the package comment for its bytes.
type Header struct {
	Kind  Kind
	Flags Flags
	// Target is "ip:port" for KindTCP, empty for KindKubelet and KindAPIServer.
	Target string
	// Trace appears in the log lines of both ends. Below 2^62.
	Trace uint64
	// Deadline is how long the opener waits for the response; it crosses the
	// network in whole milliseconds. Zero: the other end's own bound.
	Deadline time.Duration
}

// ErrUnsupported means a header that is well formed but asks for something this
// end does not know: another version, kind or critical flag.
var ErrUnsupported = errors.New("not supported by this end of the tunnel")

// Append appends the header's bytes to b.
func (h Header) Append(b []byte) ([]byte, error) {
	if err := h.check(); err != nil {
		return b, err
	}
	ms := h.Deadline.Milliseconds()
	if ms < 0 || h.Trace > quicvarint.Max {
		return b, fmt.Errorf("dial header: deadline %s or trace %d out of range", h.Deadline, h.Trace)
	}
	b = append(b, HeaderVersion, byte(h.Kind), byte(h.Flags))
	b = quicvarint.Append(b, uint64(len(h.Target)))
	b = append(b, h.Target...)
	b = quicvarint.Append(b, h.Trace)
	return quicvarint.Append(b, uint64(ms)), nil
}

// check refuses what the kind does not allow.
func (h Header) check() error {
	if h.Flags&flagsCritical != 0 {
		return fmt.Errorf("dial header: flags %#x: %w", uint8(h.Flags), ErrUnsupported)
	}
	switch h.Kind {
	case KindTCP:
		if _, err := netip.ParseAddrPort(h.Target); err != nil {
			return fmt.Errorf("dial header: target of kind tcp: %w", err)
		}
	case KindKubelet, KindAPIServer:
		if h.Target != "" {
			return fmt.Errorf("dial header: kind %s takes no target", h.Kind)
		}
	default:
		return fmt.Errorf("dial header: %s: %w", h.Kind, ErrUnsupported)
	}
	return nil
}

// ReadHeader reads a dial header and not one byte more. It returns an error
// wrapping ErrUnsupported for what may be answered with StatusUnsupported; any
// other error means that the stream is to be reset.
func ReadHeader(r io.Reader) (Header, error) {
	br := byteReader{r}
	var fixed [3]byte
	if _, err := io.ReadFull(r, fixed[:]); err != nil {
		return Header{}, fmt.Errorf("dial header: %w", err)
	}
	if fixed[0] != HeaderVersion {
		return Header{}, fmt.Errorf("dial header: version %d: %w", fixed[0], ErrUnsupported)
	}
	h := Header{Kind: Kind(fixed[1]), Flags: Flags(fixed[2])}
	target, err := readText(r, br, maxTarget)
	if err != nil {
		return Header{}, fmt.Errorf("dial header: target: %w", err)
	}
	h.Target = target
	if h.Trace, err = quicvarint.Read(br); err != nil {
		return Header{}, fmt.Errorf("dial header: trace: %w", err)
	}
	ms, err := quicvarint.Read(br)
	if err != nil {
		return Header{}, fmt.Errorf("dial header: deadline: %w", err)
	}
	// A day is for ever here; the bound keeps the multiplication from
	// overflowing.
	if max := uint64((24 * time.Hour).Milliseconds()); ms > max {
		ms = max
	}
	h.Deadline = time.Duration(ms) * time.Millisecond
	return h, h.check()
}

// Status is the outcome of a dial.
type Status uint8

// The outcomes. Numbers above these are read as StatusUnreachable with their text.
const (
	StatusOK Status = 0
	// StatusRefused: the target's host refused the connection.
	StatusRefused Status = 1
	// StatusDenied: this end does not allow the target.
	StatusDenied  Status = 2
	StatusTimeout Status = 3
	// StatusUnreachable: any other failure to connect.
	StatusUnreachable Status = 4
	StatusAmbiguous   Status = 5
	// StatusDraining: this end stops; dial again through another session.
	StatusDraining Status = 6
	// StatusUnsupported: version, kind or flag not known here.
	StatusUnsupported Status = 7
	// StatusNotConnected: the gateway that was asked holds no session of the node.
	StatusNotConnected Status = 8
)

var statusNames = [...]string{"ok", "refused", "denied", "timeout", "unreachable", "ambiguous", "draining", "unsupported", "not connected"}

// String implements fmt.Stringer.
func (s Status) String() string {
	if int(s) < len(statusNames) {
		return statusNames[s]
	}
	return fmt.Sprintf("status %d", uint8(s))
}

// Response answers a dial header.
type Response struct {
	Status Status
	// Text is for people: one sentence, cut at 1 KiB.
	Text string
}

// Append appends the response's bytes to b.
func (r Response) Append(b []byte) []byte {
	text := r.Text
	if len(text) > maxText {
		text = text[:maxText]
		for len(text) > 0 && !utf8.ValidString(text) {
			text = text[:len(text)-1]
		}
	}
	b = append(b, byte(r.Status))
	b = quicvarint.Append(b, uint64(len(text)))
	return append(b, text...)
}

// ReadResponse reads a response and not one byte more.
func ReadResponse(r io.Reader) (Response, error) {
	br := byteReader{r}
	status, err := br.ReadByte()
	if err != nil {
		return Response{}, fmt.Errorf("dial response: %w", err)
	}
	text, err := readText(r, br, maxText)
	if err != nil {
		return Response{}, fmt.Errorf("dial response: text: %w", err)
	}
	return Response{Status: Status(status), Text: text}, nil
}

// Err is nil for StatusOK and a *StatusError otherwise.
func (r Response) Err() error {
	if r.Status == StatusOK {
		return nil
	}
	return &StatusError{Status: r.Status, Text: r.Text}
}

// StatusError is a dial that the other end could not or would not do.
type StatusError struct {
	Status Status
	Text   string
}

// Error implements error.
func (e *StatusError) Error() string {
	if e.Text == "" {
		return e.Status.String()
	}
	return e.Status.String() + ": " + e.Text
}

// readText reads a varint length of at most max and that many bytes of UTF-8.
func readText(r io.Reader, br byteReader, max uint64) (string, error) {
	n, err := quicvarint.Read(br)
	if err != nil {
		return "", err
	}
	if n > max {
		return "", fmt.Errorf("%d bytes are more than the %d allowed", n, max)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return "", err
	}
	if !utf8.Valid(b) {
		return "", errors.New("not UTF-8")
	}
	return string(b), nil
}

// byteReader reads single bytes without buffering: what follows a frame belongs
// to whoever reads the stream next.
type byteReader struct{ r io.Reader }

func (b byteReader) ReadByte() (byte, error) {
	var one [1]byte
	_, err := io.ReadFull(b.r, one[:])
	return one[0], err
}
