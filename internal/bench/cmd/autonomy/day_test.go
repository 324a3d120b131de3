//go:build linux

package main

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// Each of a day's chores is done once, at a constant rate over the parts.
func TestChore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const part = 10 * time.Second
		began, next := time.Now(), 0
		c := chore{"count", 42, func(_ context.Context, i int) error {
			if i != next {
				t.Errorf("number %d comes after %d", i, next-1)
			}
			next++
			at, due := time.Since(began), daySamples*part*time.Duration(i)/42
			if d := at - due; d < -part/10 || d > part/10 {
				t.Errorf("number %d comes at %s, due is %s", i, at, due)
			}
			return nil
		}}
		for i := range daySamples {
			if err := c.do(t.Context(), i, part); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Until(began.Add(time.Duration(i+1) * part)))
		}
		if next != c.times {
			t.Errorf("%d of %d", next, c.times)
		}
	})
}
