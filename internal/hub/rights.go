package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/edgewright/terraform-provider-edge/internal/hub/memo"
	"github.com/edgewright/terraform-provider-edge/internal/hub/overlay"
)

// bucketRights keeps what the node's service accounts may do, by
// namespace/name; there are no more of them than pods.
var bucketRights = memo.Bucket{Name: "rights", Max: 256}

const (
	// everyNamespace is asked about to learn what a service account may do in
	// all: no namespace can have this name, so only ClusterRoleBindings count.
	everyNamespace = "edge:every-namespace"
	// rightsInterval is how often they are asked for anew, beside whenever the
	// link comes back and whenever a pod gets its first token: two small requests
	// for each service account.
	rightsInterval = time.Hour
)

// rights of a service account, as the apiserver last said.
type rights struct {
	// Own are those in its own namespace, Every those in all namespaces and on
	// what has none.
	Own   []authorizationv1.ResourceRule `json:"own,omitempty"`
	Every []authorizationv1.ResourceRule `json:"every,omitempty"`
	// Paths are those outside of the API's resources.
	Paths []authorizationv1.NonResourceRule `json:"paths,omitempty"`
	// Incomplete: there may be more, which the apiserver cannot list.
	Incomplete bool `json:"incomplete,omitempty"`
}

// errUnknownRights: the apiserver would have to be asked.
var errUnknownRights = errors.New("the node does not know")

// allowed says whether a pod may do what it asks for. A read is allowed where the
// apiserver said so, and nothing where it never said. Whatever else it asks for is
// refused where the apiserver's word is that it may not; where it is not known, to
// say so is the apiserver's: errUnknownRights for a read, nil for what the node
// does not do in any case.
func (l *local) allowed(who serviceAccount, r request) error {
	value, ok := l.config.Memo.Get(bucketRights, who.String())
	if !ok {
		return unknown(r, "what %s may do", who)
	}
	var known rights
	if err := json.Unmarshal(value, &known); err != nil {
		return fmt.Errorf("rights of %s: %w", who, err)
	}
	namespace := r.rulesOf()
	switch {
	case known.allow(who, r):
		return nil
	case namespace != "" && namespace != who.namespace:
		// Its own and those that count everywhere were asked for.
		return unknown(r, "what %s may do in namespace %s", who, namespace)
	case known.Incomplete:
		return unknown(r, "all that %s may do", who)
	case !r.isResource():
		return fmt.Errorf("%s may not %s %s", who, strings.ToLower(r.method), r.path)
	}
	return fmt.Errorf("%s may not %s %s", who, r.verb, r.resourceName())
}

// unknown is what allowed says of a request where nothing is known of what is named.
func unknown(r request, format string, args ...any) error {
	if !r.reads() {
		return nil
	}
	return fmt.Errorf("%w %s", errUnknownRights, fmt.Sprintf(format, args...))
}

func (k rights) allow(who serviceAccount, r request) bool {
	if !r.isResource() {
		return slices.ContainsFunc(k.Paths, func(rule authorizationv1.NonResourceRule) bool {
			return has(rule.Verbs, strings.ToLower(r.method)) && slices.ContainsFunc(rule.NonResourceURLs, func(path string) bool {
				prefix, all := strings.CutSuffix(path, "*")
				return path == r.path || all && strings.HasPrefix(r.path, prefix)
			})
		})
	}
	name := r.name
	if name == "" {
		name = exactName(r.query)
	}
	resource := r.resource
	if r.subresource != "" {
		resource += "/" + r.subresource
	}
	match := func(rule authorizationv1.ResourceRule) bool {
		return has(rule.Verbs, r.verb) && has(rule.APIGroups, r.group) && (has(rule.Resources, resource) || slices.Contains(rule.Resources, "*/"+r.subresource)) &&
			(len(rule.ResourceNames) == 0 || slices.Contains(rule.ResourceNames, name))
	}
	if slices.ContainsFunc(k.Every, match) {
		return true
	}
	namespace := r.rulesOf()
	return namespace != "" && namespace == who.namespace && slices.ContainsFunc(k.Own, match)
}

