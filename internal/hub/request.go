package hub

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// request is what an HTTP request asks of the API, by the rules of
// k8s.io/apiserver/pkg/endpoints/request. Requests outside /api/<version> and
// /apis/<group>/<version> have a path only.
type request struct {
	method string
	// path is decoded and canonical; the hub sends exactly this one upstream,
	// so that what was authorized is what is asked.
	path string
	// query is the decoded query.
	query url.Values

	// verb is get, list, watch, create, update, patch, delete or
	// deletecollection; "" outside resources.
	verb                      string
	group, version            string
	namespace, resource, name string
	subresource               string
}

// parseRequest understands a request, or says why it is refused: a path that is
// not canonical, or that only a long-dead API served.
func parseRequest(method string, u *url.URL) (request, error) {
	r := request{method: method, path: u.Path}
	if err := canonical(u.Path); err != nil {
		return request{}, err
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return request{}, fmt.Errorf("query: %w", err)
	}
	r.query = query

	segments := strings.Split(strings.Trim(u.Path, "/"), "/")
	switch {
	case segments[0] == "api" && len(segments) > 2:
		r.version, segments = segments[1], segments[2:]
	case segments[0] == "apis" && len(segments) > 3:
		r.group, r.version, segments = segments[1], segments[2], segments[3:]
	default:
		return r, nil
	}
	if segments[0] == "watch" || segments[0] == "proxy" {
		return request{}, fmt.Errorf("the deprecated %s paths are not served", segments[0])
	}
	if segments[0] == "namespaces" && len(segments) > 2 && segments[2] != "status" && segments[2] != "finalize" {
		r.namespace, segments = segments[1], segments[2:]
	}
	r.resource = segments[0]
	if len(segments) > 1 {
		r.name = segments[1]
	}
	if len(segments) > 2 {
		r.subresource = segments[2]
	}
	r.verb, err = r.apiVerb()
	return r, err
}

// canonical refuses paths that hub and apiserver might read differently.
func canonical(path string) error {
	if !strings.HasPrefix(path, "/") {
		return errors.New("the path does not begin with /")
	}
	if path == "/" {
		return nil
	}
	for _, s := range strings.Split(strings.TrimSuffix(path[1:], "/"), "/") {
		if s == "" || s == "." || s == ".." || strings.ContainsAny(s, "%\\\x00") {
			return fmt.Errorf("the path %q is not canonical", path)
		}
	}
	return nil
}

func (r request) apiVerb() (string, error) {
	switch r.method {
	case http.MethodGet, http.MethodHead:
		switch {
		case r.name != "":
			return "get", nil
		case queryBool(r.query, "watch"):
			return "watch", nil
		}
		return "list", nil
	case http.MethodPost:
		return "create", nil
	case http.MethodPut:
		return "update", nil
	case http.MethodPatch:
		return "patch", nil
	case http.MethodDelete:
		if r.name == "" {
			return "deletecollection", nil
		}
		return "delete", nil
	}
	return "", fmt.Errorf("the method %q is not part of the API", r.method)
}

// queryBool reads a boolean as apimachinery does: the first value counts, and
// anything but "0" and "false" is true.
func queryBool(query url.Values, key string) bool {
	v, ok := query[key]
	return ok && len(v) > 0 && v[0] != "0" && !strings.EqualFold(v[0], "false")
}

func (r request) isResource() bool { return r.resource != "" }

// rulesOf is the namespace whose rules a request is judged by: that of a namespace
// is itself (k8s.io/apiserver/pkg/endpoints/request/requestinfo.go, NewRequestInfo).
// "": those count that hold in all of them.
func (r request) rulesOf() string {
	if r.namespace == "" && r.resource == "namespaces" {
		return r.name
	}
	return r.namespace
}

func (r request) reads() bool {
	return r.method == http.MethodGet && (r.verb == "get" || r.verb == "list" || r.verb == "watch")
}

// dryRun says whether a write asks only what would be (any value is one, or is
// refused by the apiserver).
func (r request) dryRun() bool { return len(r.query["dryRun"]) > 0 }

// streams says whether the answer lasts until someone ends it.
func (r request) streams() bool {
	return r.verb == "watch" || r.subresource == "log" && queryBool(r.query, "follow")
}

// resourceName is "services" or "endpointslices.discovery.k8s.io", with its
// subresource.
func (r request) resourceName() string {
	name := r.resource
	if r.group != "" {
		name += "." + r.group
	}
	if r.subresource != "" {
		name += "/" + r.subresource
	}
	return name
}

// fromResourceVersion says whether a list or watch names a resourceVersion other
// than "any": "" and every spelling of 0 are answered with the present state.
func (r request) fromResourceVersion() bool {
	rv := r.query.Get("resourceVersion")
	if rv == "" {
		return false
	}
	n, err := strconv.ParseUint(rv, 10, 64)
	return err != nil || n != 0
}
