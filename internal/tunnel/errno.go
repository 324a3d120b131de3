package tunnel

import (
	"errors"
	"syscall"
)

// isNotConnected reports whether err is shutdown(2) on a socket whose peer has
// reset or closed it.
func isNotConnected(err error) bool { return errors.Is(err, syscall.ENOTCONN) }