func has(list []string, s string) bool { return slices.Contains(list, s) || slices.Contains(list, "*") }

// lost says whether a rule that is known is not in what was answered now; they come in
// no order.
func (k rights) lost(now rights) bool {
	return missing(k.Own, now.Own) || missing(k.Every, now.Every) || missing(k.Paths, now.Paths)
}

// missing says whether a rule of before is not there now.
func missing[R any](before, now []R) bool {
	return slices.ContainsFunc(before, func(rule R) bool {
		return !slices.ContainsFunc(now, func(other R) bool { return equality.Semantic.DeepEqual(rule, other) })
	})
}

// startsFor is how much longer the apiserver may not have read all its roles, because
// it may have started when the link came back; 0 once it has.
func (l *local) startsFor() time.Duration {
	return max(overlay.RefusalsPass-l.hub.clock.Since(l.link.State().Since), 0)
}

// learnRights asks what every service account of the node's pods may do, with
// one of its own tokens. post sends an object as the token's bearer. What an apiserver
// that may be starting no longer allows stays allowed until it is asked again, when it
// has read its roles.
func (l *local) learnRights(ctx context.Context, post func(ctx context.Context, token, path string, body []byte) ([]byte, error)) error {
	var errs []error
	again := false
	for who, token := range l.accounts() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		own, err := askRights(ctx, post, token, who.namespace)
		var known rights
		var value []byte
		if err == nil {
			var every authorizationv1.SubjectRulesReviewStatus
			if every, err = askRights(ctx, post, token, everyNamespace); err == nil {
				known = rights{Own: own.ResourceRules, Every: every.ResourceRules, Paths: every.NonResourceRules, Incomplete: own.Incomplete || every.Incomplete}
				value, err = json.Marshal(known)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("what %s may do: %w", who, err))
			continue
		}
		have, ok := l.config.Memo.Get(bucketRights, who.String())
		if ok && string(have) == string(value) {
			continue
		}
		var before rights
		if ok && l.startsFor() > 0 && json.Unmarshal(have, &before) == nil && before.lost(known) {
			again = true
			continue
		}
		l.config.Memo.Put(bucketRights, who.String(), value)
	}
	if again {
		l.hub.clock.AfterFunc(l.startsFor(), l.learnSoon)
	}
	return errors.Join(errs...)
}

func askRights(ctx context.Context, post func(context.Context, string, string, []byte) ([]byte, error), token, namespace string) (authorizationv1.SubjectRulesReviewStatus, error) {
	var review authorizationv1.SelfSubjectRulesReview
	body, err := json.Marshal(authorizationv1.SelfSubjectRulesReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "authorization.k8s.io/v1", Kind: "SelfSubjectRulesReview"},
		Spec:     authorizationv1.SelfSubjectRulesReviewSpec{Namespace: namespace},
	})
	if err != nil {
		return review.Status, err
	}
	answer, err := post(ctx, token, "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", body)
	if err == nil {
		err = json.Unmarshal(answer, &review)
	}
	return review.Status, err
}

// accounts are the service accounts of the node's pods, each with a token for
// the apiserver.
func (l *local) accounts() map[serviceAccount]string {
	out, ends := map[serviceAccount]string{}, map[serviceAccount]time.Time{}
	for _, e := range l.config.Memo.All(bucketTokens) {
		fields := strings.Split(e.Key, " ")
		if len(fields) != 5 || fields[3] != "" {
			continue // for another audience
		}
		var k kept
		if json.Unmarshal(e.Value, &k) != nil {
			continue
		}
		object, _, err := scheme.Codecs.UniversalDeserializer().Decode(k.Body, nil, nil)
		if err != nil {
			continue
		}
		token, ok := object.(*authenticationv1.TokenRequest)
		if !ok || token.Status.Token == "" {
			continue
		}
		// The one that lasts longest.
		if a := (serviceAccount{fields[1], fields[2]}); out[a] == "" || token.Status.ExpirationTimestamp.After(ends[a]) {
			out[a], ends[a] = token.Status.Token, token.Status.ExpirationTimestamp.Time
		}
	}
	return out
}
