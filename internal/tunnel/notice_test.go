package tunnel

import (
	"bytes"
	"testing"
)

func FuzzReadNotice(f *testing.F) {
	f.Add(appendNotice(nil, &CloseError{Code: CloseRevoked, Reason: "node berlin-1 was removed"}))
	f.Add(appendNotice(nil, &CloseError{}))
	f.Add([]byte{0x40, 0x05, 0x41, 0x01})
	f.Add([]byte{4, 3, 0xff, 0xfe, 0xfd})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		c, err := readNotice(r)
		if err != nil {
			return
		}
		if !c.Remote || len(c.Reason) > maxReason {
			t.Errorf("%+v", c)
		}
		again, err := readNotice(bytes.NewReader(appendNotice(nil, c)))
		if err != nil || *again != *c {
			t.Errorf("%+v, %v", again, err)
		}
	})
}
