package hub

import (
	"fmt"
	"net/http"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// retryAfter is how soon, in seconds, a component may try again what could not
// reach the apiserver. The hub is local and cheap to ask, and a tunnel is often
// back within a second.
const retryAfter = 1

// watchRetryAfter is the same for a pod that has too many watches: one of its own must
// end first.
const watchRetryAfter = 10

func newStatus(code int32, reason metav1.StatusReason, message string) metav1.Status {
	return metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure,
		Code:     code,
		Reason:   reason,
		Message:  message,
	}
}

func unauthorized() metav1.Status {
	return newStatus(http.StatusUnauthorized, metav1.StatusReasonUnauthorized, "the hub needs a client certificate of this node's own authority")
}

func badRequest(message string) metav1.Status {
	return newStatus(http.StatusBadRequest, metav1.StatusReasonBadRequest, message)
}

func forbidden(r request, message string) metav1.Status {
	s := newStatus(http.StatusForbidden, metav1.StatusReasonForbidden, "the hub refuses: "+message)
	if r.isResource() {
		s.Details = &metav1.StatusDetails{Group: r.group, Kind: r.resource, Name: r.name}
	}
	return s
}

// notAcceptable says in which forms there is what was asked for.
func notAcceptable(forms string) metav1.Status {
	return newStatus(http.StatusNotAcceptable, metav1.StatusReasonNotAcceptable, "the hub serves "+forms)
}

func tooLarge() metav1.Status {
	return newStatus(http.StatusRequestEntityTooLarge, metav1.StatusReasonRequestEntityTooLarge, "the request's body is too large")
}

// unavailable: the request did not reach the apiserver, or it was a read.
func unavailable(message string) metav1.Status {
	s := newStatus(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, "the apiserver cannot be reached: "+message)
	s.Details = &metav1.StatusDetails{RetryAfterSeconds: retryAfter}
	return s
}

// tooManyWatches: a pod has as many open as one may have.
func tooManyWatches() metav1.Status {
	s := newStatus(http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests,
		fmt.Sprintf("the pod has %d watches open, which is all that the node serves one while it is cut off from its cluster", podWatches))
	s.Details = &metav1.StatusDetails{RetryAfterSeconds: watchRetryAfter}
	return s
}

// unknownOutcome: a write was sent and no answer came. It may have been done, so
// the client library must not repeat it by itself: there is no Retry-After.
func unknownOutcome(message string) metav1.Status {
	return newStatus(http.StatusGatewayTimeout, metav1.StatusReasonTimeout, "the apiserver was sent the request and did not answer; it may have been done: "+message)
}

// misunderstood: the apiserver answered something the hub cannot rewrite.
func misunderstood(message string) metav1.Status {
	return newStatus(http.StatusInternalServerError, metav1.StatusReasonInternalError, "the hub cannot use the apiserver's answer: "+message)
}
