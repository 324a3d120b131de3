package hub

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/edgewright/terraform-provider-edge/internal/hub/link"
	"github.com/edgewright/terraform-provider-edge/internal/hub/mirror"
	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
)

// Fault is one reason why the node would not go on through a cut and a reboot in
// it: a reason of the condition NodeAutonomy.
type Fault struct {
	// Reason is a word in CamelCase.
	Reason string `json:"reason"`
	// Message is a sentence for people.
	Message string `json:"message"`
}

// The reasons, the gravest first.
const (
	// FaultDisk: what the node learns is not on disk.
	FaultDisk = "DiskError"
	// FaultCache: something that a restart needs was never learned whole, or has not
	// been kept up to date though the link is there.
	FaultCache = "CacheIncomplete"
	// FaultClock: the clock shows a time that cannot be.
	FaultClock = "ClockUnset"
	// FaultCertificate: the node's certificate ends before it is renewed.
	FaultCertificate = "CertExpiring"
)

// certificateHorizon is how long before its end a certificate that was not
// renewed is a fault: it is due after two thirds of its life, so a third of a
// year's is far more, and one of an hour never gets there unless renewal fails.
const certificateHorizon = 7 * 24 * time.Hour

// Faults tells what would keep the node from being without its cluster now. None:
// nothing would. It is nil where the hub keeps no replica.
func (h *Hub) Faults() []Fault {
	if h.local == nil {
		return nil
	}
	var faults []Fault
	if r, ok := h.Replica(); ok {
		if r.DiskError != nil {
			faults = append(faults, Fault{FaultDisk, "the replica cannot be written: " + r.DiskError.Error()})
		}
		var missing []string
		for _, c := range r.Collections {
			if !c.Complete {
				missing = append(missing, c.Collection.String())
			}
		}
		if len(missing) > 0 {
			faults = append(faults, Fault{FaultCache, "not read whole yet: " + strings.Join(missing[:min(len(missing), 5)], ", ")})
		}
		if why := unfollowed(r.Collections); why != "" {
			faults = append(faults, Fault{FaultCache, why})
		}
	}
	if missing := h.local.tokensMissing(); len(missing) > 0 {
		faults = append(faults, Fault{FaultCache, "no token is kept for pods " + strings.Join(missing[:min(len(missing), 5)], ", ") +
			": they would not start again in a cut; their kubelet asks within the hour"})
	}
	if h.config.ClockFault != nil {
		if why := h.config.ClockFault(); why != "" {
			faults = append(faults, Fault{FaultClock, why})
		}
	}
	return slices.Clip(h.certificateFaults(faults))
}

// maxCause is how much of an error's text goes into a message.
const maxCause = 250

// unfollowed says which collections the node holds whole and no longer follows, in
// words that stay the same for as long as that does; "": none.
func unfollowed(collections []mirror.Collection) string {
	var names []string
	var first mirror.Collection
	for _, c := range collections {
		if !c.Complete || !c.Unfollowed {
			continue
		}
		if len(names) == 0 || c.Failing.Before(first.Failing) {
			first = c
		}
		names = append(names, c.Collection.String())
	}
	if len(names) == 0 {
		return ""
	}
	cause := first.Err.Error()
	cause = strings.ToValidUTF8(cause[:min(len(cause), maxCause)], "")
	return fmt.Sprintf("what the node holds grows old, for since %s it has not been able to follow %s: %s: %s", first.Failing.UTC().Format(time.RFC3339),
		strings.Join(names[:min(len(names), 5)], ", "), first.Collection, cause)
}

