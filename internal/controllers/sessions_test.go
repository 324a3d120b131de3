package controllers

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
)

func TestNotifier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		notifier := NewNotifier()
		notifier.Notify("nobody-listens")
		ctx, cancel := context.WithCancel(t.Context())
		first, second := notifier.Subscribe(ctx), notifier.Subscribe(ctx)
		// A thousand changes of ten nodes, and nobody reads: it neither blocks
		// nor grows.
		for i := range 1000 {
			notifier.Notify(fmt.Sprintf("node-%d", i%10))
		}
		synctest.Wait()
		for what, channel := range map[string]<-chan string{"first": first, "second": second} {
			seen := map[string]int{}
			for len(seen) < 10 {
				seen[<-channel]++
			}
			synctest.Wait()
			for {
				select {
				case name := <-channel:
					seen[name]++
					synctest.Wait()
					continue
				default:
				}
				break
			}
			for name, times := range seen {
				if times > 2 {
					t.Errorf("%s was told %d times of %s", what, times, name)
				}
			}
		}
		cancel()
		synctest.Wait()
		if _, open := <-first; open {
			t.Error("the channel is open")
		}
		if len(notifier.subs) != 0 {
			t.Error("subscriptions are left")
		}
		notifier.Notify("after")
	})
}
