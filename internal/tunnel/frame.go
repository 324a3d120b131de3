package tunnel

import (
	"encoding/binary"
	"fmt"
	"io"
)

// WriteFrame writes p with a 4-byte big-endian length before it, in one write.
// It refuses more than max bytes.
func WriteFrame(w io.Writer, p []byte, max int) error {
	if len(p) > max {
		return fmt.Errorf("message of %d bytes: %d are allowed", len(p), max)
	}
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(p)), uint32(len(p)))
	if _, err := w.Write(append(b, p...)); err != nil {
		return fmt.Errorf("write message: %w", err)
	}
	return nil
}

// ReadFrame reads what WriteFrame wrote. It refuses a length above max before
// it allocates anything.
func ReadFrame(r io.Reader, max int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, fmt.Errorf("read message length: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if uint64(n) > uint64(max) {
		return nil, fmt.Errorf("message of %d bytes: %d are allowed", n, max)
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(r, p); err != nil {
		return nil, fmt.Errorf("read message of %d bytes: %w", n, err)
	}
	return p, nil
}
