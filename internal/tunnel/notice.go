package tunnel

import (
	"fmt"
	"io"

	"github.com/quic-go/quic-go/quicvarint"
)

// A notice says why the end that sends it closes a MuxSession. It is all that
// an end ever writes to the notice stream:
//
//	+-------------+------------+----------------------------+
//	| code varint | len varint | reason, len bytes (<= 256) |
//	+-------------+------------+----------------------------+

func appendNotice(b []byte, c *CloseError) []byte {
	b = quicvarint.Append(b, uint64(c.Code))
	b = quicvarint.Append(b, uint64(len(c.Reason)))
	return append(b, c.Reason...)
}

// readNotice reads one notice and not one byte more.
func readNotice(r io.Reader) (*CloseError, error) {
	br := byteReader{r}
	code, err := quicvarint.Read(br)
	if err != nil {
		return nil, fmt.Errorf("close notice: %w", err)
	}
	reason, err := readText(r, br, maxReason)
	if err != nil {
		return nil, fmt.Errorf("close notice: reason: %w", err)
	}
	return &CloseError{Code: CloseCode(code), Reason: reason, Remote: true}, nil
}
