package gateway

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// Who pushes without end waits for who is told, and not after done.
func TestEventQueueRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := make(chan struct{})
		q := newEventQueue(func(string, bool, time.Time) { <-told })
		ctx, cancel := context.WithCancel(t.Context())
		go q.run(ctx)
		defer cancel()
		defer close(told)
		q.push(event{node: "first"})
		synctest.Wait() // it is being told
		done := make(chan struct{})
		wait := func() bool {
			returned := make(chan struct{})
			go func() { defer close(returned); q.room(done) }()
			synctest.Wait()
			select {
			case <-returned:
				return true
			default:
				return false
			}
		}
		for range maxEvents - 1 {
			q.push(event{node: "more"})
		}
		if !wait() {
			t.Error("waits while there is room")
		}
		q.push(event{node: "one too many"})
		if wait() {
			t.Error("does not wait")
		}
		told <- struct{}{} // the queue is taken
		synctest.Wait()
		if !wait() {
			t.Error("waits although the queue was taken")
		}
		for range maxEvents {
			q.push(event{node: "again"})
		}
		if wait() {
			t.Error("does not wait again")
		}
		close(done)
		if !wait() {
			t.Error("waits after done")
		}
	})
}
