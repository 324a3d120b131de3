package cli

import (
	"bufio"
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"
)

// errInputEnded is why a command that runs until its input ends has stopped.
var errInputEnded = errors.New("stopped by what started it")

// untilEOF is the flag --until-eof of commands that the engine runs: they end
// when their standard input does. The engine may run them through sudo, which it
// may not signal, and is itself perhaps killed.
type untilEOF struct{ set bool }

func (u *untilEOF) flag(c *cobra.Command) {
	c.Flags().BoolVar(&u.set, "until-eof", false, "stop at the next safe point when standard input ends")
	_ = c.Flags().MarkHidden("until-eof") // fails only for a flag that does not exist
}

// watch ends ctx at the end of in. What the command itself reads it must have
// read before.
func (u *untilEOF) watch(ctx context.Context, in io.Reader) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	if u.set {
		go func() {
			// Whatever ends the input, nobody is there any more.
			_, _ = io.Copy(io.Discard, in)
			cancel(errInputEnded)
		}()
	}
	return ctx, func() { cancel(context.Canceled) }
}

// buffered is a reader of which a line can be read without losing what follows.
func buffered(in io.Reader) *bufio.Reader {
	if b, ok := in.(*bufio.Reader); ok {
		return b
	}
	return bufio.NewReader(in)
}
