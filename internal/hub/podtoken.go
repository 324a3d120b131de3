package hub

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/edgewright/terraform-provider-edge/internal/hub/memo"
)

// bucketIssuer keeps who signs the cluster's tokens.
var bucketIssuer = memo.Bucket{Name: "issuer", Max: 1}

// tokenAlgorithms are those an apiserver signs with (pkg/serviceaccount/jwt.go).
var tokenAlgorithms = []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.ES384, jose.ES512}

// issuer is the cluster's, as it was when the link was there last.
type issuer struct {
	Issuer string             `json:"issuer"`
	Keys   jose.JSONWebKeySet `json:"keys"`
}

// podClaims are those of a token that is bound to a pod.
type podClaims struct {
	jwt.Claims
	Kubernetes struct {
		Namespace      string `json:"namespace"`
		ServiceAccount struct {
			Name string `json:"name"`
		} `json:"serviceaccount"`
		Pod struct {
			Name string `json:"name"`
			UID  string `json:"uid"`
		} `json:"pod"`
	} `json:"kubernetes.io"`
}

// serviceAccount is who a pod is.
type serviceAccount struct{ namespace, name string }

func (s serviceAccount) String() string { return s.namespace + "/" + s.name }

// errNoToken: the caller shows none.
var errNoToken = errors.New("no bearer token")

// authenticatePod verifies a service account's token with the stored keys. Its
// times are not judged: nobody can be had a new one from while the node is cut
// off, and the clock may be wrong. It must be bound to a pod that the node has, whose
// uid is returned too.
func (l *local) authenticatePod(r *http.Request) (who serviceAccount, pod string, err error) {
	scheme, raw, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || raw == "" {
		return serviceAccount{}, "", errNoToken
	}
	known, err := l.issuer()
	if err != nil {
		return serviceAccount{}, "", err
	}
	return known.verify(raw, l.ownPods)
}

// verify returns whom a token names, and the uid of its pod. ownPods are the uids of the node's pods.
func (i issuer) verify(raw string, ownPods func() (map[string]bool, bool)) (who serviceAccount, pod string, err error) {
	token, err := jwt.ParseSigned(strings.TrimSpace(raw), tokenAlgorithms)
	if err != nil {
		return serviceAccount{}, "", errors.New("the token is not a service account's")
	}
	claims, err := i.claims(token)
	if err != nil {
		return serviceAccount{}, "", err
	}
	who = serviceAccount{claims.Kubernetes.Namespace, claims.Kubernetes.ServiceAccount.Name}
	switch {
	case claims.Issuer != i.Issuer:
		return serviceAccount{}, "", fmt.Errorf("the token is of issuer %q", claims.Issuer)
	case !slices.Contains(claims.Audience, i.Issuer):
		// What an apiserver takes for its own audience unless told otherwise.
		return serviceAccount{}, "", fmt.Errorf("the token is for %v", claims.Audience)
	case claims.Subject != "system:serviceaccount:"+who.namespace+":"+who.name:
		return serviceAccount{}, "", fmt.Errorf("the token is of %q, and says %s", claims.Subject, who)
	case claims.Kubernetes.Pod.UID == "":
		return serviceAccount{}, "", errors.New("the token is bound to no pod")
	}
	pods, ok := ownPods()
	if !ok {
		return serviceAccount{}, "", errors.New("the node does not know its pods")
	}
	if !pods[claims.Kubernetes.Pod.UID] {
		return serviceAccount{}, "", fmt.Errorf("the token's pod %s is not on this node", claims.Kubernetes.Pod.Name)
	}
	return who, claims.Kubernetes.Pod.UID, nil
}

// claims are those of a token that one of the keys has signed.
func (i issuer) claims(token *jwt.JSONWebToken) (*podClaims, error) {
	for _, key := range i.Keys.Keys {
		if key.KeyID != "" && len(token.Headers) > 0 && token.Headers[0].KeyID != "" && key.KeyID != token.Headers[0].KeyID {
			continue
		}
		var claims podClaims
		if token.Claims(key.Key, &claims) == nil {
			return &claims, nil
		}
	}
	return nil, errors.New("no key of the cluster has signed the token")
}

// issuer returns what the node knows of who signs tokens.
func (l *local) issuer() (issuer, error) {
	var known issuer
	value, ok := l.config.Memo.Get(bucketIssuer, "issuer")
	if !ok {
		return known, errors.New("the node has never learned who signs the cluster's tokens")
	}
	if err := json.Unmarshal(value, &known); err != nil {
		return known, fmt.Errorf("who signs the cluster's tokens: %w", err)
	}
	return known, nil
}

// learnIssuer asks the apiserver who signs its tokens.
func (l *local) learnIssuer(get func(path string) ([]byte, error)) error {
	configuration, err := get("/.well-known/openid-configuration")
	if err != nil {
		return err
	}
	var known issuer
	if err := json.Unmarshal(configuration, &known); err != nil {
		return fmt.Errorf("openid-configuration: %w", err)
	}
	keys, err := get("/openid/v1/jwks")
	if err != nil {
		return err
	}
	if err := json.Unmarshal(keys, &known.Keys); err != nil {
		return fmt.Errorf("jwks: %w", err)
	}
	// Keys that can be verified with only: an apiserver publishes no others.
	known.Keys.Keys = slices.DeleteFunc(known.Keys.Keys, func(k jose.JSONWebKey) bool { return !k.IsPublic() || !k.Valid() })
	if known.Issuer == "" || len(known.Keys.Keys) == 0 {
		return errors.New("the apiserver names no issuer, or no keys")
	}
	value, err := json.Marshal(known)
	if err != nil {
		return err
	}
	if have, ok := l.config.Memo.Get(bucketIssuer, "issuer"); !ok || string(have) != string(value) {
		l.config.Memo.Put(bucketIssuer, "issuer", value)
	}
	return nil
}