// certificateFaults appends what the node's certificate says.
func (h *Hub) certificateFaults(faults []Fault) []Fault {
	cert, err := h.config.NodeCertificate()
	if err != nil || cert == nil || len(cert.Certificate) == 0 {
		return append(faults, Fault{FaultCertificate, "the node has no certificate"})
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return append(faults, Fault{FaultCertificate, "the node's certificate cannot be read: " + err.Error()})
	}
	now := h.clock.Now()
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	horizon := min(certificateHorizon, life/6)
	switch {
	case now.Before(leaf.NotBefore) && !slices.ContainsFunc(faults, func(f Fault) bool { return f.Reason == FaultClock }):
		faults = append(faults, Fault{FaultClock, fmt.Sprintf("the clock shows %s, before the node's certificate begins", now.UTC().Format(time.RFC3339))})
	case now.After(leaf.NotAfter.Add(-horizon)):
		return append(faults, Fault{FaultCertificate, "the node's certificate ends " + leaf.NotAfter.UTC().Format(time.RFC3339)})
	}
	// A cut as long as the pool allows must leave time to renew at its end: an
	// ended certificate can be for RenewWindow more. Where the pool sets no end,
	// that is what there is.
	last := leaf.NotAfter.Add(h.config.RenewWindow)
	if duration, ok := h.local.poolDuration(); ok && now.Add(duration).After(last) {
		faults = append(faults, Fault{FaultCertificate, fmt.Sprintf("a cut may last %s by pool %s, and the node's certificate cannot be renewed after %s",
			duration, h.config.Pool, last.UTC().Format(time.RFC3339))})
	}
	return faults
}

// poolDuration is how long a cut of the node's pool may last before its pods are
// deleted; false where it sets no end, or is not known.
func (l *local) poolDuration() (time.Duration, bool) {
	if l.hub.config.Pool == "" {
		return 0, false
	}
	collection := replica.Collection{
		Resource: schema.GroupVersionResource{Group: nodePools.group, Version: "v1alpha1", Resource: nodePools.resource}, Name: l.hub.config.Pool,
	}
	object, _, err := l.config.Replica.Get(collection, "", l.hub.config.Pool)
	if err != nil || object == nil {
		return 0, false // CacheIncomplete is said of it, once it is mirrored
	}
	var pool struct {
		Spec struct {
			Autonomy struct {
				Duration *metav1.Duration `json:"duration"`
			} `json:"autonomy"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(object.Message, &pool); err != nil || pool.Spec.Autonomy.Duration == nil {
		return 0, false
	}
	return pool.Spec.Autonomy.Duration.Duration, true
}

// tokensMissing are the node's running pods with a projected token that the node
// does not keep: kubelet could not start their containers again without the
// cluster.
func (l *local) tokensMissing() []string {
	collection, coverage := l.config.Replica.Cover(replica.Query{
		Resource: schema.GroupVersionResource{Version: "v1", Resource: "pods"}, Node: l.hub.config.NodeName,
	})
	if coverage != replica.CoverWhole {
		return nil
	}
	snapshot, err := l.config.Replica.Snapshot(collection)
	if err != nil {
		return nil // it is not complete, which is said of it already
	}
	var missing []string
	for _, o := range snapshot.Objects {
		var pod corev1.Pod
		if err := pod.Unmarshal(o.Message); err != nil || pod.Status.Phase != corev1.PodRunning || pod.DeletionTimestamp != nil {
			continue
		}
		if slices.ContainsFunc(podTokens(&pod), func(key string) bool {
			_, kept := l.config.Memo.Get(bucketTokens, key)
			return !kept
		}) {
			missing = append(missing, pod.Namespace+"/"+pod.Name)
		}
	}
	return missing
}

// podTokens are the keys of the tokens that kubelet asks for a pod's volumes
// (pkg/volume/projected).
func podTokens(pod *corev1.Pod) []string {
	var keys []string
	for _, v := range pod.Spec.Volumes {
		if v.Projected == nil {
			continue
		}
		for _, source := range v.Projected.Sources {
			if source.ServiceAccountToken == nil {
				continue
			}
			asked := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
				BoundObjectRef:    &authenticationv1.BoundObjectReference{UID: pod.UID},
				ExpirationSeconds: source.ServiceAccountToken.ExpirationSeconds,
			}}
			if a := source.ServiceAccountToken.Audience; a != "" {
				asked.Spec.Audiences = []string{a}
			}
			keys = append(keys, tokenKey(pod.Namespace, pod.Spec.ServiceAccountName, asked))
		}
	}
	return keys
}

// LinkState is how the way to the apiserver is; online where the hub keeps no replica.
func (h *Hub) LinkState() link.State {
	if h.local == nil {
		return link.State{Online: true}
	}
	return h.local.link.State()
}
